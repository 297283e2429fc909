"""The Slurm executor, as its entry point names it: which of its two modes a pool's settings mean.

`mode = "jobs"` (jobs/executor.py) makes each attempt a job. `mode = "pilot"` (pilots.py) starts agents as jobs, and they carry
out attempts as the agents of an agent pool do. The server makes a `SlurmExecutor` and uses what it gets. Nothing else is decided
here.
"""

from __future__ import annotations

from typing import Any

from daggyr_server.executors.base import Executor, Reports
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.slurm.jobs.executor import JobExecutor
from daggyr_server.executors.slurm.pilots import PilotExecutor


class SlurmExecutor(JobExecutor):
    """One pool on a Slurm cluster, in job mode. With the settings of a pool of pilots, a PilotExecutor is made instead."""

    def __new__(cls, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> Executor:  # type: ignore[misc]
        if settings.mode == "pilot":
            return PilotExecutor(pool, settings, reports, context)
        return super().__new__(cls)
