"""The fixtures of this folder: a deployment of the real programs, and durable trackers of both kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults_tracker import new_tracker
from support.deployment import new_deployment, pytest_runtest_makereport  # noqa: F401


@pytest.fixture(params=("sqlite", "postgresql"))
def tracker(request: pytest.FixtureRequest) -> str:
    """The address of an empty tracker. The test runs once for each durable kind."""
    return new_tracker(request.param, request)


@pytest.fixture
def sqlite_tracker(tmp_path: Path) -> str:
    """The address of a new sqlite tracker."""
    return f"sqlite:{tmp_path}/state.db"
