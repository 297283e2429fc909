"""Slurm in job mode: attempts are tasks of job arrays, submitted when the driver gives them and followed until they are told.

Calls of the driver only record what is wanted, in `KnownJobs`; three asyncio tasks work on that. The **submitter** takes waiting
attempts of equal needs together and submits them. The **watch** looks into the submissions' folders, where jobs write when
they start and how they end, and tells it. `SlurmCalls` asks Slurm about all jobs with one query, and has those ended that are
to stop. An attempt's end is taken from its own result where that says enough, and from Slurm otherwise (`outcomes.py`).

The pool is one host: Slurm decides where a job goes, and how many it takes is a matter of `max_jobs` and `resources`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from daggyr.attempts.keys import ident_of
from daggyr.attempts.outcome import without_process
from daggyr.attempts.times import seconds_of
from daggyr.backoff import Backoff
from daggyr.substitution import Filling
from daggyr.v1.task_pb2 import (
    REJECTED,
    STDERR,
    STDOUT,
    AssignmentBatch,
    AttemptKey,
    AttemptUpdate,
    OutputChunk,
    OutputStream,
    Placement,
)
from daggyr_server.executors.base import Reports, Wanted, forgotten
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.slurm.client import RESOURCES, needs_of
from daggyr_server.executors.slurm.jobs.calls import SlurmCalls
from daggyr_server.executors.slurm.jobs.held_back import Alike, JobKind
from daggyr_server.executors.slurm.jobs.known_jobs import LONGEST_PAUSE, JobAttempt, KnownJobs, Request, Submission
from daggyr_server.executors.slurm.jobs.output import written_by
from daggyr_server.executors.slurm.jobs.script import check_task
from daggyr_server.executors.slurm.jobs.submission_folder import remove_void
from daggyr_server.executors.slurm.jobs.submitter import Submitter
from daggyr_server.executors.slurm.jobs.watch import Watch
from daggyr_server.executors.slurm.pool import SlurmPool

log = logging.getLogger(__name__)

MAX_PIECES = 4  # of an output that is followed, read at once


class JobExecutor(SlurmPool):
    """One pool of Slurm jobs."""

    def __init__(self, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> None:
        super().__init__(pool, settings, reports, context)
        self._known = KnownJobs(self)
        self._watch = Watch(self._known)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        await super().open()
        tasks = {"submitter": Submitter(self._known).run, "watch": self._watch.run, "calls to Slurm": SlurmCalls(self._known).run}
        self._tasks = [asyncio.create_task(self._always(what, run), name=f"{what} of {self.pool}") for what, run in tasks.items()]

    async def _always(self, what: str, run: Callable[[], Awaitable[None]]) -> None:
        """Let one of the three tasks run, and run again if it fails: a pool of which one stands still never asks for anything."""
        backoff = Backoff(self.settings.poll_interval, LONGEST_PAUSE)
        while True:
            try:
                await run()
            except Exception:
                pause = backoff.next()
                log.exception("pool %s: its %s failed, a fault of DaggyR's own; it goes on in %g s", self.pool, what, pause)
                await asyncio.sleep(pause)

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._watch.clean()
            await asyncio.to_thread(remove_void, self.tracker_folder, self.prefix)
            self.leave_directory()

    def start(self, host: str, batch: AssignmentBatch) -> None:
        fillings = [Filling(template) for template in batch.templates]
        rejected = []
        for assignment in batch.assignments:
            key = assignment.key
            ident = ident_of(key)
            if ident in self._known.attempts:
                continue
            try:
                spec = fillings[assignment.template].spec(assignment.values)
                check_task(assignment, spec)
                timeout = seconds_of(spec.timeout)
                longest = timeout + self.context.grace if timeout else 0
                self._check_gpus(spec.resources.get("gpus", 0))
                resources = tuple(sorted((name, units) for name, units in spec.resources.items() if units))
                kind = JobKind(needs_of(spec.resources, longest, self.settings), timeout, resources)
            except ValueError as error:
                rejected.append(AttemptUpdate(key=key, finished=without_process(REJECTED, str(error))))
                continue
            self._known.given(JobAttempt(ident, Alike(kind, spec.whole_stdout_bytes), assignment, spec))
        if rejected:
            asyncio.get_running_loop().call_soon(self.reports.updates, self.pool, rejected, forgotten)
        self._known.submit_wake.set()

    def _check_gpus(self, count: int) -> None:
        """Raise ValueError if GPUs are wanted where the cluster is known to have none."""
        limits = self._known.limits
        if count and limits is not None and limits.gres is not None and "gpu" not in limits.gres:
            has = ", ".join(limits.gres) or "nothing"
            raise ValueError(f"it needs {count} of gpus, and the cluster has none: GresTypes of its slurm.conf names {has}")

    def notes(self) -> Sequence[str]:
        offered = self._known.resources() if self._known.limits is not None else None
        never = never_offered(self.reports.wanted(), offered) if offered is not None else ()
        return [*never, *self._known.waits()]

    def placement(self, host: str, key: AttemptKey) -> Placement:
        attempt = self._known.attempts.get(ident_of(key))
        return self._known.placement(attempt) if attempt is not None else Placement(host=host)

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        self._request(keys, "stop")

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None:
        self._request(keys, "recall")

    def _request(self, keys: Sequence[AttemptKey], request: Request) -> None:
        for key in keys:
            attempt = self._known.attempts.get(ident_of(key))
            if attempt is not None and attempt.requested != "stop":
                attempt.requested = request
                self._known.watch_wake.set()

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        self._known.placed = []
        for key, _ in placed:
            attempt = JobAttempt(ident_of(key))
            self._known.attempts[attempt.ident] = attempt
            self._known.placed.append(attempt)
        self._known.watch_wake.set()

    async def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        ident = ident_of(key)
        name: OutputStream = STDOUT if stream == STDOUT else STDERR
        while True:
            attempt = self._known.attempts.get(ident)
            if attempt is None:
                return
            if attempt.submission is not None and attempt.submission.made is not None:
                try:
                    for found, data in await asyncio.to_thread(_read, attempt.submission, attempt.index, name, offset):
                        yield OutputChunk(stream=name, offset=found, data=data)
                        offset = found + len(data)
                except OSError:
                    return
            await asyncio.sleep(self._known.look_seconds)


def never_offered(wanted: Iterable[Wanted], offered: Mapping[str, int]) -> Iterator[str]:
    """Tell of tasks that need a resource that the pool does not offer, and what to do."""
    for kind in wanted:
        for name, _ in kind.needs:
            if name in offered:
                continue
            tasks = f"{kind.count:,} task needs" if kind.count == 1 else f"{kind.count:,} tasks need"
            if name.startswith(("gres/", "license/")):
                yield f"{tasks} {name}, which the pool does not offer: set how much there is in its `resources`, or edit the run"
            else:
                yield f"{tasks} {name}, which Slurm does not have: {RESOURCES}; edit the run"


def _read(submission: Submission, index: int, stream: OutputStream, offset: int) -> list[tuple[int, bytes]]:
    """Return what can be read of a stream from `offset` on, at most MAX_PIECES pieces of it."""
    return list(itertools.islice(written_by(submission.folder, index, stream).chunks(offset), MAX_PIECES))
