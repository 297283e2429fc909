"""The fixtures of this folder: a deployment of the real programs, whose words are shown when a test fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.deployment import FARM, Deployment, new_deployment, pytest_runtest_makereport  # noqa: F401


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
