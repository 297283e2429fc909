"""The fixtures of this folder: a deployment of the real programs, whose words are shown when a test fails."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment

FARM = """
[server]
heartbeat = 0.5
lease = 30
[pools.farm]
executor = "agent"
"""


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A user's empty folder; nothing runs yet."""
    made = Deployment(tmp_path)
    yield made
    made.close()


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
    """As `local`; whatever the test did to it, the server then takes a run and completes it."""
    yield local
    local.goes_on()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds what the daemons said to the report of a test that failed."""
    report: pytest.TestReport = yield
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    if report.failed and isinstance(deployment := funcargs.get("deployment"), Deployment):
        report.sections.append(("standard error of the daemons", deployment.logs()))
    return report
