"""What a Slurm pool in job mode knows of its attempts, and the only place from which their ends are told.

The three tasks of the executor (`submitter.py`, `watch.py`, `calls.py`) work on one `KnownJobs`, in one event loop; each wakes
the others through it. Nothing here touches a file or asks Slurm for anything but a release.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from daggyr.attempts.keys import Ident, key_of
from daggyr.v1.task_pb2 import (
    HOST_PAUSED,
    Assignment,
    AttemptKey,
    AttemptResult,
    AttemptUpdate,
    Host,
    HostState,
    TaskSpec,
)
from daggyr_server.executors.base import forgotten
from daggyr_server.executors.slurm.client import Limits, Needs, SlurmError
from daggyr_server.executors.slurm.jobs.submission_folder import Reported, SubmissionFolder
from daggyr_server.executors.slurm.pool import SlurmPool

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # between two looks into the folders; less if `poll_interval` is
LONGEST_PAUSE = 60.0  # seconds, of a backoff
STRAY_SECONDS = 600.0  # how long Slurm is asked for jobs that may turn up late, though nothing else is awaited
MEMORY_OF_A_JOB = 1024 * 1024  # MiB; what the pool offers for each of `max_jobs`, unless told: more than any node has
UNITS_OF_A_JOB = 64  # of each generic resource, likewise

Request = Literal["stop", "recall"]
Alike = tuple[Needs, float, int]  # what tasks of one array share: needs, timeout, whole_stdout_bytes


@dataclass(slots=True, eq=False)
class JobAttempt:
    """An attempt that was given and has not been told the end of."""

    ident: Ident
    alike: Alike | None = None  # None: recovered, and submitted by an earlier coordinator if at all
    assignment: Assignment | None = None  # until it is submitted
    spec: TaskSpec | None = None
    submission: Submission | None = None
    index: int = 0
    started: bool = False  # and told
    runs: bool = False  # its script has begun; it cannot be taken back any more
    requested: Request | None = None
    asked_slurm: int = 0  # how often it was told to end it
    ask_again_at: float = 0.0  # when Slurm is to be told again, monotonic
    reported: Reported | None = None
    reported_at: float = 0.0
    state: str | None = None  # of its job, as Slurm said last
    over_since: float | None = None  # since when Slurm says that it has ended, monotonic

    @property
    def key(self) -> AttemptKey:
        return key_of(self.ident)


@dataclass(slots=True, eq=False)
class Submission:
    """A job array that is being submitted, or that was and has attempts left to tell of."""

    folder: SubmissionFolder
    attempts: dict[int, JobAttempt] = field(default_factory=dict)  # by index; not told yet
    undurable: set[int] = field(default_factory=set)  # told
    made: float | None = None  # when it was submitted, monotonic; None: it is just being submitted

    @property
    def name(self) -> str:
        return self.folder.name

    def task(self, index: int) -> str:
        """What Slurm calls a task of it."""
        job_id = self.folder.manifest.job_id
        return f"{job_id}_{index}" if len(self.folder.manifest.keys) > 1 else job_id


class KnownJobs:
    """Of one pool. All attributes are for the three tasks."""

    def __init__(self, pool: SlurmPool) -> None:
        self.pool = pool
        self.attempts: dict[Ident, JobAttempt] = {}
        self.waiting: dict[Ident, JobAttempt] = {}  # not submitted; in order
        self.submissions: dict[str, Submission] = {}  # by the submission's name
        self.finished: dict[str, float] = {}  # names of submissions that are done with, and when, monotonic
        self.placed: list[JobAttempt] | None = None  # by an earlier coordinator, not looked for yet
        self.to_cancel: list[str] = []  # jobs of attempts that were taken back
        self.to_forget: list[tuple[Submission, int]] = []  # what is durable
        self.in_slurm = 0  # attempts that are submitted and not told
        self.limits: Limits | None = None  # once Slurm has answered
        self.offered: HostState | None = None
        self.strays_until = 0.0  # monotonic
        self.submit_wake = asyncio.Event()
        self.watch_wake = asyncio.Event()
        self.calls_wake = asyncio.Event()
        self.room = asyncio.Event()

    @property
    def look_seconds(self) -> float:
        """Between two looks at anything."""
        return min(LOOK_SECONDS, float(self.pool.settings.poll_interval))

    @property
    def away(self) -> bool:
        """Whether Slurm could not be asked last time: somebody has to see that it is back, for nothing is given to us before."""
        return self.offered == HOST_PAUSED

    async def rest(self, wake: asyncio.Event) -> None:
        """Return when it is time to look again, at once if `wake` is set."""
        busy = self.submissions or self.attempts or self.away or time.monotonic() < self.strays_until
        try:
            async with asyncio.timeout(self.look_seconds if busy else None):
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()

    def offer(self, state: HostState) -> None:
        """Tell of the pool's one host, if that is news."""
        if state == self.offered:
            return
        self.offered = state
        settings = self.pool.settings
        resources = {"cores": settings.max_jobs, "memory_mb": settings.max_jobs * MEMORY_OF_A_JOB}
        for name in self.limits.gres if self.limits is not None else ():
            resources[f"gres/{name}"] = settings.max_jobs * UNITS_OF_A_JOB
        resources.update(settings.resources)
        name = f"Slurm, partition {settings.partition}" if settings.partition else "Slurm"
        self.pool.reports.host(Host(host=self.pool.pool, name=name, state=state, resources=resources))

    async def release(self, submission: Submission) -> None:
        """Let a submission start; if that fails, `SlurmCalls` finds it held, and tries again."""
        try:
            await self.pool.client.release(submission.folder.manifest.job_id)
        except SlurmError as error:
            log.warning("pool %s: job %s is not released yet: %s", self.pool.pool, submission.folder.manifest.job_id, error)

    def end(self, submission: Submission, attempt: JobAttempt, result: AttemptResult) -> None:
        """Tell the end of an attempt that was submitted; its files go once that is durable."""
        if submission.attempts.pop(attempt.index, None) is None:
            return
        submission.undurable.add(attempt.index)
        self.in_slurm -= 1
        self.room.set()

        def durable() -> None:
            self.to_forget.append((submission, attempt.index))
            self.watch_wake.set()

        self.tell(attempt, result, durable)

    def tell(self, attempt: JobAttempt, result: AttemptResult, durable: Callable[[], None] = forgotten) -> None:
        """Tell the end of an attempt, the first time it is known."""
        if self.attempts.pop(attempt.ident, None) is None:
            return
        self.pool.reports.updates(self.pool.pool, [AttemptUpdate(key=attempt.key, finished=result)], durable)
