"""The fixtures of this folder: a deployment of the real programs, whose words are shown when a test fails.

A module may have a fixture `shared` of its own, with another server. Its tests stay on one worker: see tests/conftest.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from slurm_pools import cluster  # noqa: F401
from support.deployment import FARM, Deployment, new_deployment, pytest_runtest_makereport  # noqa: F401

LOCAL = """
[pools.default]
executor = "local"
workers = 2
"""


@pytest.fixture
def local(deployment: Deployment) -> Deployment:
    """A server with a local pool of two workers."""
    deployment.start_server("--workers", "2")
    return deployment


@pytest.fixture
def farm(deployment: Deployment) -> Deployment:
    """A server with an empty pool of agents, `farm`."""
    deployment.start_server(config=FARM)
    return deployment


@pytest.fixture
def standing(local: Deployment) -> Iterator[Deployment]:
    """As `local`. Whatever the test did to the server, it then takes a run and completes it."""
    yield local
    local.goes_on()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server with a local pool and one of agents, `farm`, for all tests of a module that leave it as it was."""
    made = Deployment(tmp_path_factory.mktemp("shared"))
    try:
        made.start_server(config=FARM.replace("[server]", "[server]\ndefault_pool = 'default'") + LOCAL)
        yield made
    finally:
        made.close()


@pytest.fixture
def unharmed(shared: Deployment) -> Iterator[Deployment]:
    """As `standing`, with the module's server: it has no run and no file where tasks start, before the test and after it."""
    assert shared.runs() == []
    yield shared
    shared.goes_on()
    for run in shared.runs():
        shared.delete(run["run_id"])
    for path in shared.work.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
