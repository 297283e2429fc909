"""The fixtures of this folder: the tests' Slurm cluster, and a pool's place there by each way to Slurm.

The cluster is real and is started once a session. Each test starts and ends without a job of a coordinator's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_place import Place, new_place
from support import slurm_cluster
from support.slurm_cluster import SlurmCluster
from support.waiting import until


@pytest.fixture
def cluster() -> Iterator[SlurmCluster]:
    """The session's cluster, with both daemons running and without a job of a coordinator's before and after the test."""
    found = slurm_cluster.running()
    until(lambda: not found.unfinished("daggyr-"), "the end of the jobs of tests before")
    yield found
    found.mend()
    until(lambda: not found.unfinished("daggyr-"), "the end of the jobs of this test")


@pytest.fixture(params=["commands", "slurmrestd"])
def settings(request: pytest.FixtureRequest, cluster: SlurmCluster, tmp_path: Path) -> dict[str, Any]:
    """The settings of a pool that reaches Slurm by its commands, or by slurmrestd."""
    if request.param == "commands":
        return {}
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(cluster.token())
    return {"base_url": cluster.rest_url, "user": "root", "token_file": token}


@pytest.fixture
async def place(cluster: SlurmCluster, tmp_path: Path, settings: dict[str, Any]) -> AsyncIterator[Place]:
    """A place whose coordinators reach Slurm by its commands, then one whose coordinators use slurmrestd."""
    async with new_place(cluster, tmp_path, settings) as made:
        yield made


@pytest.fixture
async def home(cluster: SlurmCluster, tmp_path: Path) -> AsyncIterator[Place]:
    """A place whose coordinators reach Slurm by its commands, for tests in which the way to Slurm does not matter."""
    async with new_place(cluster, tmp_path, {}) as made:
        yield made
