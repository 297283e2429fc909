"""What a Slurm pool in job mode knows of its attempts. Their ends are told from here and from nowhere else.

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
from daggyr_server.executors.slurm.client import Needs, SlurmError, SlurmLimits
from daggyr_server.executors.slurm.jobs.submission_folder import JobReport, SubmissionFolder
from daggyr_server.executors.slurm.pool import SlurmPool

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # between two looks into the folders; less if `poll_interval` is
LONGEST_PAUSE = 60.0  # seconds, of a backoff
STRAY_SECONDS = 600.0  # how long Slurm is asked for jobs that may turn up late, even if nothing else is awaited
MEMORY_OF_A_JOB = (
    1024 * 1024
)  # MiB that the pool offers for each of `max_jobs`, unless its settings say another: more than any node has
UNITS_OF_A_JOB = 64  # the same for each generic resource

Request = Literal["stop", "recall"]
Alike = tuple[Needs, float, int]  # what tasks of one array share: needs, timeout, whole_stdout_bytes


@dataclass(slots=True, eq=False)
class JobAttempt:
    """An attempt that was given, and whose end was not told yet."""

    ident: Ident
    alike: Alike | None = None  # None if an earlier coordinator was given it, and may have submitted it
    assignment: Assignment | None = None  # until it is submitted
    spec: TaskSpec | None = None
    submission: Submission | None = None
    index: int = 0
    started: bool = False  # its start was told
    runs: bool = False  # its script has begun; it cannot be taken back any more
    requested: Request | None = None
    asked_slurm: int = 0  # how often Slurm was told to end it
    ask_again_at: float = 0.0  # when Slurm is to be told again, monotonic
    reported: JobReport | None = None
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
    attempts: dict[int, JobAttempt] = field(default_factory=dict)  # by index; those whose end was not told yet
    nobodys: set[int] = field(default_factory=set)  # of other attempts than this tracker's, without a result: they are ended
    undurable: set[int] = field(default_factory=set)  # those whose end was told and is not durable yet
    made: float | None = None  # when it was submitted, monotonic; None while it is being submitted

    @property
    def name(self) -> str:
        return self.folder.name

    def task(self, index: int) -> str:
        """What Slurm calls a task of it."""
        job_id = self.folder.manifest.job_id
        return f"{job_id}_{index}" if len(self.folder.manifest.keys) > 1 else job_id


class KnownJobs:
    """What is known in one pool. The three tasks read and change all attributes."""

    def __init__(self, pool: SlurmPool) -> None:
        self.pool = pool
        self.attempts: dict[Ident, JobAttempt] = {}
        self.waiting: dict[Ident, JobAttempt] = {}  # those that are not submitted, in order
        self.submissions: dict[str, Submission] = {}  # by the submission's name
        self.finished: dict[str, float] = {}  # when each submission that is done with ended, monotonic; by name
        self.placed: list[JobAttempt] | None = None  # what an earlier coordinator placed, until it was looked for
        self.to_cancel: list[str] = []  # jobs of attempts that were taken back
        self.to_forget: list[tuple[Submission, int]] = []  # attempts whose ends are durable
        self.in_slurm = 0  # attempts that are submitted and whose end was not told
        self.limits: SlurmLimits | None = None  # once Slurm has answered
        self.offered: HostState | None = None
        self.strays_until = 0.0  # monotonic
        self.submit_wake = asyncio.Event()
        self.watch_wake = asyncio.Event()
        self.calls_wake = asyncio.Event()
        self.room = asyncio.Event()

    @property
    def look_seconds(self) -> float:
        """The time between two looks at anything, in seconds."""
        return min(LOOK_SECONDS, float(self.pool.settings.poll_interval))

    @property
    def away(self) -> bool:
        """Whether Slurm did not answer last time. Somebody has to ask again, because until then the driver gives nothing."""
        return self.offered == HOST_PAUSED

    async def rest(self, wake: asyncio.Event) -> None:
        """Return when it is time to look again, or at once if `wake` is set."""
        busy = self.submissions or self.attempts or self.away or time.monotonic() < self.strays_until
        try:
            async with asyncio.timeout(self.look_seconds if busy else None):
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()

    def offer(self, state: HostState) -> None:
        """Tell the state of the pool's one host, if it has changed."""
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
        """Let a submission start. If that fails, `SlurmCalls` finds it held and tries again."""
        try:
            await self.pool.client.release(submission.folder.manifest.job_id)
        except SlurmError as error:
            log.warning("pool %s: job %s is not released yet: %s", self.pool.pool, submission.folder.manifest.job_id, error)

    def end(self, submission: Submission, attempt: JobAttempt, result: AttemptResult) -> None:
        """Tell the end of an attempt that was submitted. Its files go once that is durable."""
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
        """Tell the end of an attempt. A second end of it is passed over."""
        if self.attempts.pop(attempt.ident, None) is None:
            return
        self.pool.reports.updates(self.pool.pool, [AttemptUpdate(key=attempt.key, finished=result)], durable)
