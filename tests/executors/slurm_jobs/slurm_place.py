"""`Place`: a pool's folder on the tests' Slurm cluster, and the coordinators that come and go there.

The tests of this folder use it, and conftest.py makes the places. A coordinator is an executor in the test's process; one that
dies is closed in the middle of a call to Slurm. The clients `Dying` and `Counting` stand in front of the executor's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from executor_harness import Harness, Told, eventually, executor_context
from executor_kinds import slurm
from support.slurm_cluster import SlurmCluster
from support.task_specs import shell
from support.waiting import DEADLINE

from daggyr.v1.task_pb2 import AttemptKey, Placement, TaskSpec
from daggyr_server.executors.slurm.client import Job, SlurmClient
from daggyr_server.executors.slurm.jobs.executor import JobExecutor

# No other executor has one of these; `slurm` in executor_kinds.py says why.
_trackers = (f"place-{number}" for number in itertools.count(1))
FOR_EVER = "while :; do sleep 100; done"
COUNTED = 'echo "$DAGGYR_TASK_ID" >> "$1/log"'
GATED = 'echo "$DAGGYR_TASK_ID" >> "$1/log"; until [ -e "$1/gate" ]; do sleep 0.02; done; echo done; exit "$2"'


class Place:
    """A pool's directory, and the coordinators that come and go there."""

    def __init__(self, home: Path, cluster: SlurmCluster, settings: dict[str, Any]) -> None:
        self.home = home
        self.cluster = cluster
        self._settings = settings
        self._context = executor_context(tracker_id=next(_trackers))
        self._stack = AsyncExitStack()

    async def coordinator(self, *clients: Dying | Counting, **settings: Any) -> Harness:
        """Close the coordinator before, if there is one, and open another in its place; `clients` go in front of its client."""
        await self.end()
        harness = await self._stack.enter_async_context(slurm(self.home, context=self._context, **{**self._settings, **settings}))
        executor = harness.executor
        assert isinstance(executor, JobExecutor)
        for each in clients:
            each.client, executor.client = executor.client, each
        return harness

    async def end(self) -> None:
        """Close the coordinator; its jobs go on."""
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    def log(self) -> list[str]:
        """The ids of the tasks that ran, in the order of their starts."""
        path = self.home / "log"
        return path.read_text().split() if path.exists() else []

    def gated(self, code: int = 0) -> TaskSpec:
        """A task that waits for the gate to open and then exits with `code`."""
        return shell(GATED, str(self.home), str(code))

    def open_gate(self) -> None:
        (self.home / "gate").touch()

    def silence(self) -> None:
        """Keep the one job that runs from writing its result, so that only what Slurm says of it counts."""
        (folder,) = self.folders
        (folder / "0.part").mkdir()

    @property
    def folders(self) -> list[Path]:
        """The folders of the submissions that are on disk."""
        return [path for path in (self.home / self._context.tracker_id).iterdir() if path.is_dir()]


class Dying:
    """A client that never answers one call, as if the coordinator were killed there, before or after Slurm has heard the call."""

    def __init__(self, call: str, *, after: bool) -> None:
        self.client: SlurmClient
        self.job: Job | None = None
        self._reached = asyncio.Event()
        self._call, self._after = call, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def _die(self, call: str, *arguments: Any) -> Any:
        if call != self._call:
            return await getattr(self.client, call)(*arguments)
        if self._after:
            await getattr(self.client, call)(*arguments)
        self._reached.set()
        return await asyncio.Event().wait()

    async def reached(self) -> None:
        """Return once the coordinator waits in that call."""
        async with asyncio.timeout(DEADLINE):
            await self._reached.wait()

    async def submit(self, job: Job) -> str:
        self.job = job
        return str(await self._die("submit", job))

    async def release(self, job_id: str) -> None:
        await self._die("release", job_id)


class Counting:
    """A client that notes when each array is submitted, and its size."""

    def __init__(self) -> None:
        self.client: SlurmClient
        self.sizes: list[int] = []
        self.times: list[float] = []  # monotonic

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def submit(self, job: Job) -> str:
        self.sizes.append(job.size)
        self.times.append(time.monotonic())
        return await self.client.submit(job)


@contextlib.asynccontextmanager
async def new_place(cluster: SlurmCluster, folder: Path, settings: dict[str, Any]) -> AsyncIterator[Place]:
    """A place below `folder`; in the end its coordinator is closed and its jobs are cancelled."""
    (folder / "home").mkdir()
    made = Place(folder / "home", cluster, settings)
    yield made
    await made.end()
    cluster.mend()
    for job, _, _ in cluster.unfinished("daggyr-"):
        cluster.ask("scancel", job)
    await eventually(lambda: not cluster.unfinished("daggyr-"))


async def took_up(harness: Harness, keys: Sequence[AttemptKey]) -> None:
    """Tell a new coordinator's executor of the attempts that the coordinator before had placed."""
    host = await harness.host()
    for key in keys:
        harness.reports.of(key).host = host
    harness.executor.recover([(key, Placement(host=host)) for key in keys])


def outcomes(told: Sequence[Told]) -> list[str]:
    return [each.outcome for each in told]
