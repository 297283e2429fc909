"""What a Slurm pool in job mode knows of its attempts. Their ends are told from here and from nowhere else.

The three tasks of the executor (`submitter.py`, `watch.py`, `calls.py`) work on one `KnownJobs`, in one event loop; each wakes
the others through it. Nothing here touches a file or asks Slurm for anything but a release.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from daggyr.attempts.keys import Ident, key_of
from daggyr.attempts.outcome import without_process
from daggyr.attempts.times import duration
from daggyr.backoff import Backoff
from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    HOST_PAUSED,
    KILLED,
    RETURNED,
    Assignment,
    AttemptKey,
    AttemptResult,
    AttemptUpdate,
    Host,
    HostFault,
    Placement,
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
MAX_HELD_BACK = 3_000  # attempts of needs that Slurm refuses for now, beyond which they count against what the pool offers

_OWN_TURN = frozenset(("", "None", "Resources", "Priority", "Cleaning", "BeginTime"))  # reasons that pass by themselves
_MOST_REASONS = 5  # that are told

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
    state: str | None = None  # of its job, as Slurm said last...
    reason: str = ""  # ...and why it waits or ended, in Slurm's words
    node: str = ""
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
    held: bool = True  # it was not released from here yet; one that is held later was held by a person

    @property
    def name(self) -> str:
        return self.folder.name

    def task(self, index: int) -> str:
        """What Slurm calls a task of it."""
        job_id = self.folder.manifest.job_id
        return f"{job_id}_{index}" if len(self.folder.manifest.keys) > 1 else job_id


@dataclass(slots=True, eq=False)
class HeldBack:
    """Needs of which Slurm takes no more for now, for a limit. Attempts of other needs are submitted meanwhile."""

    most: int  # tasks that are submitted together at most: less after each refusal, more after two submissions
    backoff: Backoff
    reason: str = ""  # in Slurm's words
    tried: float = 0.0  # monotonic
    due: float = 0.0  # when it is tried again, monotonic
    taken: int = 0  # submissions since the last refusal


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
        self.refused: dict[Alike, HeldBack] = {}
        # What does not work now, by who has found that: why, and until when (monotonic).
        self.troubles: dict[str, tuple[str, float]] = {}
        self.offered: Host | None = None
        self.strays_until = 0.0  # monotonic
        self.submit_wake = asyncio.Event()
        self.watch_wake = asyncio.Event()
        self.calls_wake = asyncio.Event()

    @property
    def look_seconds(self) -> float:
        """The time between two looks at anything, in seconds."""
        return min(LOOK_SECONDS, float(self.pool.settings.poll_interval))

    async def rest(self, wake: asyncio.Event) -> None:
        """Return when it is time to look again, or at once if `wake` is set."""
        busy = self.submissions or self.attempts or self.troubles or time.monotonic() < self.strays_until
        try:
            async with asyncio.timeout(self.look_seconds if busy else None):
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()

    # -- whether the pool takes anything -------------------------------------------------------------------------------

    def trouble(self, finder: str, reason: str, pause: float) -> None:
        """Something does not work now, as `finder` has found, who looks again in `pause` seconds: nothing is taken until then.

        The pool tells why. Attempts that were not submitted go back, since they may as well run elsewhere, or later. What waits
        or runs in Slurm keeps its place there.
        """
        known = self.troubles.get(finder)
        self.troubles[finder] = reason, time.monotonic() + pause
        if known is None or known[0] != reason:
            log.warning("pool %s pauses: %s; this is tried again in %g s", self.pool.pool, reason, pause)
        self.offer()
        waiting, self.waiting = self.waiting, {}
        for attempt in waiting.values():
            self.give_back(attempt, reason)

    def fine(self, finder: str) -> None:
        """What did not work works again, or is to be tried again."""
        if self.troubles.pop(finder, None) is not None:
            if not self.troubles:
                log.info("pool %s goes on", self.pool.pool)
            self.offer()

    def offer(self) -> None:
        """Tell of the pool's one host, if anything about it has changed."""
        settings = self.pool.settings
        resources = {name: units for name, units in self.resources().items() if units}
        name = f"Slurm, partition {settings.partition}" if settings.partition else "Slurm"
        host = Host(host=self.pool.pool, name=name, state=HOST_AVAILABLE, resources=resources)
        held_back = sorted({refused.reason for refused in self.refused.values() if refused.due})
        if held_back:
            host.shortage = f"does not take some of the jobs for now: {'; '.join(held_back)}"[:1_000]
        if self.troubles:
            reason, until = max(self.troubles.values(), key=lambda trouble: trouble[1])
            host.state = HOST_PAUSED
            host.fault.CopyFrom(HostFault(reason=reason, pause=duration(max(0.0, until - time.monotonic())), keeps=True))
        if host != self.offered:
            self.offered = host
            self.pool.reports.host(host)

    def resources(self) -> dict[str, int]:
        """What the pool offers: what its settings say, and what is held back on top, because that must not keep others out."""
        settings = self.pool.settings
        found = {"cores": settings.max_jobs, "memory_mb": settings.max_jobs * MEMORY_OF_A_JOB}
        found["gpus"] = settings.max_jobs * UNITS_OF_A_JOB
        for name in (self.limits.gres or ()) if self.limits is not None else ():
            found[f"gres/{name}"] = settings.max_jobs * UNITS_OF_A_JOB
        found.update(settings.resources)
        due = {alike for alike, refused in self.refused.items() if refused.due}
        held_back = (attempt for attempt in self.waiting.values() if attempt.alike in due)
        for attempt in islice(held_back, MAX_HELD_BACK) if due else ():
            for name, units in attempt.spec.resources.items() if attempt.spec is not None else ():
                if name in found:
                    found[name] += units
        return found

    def waits(self) -> Iterator[str]:
        """Why jobs wait in Slurm, and others before it, where it is not only their turn."""
        for refused in self.refused.values():
            if refused.due and refused.reason:
                yield f"Slurm does not take some of the jobs for now: {refused.reason}"
        reasons = Counter(
            attempt.reason for attempt in self.attempts.values() if attempt.state == "PENDING" and attempt.reason not in _OWN_TURN
        )
        for reason, count in reasons.most_common(_MOST_REASONS):
            yield f"{count:,} {'job waits' if count == 1 else 'jobs wait'} in Slurm, which says {reason}"

    def directory_words(self, error: OSError) -> str:
        """What is wrong, for people, where the pool's directory cannot be used."""
        return f"its directory {self.pool.settings.directory} cannot be used: {error.strerror or error}"

    # -- what becomes of attempts --------------------------------------------------------------------------------------

    def placement(self, attempt: JobAttempt) -> Placement:
        """Where an attempt is by now, for people."""
        found = Placement(host=self.pool.pool)
        submission = attempt.submission
        if submission is not None and submission.folder.manifest.job_id:
            found.job, found.node = submission.task(attempt.index), attempt.node
            found.state, found.reason = attempt.state or "", attempt.reason
        elif attempt.alike in self.refused:
            found.state, found.reason = "not submitted", self.refused[attempt.alike].reason
        elif self.troubles:
            found.state, found.reason = "not submitted", next(iter(self.troubles.values()))[0]
        return found

    def give_back(self, attempt: JobAttempt, reason: str) -> None:
        """Tell the end of an attempt that was not submitted, and is not at fault."""
        stopped = attempt.requested == "stop"
        self.tell(attempt, without_process(KILLED) if stopped else without_process(RETURNED, reason))

    async def release(self, submission: Submission) -> None:
        """Let a submission start. If that fails, `SlurmCalls` finds it held and tries again.

        It is released once. Who holds it after that is a person, and that is respected.
        """
        try:
            await self.pool.client.release(submission.folder.manifest.job_id)
            submission.held = False
            await asyncio.to_thread(submission.folder.released)
        except OSError as error:
            log.debug("the folder of %s: %s", submission.name, error)
        except SlurmError as error:
            log.warning("pool %s: job %s is not released yet: %s", self.pool.pool, submission.folder.manifest.job_id, error)

    def end(self, submission: Submission, attempt: JobAttempt, result: AttemptResult) -> None:
        """Tell the end of an attempt that was submitted. Its files go once that is durable."""
        if submission.attempts.pop(attempt.index, None) is None:
            return
        submission.undurable.add(attempt.index)
        self.in_slurm -= 1
        result.placement.CopyFrom(self.placement(attempt))
        # What has ended may have made room below a limit.
        for refused in self.refused.values():
            refused.due = min(refused.due, refused.tried + self.pool.settings.poll_interval)
        self.submit_wake.set()

        def durable() -> None:
            self.to_forget.append((submission, attempt.index))
            self.watch_wake.set()

        self.tell(attempt, result, durable)

    def tell(self, attempt: JobAttempt, result: AttemptResult, durable: Callable[[], None] = forgotten) -> None:
        """Tell the end of an attempt. A second end of it is passed over."""
        if self.attempts.pop(attempt.ident, None) is None:
            return
        self.pool.reports.updates(self.pool.pool, [AttemptUpdate(key=attempt.key, finished=result)], durable)
