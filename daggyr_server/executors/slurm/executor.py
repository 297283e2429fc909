"""The Slurm executor, as its entry point names it: which of its two modes a pool's settings mean.

`mode = "jobs"` (jobs/executor.py) makes each attempt a job. `mode = "pilot"` (pilots.py) starts agents as jobs, and they carry
out attempts as the agents of an agent pool do. The server asks `SlurmExecutor.chosen` and makes what that names. Nothing else is
decided here.
"""

from __future__ import annotations

from typing import Any

from daggyr_server.executors.base import Executor
from daggyr_server.executors.slurm.jobs.executor import JobExecutor
from daggyr_server.executors.slurm.pilots import PilotExecutor


class SlurmExecutor(JobExecutor):
    """One pool on a Slurm cluster, in job mode."""

    @classmethod
    def chosen(cls, settings: Any) -> type[Executor]:
        return PilotExecutor if settings.mode == "pilot" else cls
