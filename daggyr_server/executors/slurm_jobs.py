"""Slurm in job mode: attempts are tasks of job arrays, submitted when the driver gives them and followed until they are told.

Three asyncio tasks work on what calls have noted. The **submitter** takes waiting attempts of equal needs together and submits
them (`slurm_submission.py` says why none is submitted twice). The **watch** looks into the submissions' folders, where jobs
write when they start and how they end, tells that, takes back what has not started, and removes what is durable; it does not
wait for Slurm. The **talk** asks Slurm about all jobs with one query, at an interval that can be set, and has those ended that
are to stop. An attempt's end is taken from its own result where that says enough, and from Slurm
otherwise (`slurm_outcomes.py`).

The pool is one host: Slurm decides where a job goes, and how many it takes is a matter of `max_jobs` and `resources`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from daggyr.substitution import Filling
from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    HOST_PAUSED,
    KILLED,
    LOST,
    REJECTED,
    RETURNED,
    STDERR,
    STDOUT,
    Assignment,
    AssignmentBatch,
    AttemptKey,
    AttemptOutcome,
    AttemptResult,
    AttemptStarted,
    AttemptUpdate,
    Host,
    HostState,
    OutputChunk,
    OutputStream,
    Placement,
    TaskSpec,
)
from daggyr_server.executors.base import Reports, Surroundings, forgotten
from daggyr_server.executors.slurm_client import (
    ENDED_STATES,
    Job,
    JobStatus,
    Limits,
    Needs,
    SlurmError,
    SlurmRefused,
    SlurmUnavailable,
    needs_of,
)
from daggyr_server.executors.slurm_outcomes import GONE, ended_by, is_settled, judge
from daggyr_server.executors.slurm_output import Written, written
from daggyr_server.executors.slurm_pool import SlurmPool
from daggyr_server.executors.slurm_script import UnfitTask, check_task, job_script
from daggyr_server.executors.slurm_submission import (
    Ident,
    Manifest,
    Reported,
    Submission,
    kept_submissions,
    remove_void,
)

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # between two looks into the folders; less if `poll_interval` is
LONGEST_PAUSE = 60.0  # seconds, of a backoff
MAX_SUBMISSION_BYTES = 4 * 1024 * 1024  # of the tasks of one submission
STRAY_SECONDS = 600.0  # how long Slurm is asked for jobs that may turn up late, though nothing else is awaited
STOP_PATIENCE = 3.0  # seconds beyond the grace period before a stop is asked for again
MEMORY_OF_A_JOB = 1024 * 1024  # MiB; what the pool offers for each of `max_jobs`, unless told: more than any node has
UNITS_OF_A_JOB = 64  # of each generic resource, likewise
ALL_OTHERS = -1  # the index of a status that stands for waiting tasks of its array that are not listed

Ask = Literal["stop", "recall"]
Alike = tuple[Needs, float, int]  # what tasks of one array share: needs, timeout, whole_stdout_bytes


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt that was given and has not been told the end of."""

    ident: Ident
    alike: Alike | None = None  # None: recovered, and submitted by an earlier coordinator if at all
    assignment: Assignment | None = None  # until it is submitted
    spec: TaskSpec | None = None
    flight: Flight | None = None
    index: int = 0
    started: bool = False  # and told
    runs: bool = False  # its script has begun; it cannot be taken back any more
    ask: Ask | None = None
    asked_slurm: int = 0  # how often it was told to end it
    asked_at: float = 0.0  # when, monotonic
    reported: Reported | None = None
    reported_at: float = 0.0
    state: str | None = None  # of its job, as Slurm said last
    over_since: float | None = None  # since when Slurm says that it has ended, monotonic

    @property
    def key(self) -> AttemptKey:
        return AttemptKey(run_id=self.ident[0], task_number=self.ident[1], attempt=self.ident[2])


