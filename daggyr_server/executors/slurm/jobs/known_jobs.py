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
from daggyr_server.executors.slurm.client import SlurmError, SlurmLimits
from daggyr_server.executors.slurm.jobs.held_back import MAX_HELD_BACK, Alike, JobKind, RefusedKinds
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

_OWN_TURN = frozenset(("", "None", "Resources", "Priority", "Cleaning", "BeginTime"))  # reasons that pass by themselves
_MOST_REASONS = 5  # that are told

Request = Literal["stop", "recall"]


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
        self.refused = RefusedKinds()
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
        host.limits.extend(self.refused.limits(self.kinds_held_back()))
        held_back = sorted({refused.reason for refused in self.refused.by_kind.values() if refused.due})
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
        for attempt in islice(self._held_back(), MAX_HELD_BACK):
            for name, units in attempt.spec.resources.items() if attempt.spec is not None else ():
                if name in found:
                    found[name] += units
        return found

    def _held_back(self) -> Iterator[JobAttempt]:
        """Attempts that wait here and are of kinds of which Slurm takes few or none."""
        refused = self.refused.by_kind
        if refused:
            yield from (attempt for attempt in self.waiting.values() if attempt.alike and attempt.alike.kind in refused)

    def kinds_held_back(self) -> Iterator[JobKind]:
        """The kind of each of these attempts."""
        return (attempt.alike.kind for attempt in self._held_back() if attempt.alike)

    def given(self, attempt: JobAttempt) -> None:
        """Take in an attempt that is to be submitted."""
        self.attempts[attempt.ident] = self.waiting[attempt.ident] = attempt
        if attempt.alike is not None and attempt.alike.kind in self.refused.by_kind:
            # The core has counted it against the kind's limit, and so has to hear the next limit even if that is equal.
            self.offered = None

    def shrink(self, reason: str) -> None:
        """Give back what there is of each refused kind beyond its part, what came last first: others may use its place.

        The limits have to be told before, so that it does not come again at once.
        """
        surplus = self.refused.surplus(self.kinds_held_back())
        for attempt in list(reversed(self.waiting.values())) if surplus else ():
            if attempt.alike is not None and surplus[attempt.alike.kind] > 0:
                surplus[attempt.alike.kind] -= 1
                del self.waiting[attempt.ident]
                self.give_back(attempt, f"it was not submitted to Slurm, which takes no more of its kind for now: {reason}")

    def waits(self) -> Iterator[str]:
        """Why jobs wait in Slurm, and others before it, where it is not only their turn."""
        for reason in islice(self.refused.reasons(self.kinds_held_back()), _MOST_REASONS):
            yield f"Slurm does not take some of the jobs for now: {reason}"
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
        elif attempt.alike is not None and attempt.alike.kind in self.refused.by_kind:
            found.state, found.reason = "not submitted", self.refused.by_kind[attempt.alike.kind].reason
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
        self.refused.hurry(self.pool.settings.poll_interval)
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
