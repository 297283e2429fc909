"""A deployment's pool on the tests' Slurm cluster: the fixture `cluster`, and the configuration of a server.

The tests of this folder that are about Slurm use it. Nothing here starts a server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support import slurm_cluster
from support.deployment import PATIENT, Deployment
from support.slurm_cluster import SlurmCluster
from support.waiting import until

COUNTED = 'echo "$DAGGYR_TASK_ID" >> "$LOG"'


@pytest.fixture
def cluster(deployment: Deployment) -> Iterator[SlurmCluster]:
    """The session's cluster, which the deployment's programs know; its tasks write to $LOG."""
    found = slurm_cluster.running()
    deployment.environment["SLURM_CONF"] = str(found.configuration)
    deployment.passed.append("LOG")
    deployment.environment["LOG"] = str(deployment.work / "log")
    yield found
    for job, _, _ in found.unfinished():
        found.ask("scancel", job)
    until(lambda: not found.unfinished(), "the end of all jobs")


def pool(deployment: Deployment, **settings: Any) -> str:
    """A configuration with one Slurm pool."""
    given = {"executor": "slurm", "directory": str(deployment.work), "poll_interval": 0.2, **settings}
    table = "".join(f"{name} = {_toml(value)}\n" for name, value in given.items())
    return f"[server]\nkill_grace = 0.5\n{PATIENT}\n[pools.hpc]\n{table}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