@dataclass(slots=True, eq=False)
class Flight:
    """A submission that is being made or is on its way."""

    submission: Submission
    attempts: dict[int, Attempt] = field(default_factory=dict)  # by index; not told yet
    undurable: set[int] = field(default_factory=set)  # told
    made: float | None = None  # when it was submitted, monotonic; None: it is just being submitted

    def task(self, index: int) -> str:
        """What Slurm calls a task of it."""
        job_id = self.submission.manifest.job_id
        return f"{job_id}_{index}" if len(self.submission.manifest.keys) > 1 else job_id


class JobExecutor(SlurmPool):
    """One pool of Slurm jobs."""

    def __init__(self, pool: str, settings: Any, reports: Reports, surroundings: Surroundings) -> None:
        super().__init__(pool, settings, reports, surroundings)
        self._attempts: dict[Ident, Attempt] = {}
        self._waiting: dict[Ident, Attempt] = {}  # not submitted; in order
        self._flights: dict[str, Flight] = {}  # by the submission's name
        self._finished: dict[str, float] = {}  # names of flights that are done with, and when, monotonic
        self._placed: list[Attempt] | None = None  # by an earlier coordinator, not looked for yet
        self._to_cancel: list[str] = []
        self._to_forget: list[tuple[Flight, int]] = []
        self._limits: Limits | None = None
        self._in_slurm = 0  # attempts that are submitted and not told
        self._offered: HostState | None = None
        self._next_query = 0.0
        self._watch_strays_until = 0.0
        self._failures = 0
        self._submit_wake = asyncio.Event()
        self._watch_wake = asyncio.Event()
        self._talk_wake = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # -- the executor interface ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        await super().open()
        self._tasks = [
            asyncio.create_task(self._submit_all(), name=f"submitter of {self.pool}"),
            asyncio.create_task(self._watch(), name=f"watch of {self.pool}"),
            asyncio.create_task(self._talk(), name=f"talk of {self.pool}"),
        ]

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._clean()

    def start(self, host: str, batch: AssignmentBatch) -> None:
        fillings = [Filling(template) for template in batch.templates]
        rejected = []
        for assignment in batch.assignments:
            key = assignment.key
            ident = (key.run_id, key.task_number, key.attempt)
            if ident in self._attempts:
                continue
            try:
                spec = fillings[assignment.template].spec(assignment.values)
                check_task(spec)
                timeout = spec.timeout.seconds + spec.timeout.nanos / 1e9
                alike = (needs_of(spec.resources, timeout, self.settings), timeout, spec.whole_stdout_bytes)
            except (UnfitTask, ValueError) as error:
                rejected.append(AttemptUpdate(key=key, finished=_result(REJECTED, str(error))))
                continue
            self._attempts[ident] = self._waiting[ident] = Attempt(ident, alike, assignment, spec)
        if rejected:
            asyncio.get_running_loop().call_soon(self.reports.updates, self.pool, rejected, forgotten)
        self._submit_wake.set()

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        self._ask(keys, "stop")

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None:
        self._ask(keys, "recall")

    def _ask(self, keys: Sequence[AttemptKey], ask: Ask) -> None:
        for key in keys:
            attempt = self._attempts.get((key.run_id, key.task_number, key.attempt))
            if attempt is not None and attempt.ask != "stop":
                attempt.ask = ask
                self._watch_wake.set()

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        self._placed = []
        for key, _ in placed:
            attempt = Attempt((key.run_id, key.task_number, key.attempt))
            self._attempts[attempt.ident] = attempt
            self._placed.append(attempt)
        self._watch_wake.set()

    async def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        ident = (key.run_id, key.task_number, key.attempt)
        name: OutputStream = STDOUT if stream == STDOUT else STDERR
        while True:
            attempt = self._attempts.get(ident)
            if attempt is None:
                return
            if attempt.flight is not None and attempt.flight.made is not None:
                try:
                    for found, data in await asyncio.to_thread(self._read, attempt.flight, attempt.index, name, offset):
                        yield OutputChunk(stream=name, offset=found, data=data)
                        offset = found + len(data)
                except OSError:
                    return
            await asyncio.sleep(self._look_seconds)

    def _read(self, flight: Flight, index: int, stream: OutputStream, offset: int) -> list[tuple[int, bytes]]:
        """What can be read of a stream from `offset` on; of a long one, some pieces of it."""
        pieces: list[tuple[int, bytes]] = []
        for piece in self._written(flight, index, stream).chunks(offset):
            pieces.append(piece)
            if len(pieces) == 4:
                break
        return pieces

    def _written(self, flight: Flight, index: int, stream: OutputStream) -> Written:
        manifest = flight.submission.manifest
        if stream == STDOUT:
            return written(flight.submission.output(index, "out"), manifest.whole_stdout_bytes)
        return written(flight.submission.output(index, "err"))

    # -- the submitter ------------------------------------------------------------------------------------------------

    async def _submit_all(self) -> None:
        self._limits = await self._patiently(self.client.limits)
        self._offer(HOST_AVAILABLE)
        pause = 0.0
        while True:
            while not self._waiting:
                self._submit_wake.clear()
                await self._submit_wake.wait()
            room = self.settings.max_jobs - self._in_slurm
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            group = self._group(min(room, self._limits.max_array))
            try:
                await self._submit(group)
                pause = 0.0
            except (SlurmUnavailable, OSError) as error:
                pause = min(LONGEST_PAUSE, max(self.settings.poll_interval, 2 * pause))
                log.warning("pool %s: nothing can be submitted, it is tried again in %g s: %s", self.pool, pause, error)
                self._offer(HOST_PAUSED)
                await asyncio.sleep(pause)

    async def _patiently(self, call: Callable[[], Any]) -> Any:
        """What `call` returns, as soon as Slurm answers at all."""
        pause = self.settings.poll_interval
        while True:
            try:
                return await call()
            except SlurmError as error:
                log.warning("pool %s waits for Slurm: %s", self.pool, error)
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)

    def _group(self, most: int) -> list[Attempt]:
        """The first that waits, and others of equal needs."""
        first = next(iter(self._waiting.values()))
        group: list[Attempt] = []
        size = 0
        for attempt in self._waiting.values():
            if attempt.alike == first.alike and attempt.spec is not None:
                size += attempt.spec.ByteSize()
                if group and (len(group) >= most or size > MAX_SUBMISSION_BYTES):
                    break
                group.append(attempt)
        return group

    async def _submit(self, group: list[Attempt]) -> None:
        """Submit these, or raise SlurmUnavailable or OSError with all of them waiting again, and none of them ever to start."""
        alike = group[0].alike
        assert alike is not None
        needs, timeout, whole_stdout_bytes = alike
        name = self.prefix + secrets.token_hex(6)
        manifest = Manifest(name, [attempt.ident for attempt in group], timeout, whole_stdout_bytes)
        submission = Submission(self.tracker_folder / name, manifest)
        flight = self._flights[name] = Flight(submission, dict(enumerate(group)))
        for index, attempt in flight.attempts.items():
            attempt.flight, attempt.index = flight, index
            del self._waiting[attempt.ident]
        self._in_slurm += len(group)
        home = self.settings.directory
        job = Job(
            name=name,
            script=job_script(
                submission.folder, grace=self.surroundings.grace, timeout=timeout, whole_stdout_bytes=whole_stdout_bytes
            ),
            size=len(group),
            needs=needs,
            directory=home,
            output=submission.folder / ("%a.slurm" if len(group) > 1 else "0.slurm"),
            environment=self.job_environment,
        )
        tasks = [(index, each.assignment, each.spec) for index, each in flight.attempts.items() if each.assignment and each.spec]
        try:
            await asyncio.to_thread(submission.write, home, tasks)
            job_id = await self.client.submit(job)
        except (SlurmError, OSError) as error:
            await self._not_submitted(flight, error)
            if isinstance(error, SlurmUnavailable | OSError):
                raise
            return
        try:
            await asyncio.to_thread(submission.submitted, job_id)
        except OSError as error:
            # Held, with an id that is known to nobody after a restart: it is taken back.
            await self._not_submitted(flight, error)
            raise
        for attempt in group:
            attempt.assignment = attempt.spec = None
        await self._release(flight)
        flight.made = time.monotonic()
        self._watch_wake.set()
        self._talk_wake.set()

    async def _not_submitted(self, flight: Flight, error: Exception) -> None:
        """A submission has failed: whatever Slurm has of it never starts."""
        del self._flights[flight.submission.name]
        self._in_slurm -= len(flight.attempts)
        self._watch_strays_until = time.monotonic() + STRAY_SECONDS
        try:
            await asyncio.to_thread(flight.submission.void)
        except OSError as fault:
            log.debug("the folder of %s: %s", flight.submission.name, fault)
        if isinstance(error, SlurmUnavailable | OSError):
            again = {attempt.ident: attempt for attempt in flight.attempts.values()}
            for attempt in again.values():
                attempt.flight = None
            self._waiting = {**again, **self._waiting}
            return
        outcome = REJECTED if isinstance(error, SlurmRefused) else LOST
        for attempt in flight.attempts.values():
            self._tell(attempt, _result(outcome, f"Slurm did not take its job: {error}"))

    async def _release(self, flight: Flight) -> None:
        """Let a submission start; if that fails, the watch finds it held, and tries again."""
        try:
            await self.client.release(flight.submission.manifest.job_id)
        except SlurmError as error:
            log.warning("pool %s: job %s is not released yet: %s", self.pool, flight.submission.manifest.job_id, error)

    # -- the watch ----------------------------------------------------------------------------------------------------

    @property
    def _look_seconds(self) -> float:
        return min(LOOK_SECONDS, float(self.settings.poll_interval))

    async def _watch(self) -> None:
        while True:
            try:
                if self._placed is not None:
                    await self._adopt()
                await self._heed()
                await self._look()
                await self._clean()
            except OSError as error:
                log.error("pool %s: its directory cannot be used for now: %s", self.pool, error)
            await self._rest(self._watch_wake)

    async def _rest(self, wake: asyncio.Event) -> None:
        """Return when it is time to look again, at once if `wake` is set."""
        busy = self._flights or self._attempts or time.monotonic() < self._watch_strays_until
        try:
            async with asyncio.timeout(self._look_seconds if busy else None):
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()

    async def _adopt(self) -> None:
        """Find what an earlier coordinator had submitted."""
        placed = {attempt.ident: attempt for attempt in self._placed or ()}
        kept = await asyncio.to_thread(lambda: list(kept_submissions(self.tracker_folder, self.prefix)))
        self._placed = None
        self._watch_strays_until = time.monotonic() + STRAY_SECONDS
        for submission in kept:
            flight = Flight(submission, made=time.monotonic())
            for index, ident in enumerate(submission.manifest.keys):
                attempt = placed.pop(tuple(ident), None)  # type: ignore[arg-type]
                if attempt is not None:
                    attempt.flight, attempt.index = flight, index
                    flight.attempts[index] = attempt
            if flight.attempts:
                self._flights[submission.name] = flight
                self._in_slurm += len(flight.attempts)
            else:
                await asyncio.to_thread(submission.remove)
        for attempt in placed.values():
            self._tell(attempt, _result(LOST, "it was not submitted to Slurm before the coordinator ended"))
        self._next_query = 0.0
        self._talk_wake.set()

    async def _heed(self) -> None:
        """Take back what was asked for and has not started; what is to stop and has is the talk's."""
        for attempt in [each for each in self._attempts.values() if each.ask is not None]:
            outcome = KILLED if attempt.ask == "stop" else RETURNED
            flight = attempt.flight
            if attempt.ident in self._waiting:
                del self._waiting[attempt.ident]
                self._tell(attempt, _result(outcome))
                continue
            if flight is None or flight.made is None:
                continue  # being submitted, or looked for
            if not attempt.runs:
                attempt.runs = not await asyncio.to_thread(flight.submission.claim, attempt.index)
                if not attempt.runs:
                    if flight.submission.manifest.job_id:
                        self._to_cancel.append(flight.task(attempt.index))
                        self._talk_wake.set()
                    self._end(flight, attempt, _result(outcome))
                    continue
            if attempt.ask == "recall":
                attempt.ask = None
            else:
                self._talk_wake.set()

    # -- asking Slurm -------------------------------------------------------------------------------------------------

    async def _talk(self) -> None:
        while True:
            try:
                await self._end_jobs()
                if time.monotonic() >= self._next_query and (self._flights or time.monotonic() < self._watch_strays_until):
                    await self._query()
            except OSError as error:
                log.error("pool %s: its directory cannot be used for now: %s", self.pool, error)
            await self._rest(self._talk_wake)

    async def _end_jobs(self) -> None:
        """Have those ended that are to stop, and those that were taken back."""
        cancel, self._to_cancel = self._to_cancel, []
        now = time.monotonic()
        terminate = [
            each
            for each in self._attempts.values()
            if each.ask == "stop" and each.runs and each.reported is None and now >= each.asked_at and each.flight
        ]
        terminate = [each for each in terminate if each.flight and each.flight.submission.manifest.job_id]
        if not (terminate or cancel):
            return
        for each in terminate:
            if each.flight and not each.asked_slurm:
                await asyncio.to_thread(each.flight.submission.ask_to_stop, each.index)
        # A signal may have come before the script could take it; and what does not end by it is ended by Slurm.
        first = [each for each in terminate if each.asked_slurm < 2]
        cancel += [each.flight.task(each.index) for each in terminate if each.asked_slurm >= 2 and each.flight]
        pause = self._look_seconds
        try:
            if first:
                await self.client.terminate([each.flight.task(each.index) for each in first if each.flight])
            if cancel:
                await self.client.cancel(cancel)
            pause = self.surroundings.grace + STOP_PATIENCE
            for attempt in terminate:
                attempt.asked_slurm += 1
        except SlurmError as error:
            log.warning("pool %s: jobs cannot be ended for now: %s", self.pool, error)
            pause = self.settings.poll_interval
        for attempt in terminate:
            attempt.asked_at = time.monotonic() + pause

    async def _look(self) -> None:
        """See what jobs have told in their folders."""
        flights = [flight for flight in self._flights.values() if flight.made is not None and flight.attempts]
        for flight, (starts, begun, results) in zip(flights, await asyncio.to_thread(_look_into, flights), strict=True):
            for index, attempt in list(flight.attempts.items()):
                attempt.runs = attempt.runs or index in begun
                if index in results:
                    attempt.reported, attempt.reported_at = results[index], time.monotonic()
                if attempt.reported is None and index in starts and not attempt.started:
                    attempt.started = True
                    started = AttemptStarted()
                    started.start_time.FromNanoseconds(starts[index])
                    self.reports.updates(self.pool, [AttemptUpdate(key=attempt.key, started=started)], forgotten)
                await self._settle(flight, attempt)

    async def _settle(self, flight: Flight, attempt: Attempt) -> None:
        """Tell an attempt's end if it is known."""
        asked = attempt.ask == "stop"
        now = time.monotonic()
        over = attempt.state == GONE or attempt.state in ENDED_STATES
        if attempt.reported is not None:
            if is_settled(attempt.reported, asked=asked) or over or now > attempt.reported_at + self.settings.settle_seconds:
                await self._finish(flight, attempt)
        elif attempt.over_since is not None and over:
            # Slurm may say so before the script and what it ends have come to their end, and files take their time.
            if attempt.runs and now < attempt.over_since + self.settings.settle_seconds:
                return
            if not attempt.runs and not await asyncio.to_thread(flight.submission.claim, attempt.index):
                attempt.runs = True
                return
            await self._finish(flight, attempt)

    async def _finish(self, flight: Flight, attempt: Attempt) -> None:
        reported, index = attempt.reported, attempt.index
        printed = await asyncio.to_thread(flight.submission.printed, index) if reported is None else ""
        outcome, notes = judge(
            reported,
            attempt.state,
            asked=attempt.ask == "stop",
            timeout=flight.submission.manifest.timeout,
            printed=printed,
        )
        result = _result(outcome, *notes)
        if outcome == REJECTED:
            self._end(flight, attempt, result)
            return
        if reported is not None:
            number = ended_by(reported)
            if number is None:
                result.exit_code = reported.status
            else:
                result.signal = number
            if reported.start is not None:
                result.start_time.FromNanoseconds(reported.start)
            if reported.stop is not None:
                result.stop_time.FromNanoseconds(reported.stop)
            if reported.cpu_seconds is not None:
                result.cpu_seconds = reported.cpu_seconds
        for stream, summary in ((STDOUT, result.stdout), (STDERR, result.stderr)):
            output = await asyncio.to_thread(self._written, flight, index, stream)
            summary.CopyFrom(output.summary)
            chunks = output.chunks()
            try:
                while (piece := await asyncio.to_thread(next, chunks, None)) is not None:
                    chunk = OutputChunk(stream=stream, offset=piece[0], data=piece[1])
                    self.reports.updates(self.pool, [AttemptUpdate(key=attempt.key, output=chunk)], forgotten)
            except OSError as error:
                result.notes.append(f"its output cannot be read: {error.strerror}")
        self._end(flight, attempt, result)

    async def _query(self) -> None:
        asked_at = time.monotonic()
        try:
            statuses = await self.client.jobs(self.prefix)
        except SlurmError as error:
            pause = min(LONGEST_PAUSE, self.settings.poll_interval * 2**self._failures)
            self._failures += self._failures < 16
            self._next_query = time.monotonic() + pause
            if self._failures == 1:
                log.warning("pool %s: Slurm does not answer, its jobs go on meanwhile: %s", self.pool, error)
            self._offer(HOST_PAUSED)
            return
        self._failures = 0
        self._next_query = time.monotonic() + self.settings.poll_interval
        if self._limits is not None:
            self._offer(HOST_AVAILABLE)
        found = {(status.name, status.index): status for status in statuses}
        states = {flight.submission.name: flight for flight in self._flights.values()}
        for name, flight in states.items():
            if flight.made is None or flight.made >= asked_at:
                continue  # it was submitted while Slurm was being asked
            own = [status for status in statuses if status.name == name]
            if not flight.submission.manifest.job_id and not await self._find(flight, own):
                continue
            if any(status.held and status.state == "PENDING" for status in own):
                await self._release(flight)
            for index, attempt in flight.attempts.items():
                status = found.get((name, index)) or found.get((name, ALL_OTHERS))
                attempt.state = status.state if status is not None else GONE
                over = attempt.state == GONE or attempt.state in ENDED_STATES
                attempt.over_since = (attempt.over_since or asked_at) if over else None
        self._watch_wake.set()
        await self._cancel_strays(statuses)

    async def _find(self, flight: Flight, own: list[JobStatus]) -> bool:
        """An earlier coordinator did not come to note the id of this submission's job. Returns whether there is one now."""
        submission = flight.submission
        if own:
            await asyncio.to_thread(submission.submitted, own[0].job_id)
            return True
        if await asyncio.to_thread(submission.void):
            del self._flights[submission.name]
            self._in_slurm -= len(flight.attempts)
            for attempt in flight.attempts.values():
                self._tell(attempt, _result(LOST, "its job was not in Slurm when the coordinator came back"))
        else:
            for attempt in flight.attempts.values():
                attempt.state, attempt.over_since = GONE, attempt.over_since or time.monotonic()
        return False

    async def _cancel_strays(self, statuses: Iterable[JobStatus]) -> None:
        """End jobs of ours that nobody waits for: submitted late, of attempts that were taken back, or of no run any more."""
        strays: Counter[str] = Counter()
        for status in statuses:
            flight = self._flights.get(status.name)
            if status.state in ENDED_STATES or status.state == "COMPLETING":
                continue
            if flight is not None:
                wanted = flight.made is None or status.index in flight.attempts or status.index == ALL_OTHERS
                wanted = wanted or status.state != "PENDING"
                task = flight.task(status.index)
            else:
                wanted = status.name in self._finished and status.state != "PENDING"
                task = status.job_id
            if not wanted:
                strays[task] += 1
        if strays:
            log.info("pool %s: jobs that nobody waits for are cancelled: %s", self.pool, ", ".join(list(strays)[:20]))
            try:
                await self.client.cancel(list(strays))
            except SlurmError as error:
                log.warning("pool %s: they are not cancelled yet: %s", self.pool, error)

    # -- telling ------------------------------------------------------------------------------------------------------

    def _end(self, flight: Flight, attempt: Attempt, result: AttemptResult) -> None:
        """Tell the end of an attempt that was submitted; its files go once that is durable."""
        if flight.attempts.pop(attempt.index, None) is None:
            return
        flight.undurable.add(attempt.index)
        self._in_slurm -= 1
        self._room.set()

        def durable() -> None:
            self._to_forget.append((flight, attempt.index))
            self._watch_wake.set()

        self._tell(attempt, result, durable)

    def _tell(self, attempt: Attempt, result: AttemptResult, durable: Callable[[], None] = forgotten) -> None:
        if self._attempts.pop(attempt.ident, None) is None:
            return
        self.reports.updates(self.pool, [AttemptUpdate(key=attempt.key, finished=result)], durable)

    async def _clean(self) -> None:
        """Remove the files of what is durable."""
        forget, self._to_forget = self._to_forget, []
        done = []
        for flight, index in forget:
            flight.undurable.discard(index)
            if not flight.undurable and not flight.attempts and self._flights.pop(flight.submission.name, None) is not None:
                done.append(flight)
                self._finished[flight.submission.name] = time.monotonic()
        await asyncio.to_thread(_remove, forget, done)
        if self._watch_strays_until > time.monotonic():
            await asyncio.to_thread(remove_void, self.tracker_folder, self.prefix)
        long_ago = time.monotonic() - STRAY_SECONDS
        while self._finished and next(iter(self._finished.values())) < long_ago:
            del self._finished[next(iter(self._finished))]

    def _offer(self, state: HostState) -> None:
        if state == self._offered:
            return
        self._offered = state
        settings = self.settings
        resources = {"cores": settings.max_jobs, "memory_mb": settings.max_jobs * MEMORY_OF_A_JOB}
        for name in self._limits.gres if self._limits is not None else ():
            resources[f"gres/{name}"] = settings.max_jobs * UNITS_OF_A_JOB
        resources.update(settings.resources)
        name = f"Slurm, partition {settings.partition}" if settings.partition else "Slurm"
        self.reports.host(Host(host=self.pool, name=name, state=state, resources=resources))


def _look_into(flights: Sequence[Flight]) -> list[tuple[dict[int, int], set[int], dict[int, Reported]]]:
    """What is new in each: starts, indexes whose script has begun, and results."""
    found = []
    for flight in flights:
        try:
            seen = flight.submission.look()
            new = [index for index in seen.results if index in flight.attempts and flight.attempts[index].reported is None]
            found.append((seen.starts, seen.claimed, {index: flight.submission.result(index) for index in new}))
        except FileNotFoundError:  # somebody has removed the folder: nothing of it starts any more, or is told
            found.append(({}, set(flight.attempts), {}))
    return found


def _remove(forget: Sequence[tuple[Flight, int]], done: Sequence[Flight]) -> None:
    for flight in done:
        flight.submission.remove()
    for flight, index in forget:
        if flight not in done:
            flight.submission.forget_output(index)


def _result(outcome: AttemptOutcome, *notes: str) -> AttemptResult:
    result = AttemptResult(outcome=outcome, notes=notes)
    result.stop_time.FromNanoseconds(time.time_ns())
    return result
