"""Looks into the folders of submissions, where jobs write when they start and how they end, and tells the driver of both.

The executor of job mode runs one `Watch`. It also finds what an earlier coordinator had submitted, takes attempts back that have
not started, and removes the files of attempts whose ends are durable. It never waits for Slurm: `calls.py` writes what Slurm says
into the attempts' `state`.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Sequence

from daggyr.attempts.outcome import Cause, Seen, result_of, without_process
from daggyr.attempts.times import timestamp
from daggyr.backoff import Backoff
from daggyr.v1.task_pb2 import (
    KILLED,
    LOST,
    REJECTED,
    RETURNED,
    STDERR,
    STDOUT,
    AttemptStarted,
    AttemptUpdate,
    OutputChunk,
)
from daggyr_server.executors.base import forgotten
from daggyr_server.executors.slurm.client import ENDED_STATES
from daggyr_server.executors.slurm.jobs.known_jobs import LONGEST_PAUSE, STRAY_SECONDS, JobAttempt, KnownJobs, Submission
from daggyr_server.executors.slurm.jobs.outcomes import FULL, GONE, is_settled, seen_of
from daggyr_server.executors.slurm.jobs.output import written_by
from daggyr_server.executors.slurm.jobs.submission_folder import JobReport, kept_submissions, probe, remove_void

# The finders of what `KnownJobs.trouble` is told from here.
WATCH = "watch"
ROOM = "room"


class Watch:
    """One of the executor's three tasks; `run` is called once."""

    def __init__(self, known: KnownJobs) -> None:
        self.known = known
        self.pool = known.pool
        self._backoff = Backoff(self.pool.settings.poll_interval, LONGEST_PAUSE)
        self._room_at = 0.0  # when the directory is tried again, monotonic

    async def run(self) -> None:
        while True:
            try:
                if self.known.placed is not None:
                    await self._adopt()
                await self._heed()
                await self._look()
                await self.clean()
                self.known.fine(WATCH)
            except OSError as error:
                self.known.trouble(WATCH, self.known.directory_words(error), self.known.look_seconds)
            if ROOM in self.known.troubles and time.monotonic() >= self._room_at:
                await self._try_room()
            await self.known.rest(self.known.watch_wake)

    def _no_room(self, error: OSError | None = None) -> None:
        """The directory takes no files, as a job has found, or this host: nothing more is submitted until it does."""
        pause = self._backoff.next()
        self._room_at = time.monotonic() + pause
        reason = f"no room is left in its directory {self.pool.settings.directory}"
        if error is not None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            reason = self.known.directory_words(error)
        self.known.trouble(ROOM, reason, pause)

    async def _try_room(self) -> bool:
        """Find out whether the directory takes files. The pool pauses if it does not."""
        try:
            await asyncio.to_thread(probe, self.pool.tracker_folder)
        except OSError as error:
            self._no_room(error)
            return False
        self._backoff.reset()
        self.known.fine(ROOM)
        return True

    async def _lacks_room(self) -> bool:
        """Whether the directory takes no files, for an attempt that left no result. Many of those at once are one try."""
        now = time.monotonic()
        if ROOM not in self.known.troubles and now >= self._room_at:
            self._room_at = now + self.known.look_seconds
            return not await self._try_room()
        return ROOM in self.known.troubles

    async def _adopt(self) -> None:
        """Find the submissions of an earlier coordinator that hold attempts which were placed."""
        placed = {attempt.ident: attempt for attempt in self.known.placed or ()}
        kept = await asyncio.to_thread(lambda: list(kept_submissions(self.pool.tracker_folder, self.pool.prefix)))
        self.known.strays_until = time.monotonic() + STRAY_SECONDS
        for folder in kept:
            submission = Submission(folder, made=time.monotonic(), held=not folder.manifest.released)
            for index, ident in enumerate(folder.manifest.idents()):
                attempt = placed.pop(ident, None)
                if attempt is not None:
                    attempt.submission, attempt.index = submission, index
                    submission.attempts[index] = attempt
            if submission.attempts:
                await self._disown_others(submission)
                self.known.submissions[folder.name] = submission
                self.known.in_slurm += len(submission.attempts)
            else:
                await asyncio.to_thread(folder.remove)
        for attempt in placed.values():
            self.known.tell(attempt, without_process(LOST, "it was not submitted to Slurm before the coordinator ended"))
        self.known.placed = None  # from now on, nobody waits for a job that belongs to no submission
        self.known.calls_wake.set()

    async def _disown_others(self, submission: Submission) -> None:
        """Have those tasks of an array ended that are not this tracker's.

        A copy of the tracker knows some attempts of a submission, and not those that were assigned after it was taken.
        """
        others = {*range(len(submission.folder.manifest.keys))} - submission.attempts.keys()
        if others:
            submission.nobodys = others - (await asyncio.to_thread(submission.folder.look)).results
            await asyncio.to_thread(lambda: [submission.folder.claim(index) for index in submission.nobodys])

    async def _heed(self) -> None:
        """Take back attempts that are to stop, or were recalled, and have not started. `SlurmCalls` ends those that have."""
        taken_back = False
        for attempt in [each for each in self.known.attempts.values() if each.requested is not None]:
            outcome = KILLED if attempt.requested == "stop" else RETURNED
            submission = attempt.submission
            if attempt.ident in self.known.waiting:
                del self.known.waiting[attempt.ident]
                self.known.tell(attempt, without_process(outcome))
                taken_back = True
                continue
            if submission is None or submission.made is None:
                continue  # it is being submitted, or looked for
            if not attempt.runs:
                attempt.runs = not await asyncio.to_thread(submission.folder.claim, attempt.index)
                if not attempt.runs:
                    if submission.folder.manifest.job_id:
                        self.known.to_cancel.append(submission.task(attempt.index))
                        self.known.calls_wake.set()
                    self.known.end(submission, attempt, without_process(outcome))
                    continue
            if attempt.requested == "recall":
                attempt.requested = None
            else:
                self.known.calls_wake.set()
        if taken_back and self.known.refused.by_kind:
            self.known.offer()  # There is room for others of its kind.

    async def _look(self) -> None:
        """See what jobs have written into their folders, and tell it."""
        made = [each for each in self.known.submissions.values() if each.made is not None and each.attempts]
        for submission, (starts, begun, results, full) in zip(made, await asyncio.to_thread(_look_into, made), strict=True):
            for index, attempt in list(submission.attempts.items()):
                if index in full:
                    self._no_room()
                    asked = attempt.requested == "stop"
                    self.known.end(submission, attempt, result_of(Seen(cause=Cause.KILL if asked else None, host_fault=FULL)))
                    continue
                attempt.runs = attempt.runs or index in begun
                if index in results:
                    attempt.reported, attempt.reported_at = results[index], time.monotonic()
                    attempt.node = attempt.node or results[index].node  # a short job is over before Slurm is asked
                if attempt.reported is None and index in starts and not attempt.started:
                    attempt.started = True
                    started = AttemptStarted(start_time=timestamp(starts[index]))
                    self.pool.reports.updates(self.pool.pool, [AttemptUpdate(key=attempt.key, started=started)], forgotten)
                await self._settle(submission, attempt)

    async def _settle(self, submission: Submission, attempt: JobAttempt) -> None:
        """Tell an attempt's end if it is known."""
        asked = attempt.requested == "stop"
        now = time.monotonic()
        over = attempt.state == GONE or attempt.state in ENDED_STATES
        if attempt.reported is not None:
            if is_settled(attempt.reported, asked=asked) or over or now > attempt.reported_at + self.pool.settings.settle_seconds:
                await self._finish(submission, attempt)
        elif attempt.over_since is not None and over:
            # Slurm may say that a job has ended while its script still ends processes, or while its files are on their way.
            if attempt.runs and now < attempt.over_since + self.pool.settings.settle_seconds:
                return
            if not attempt.runs and not await asyncio.to_thread(submission.folder.claim, attempt.index):
                attempt.runs = True
                return
            await self._finish(submission, attempt)

    async def _finish(self, submission: Submission, attempt: JobAttempt) -> None:
        reported, index = attempt.reported, attempt.index
        printed = unwritten = None
        if reported is None:
            printed = await asyncio.to_thread(submission.folder.printed, index)
            lost = await asyncio.to_thread(submission.folder.result_was_lost, index) or await self._lacks_room()
            unwritten = FULL if lost else None
        if (unwritten is not None or (reported is not None and reported.full)) and ROOM not in self.known.troubles:
            self._no_room()
        manifest = submission.folder.manifest
        seen = seen_of(
            reported,
            attempt.state,
            asked=attempt.requested == "stop",
            timeout=manifest.timeout,
            printed=printed or "",
            unwritten=unwritten,
            whole=manifest.whole_stdout_bytes > 0,
        )
        if reported is None:
            result = result_of(seen)
        else:
            result = result_of(seen, start_ns=reported.start, stop_ns=reported.stop, cpu_seconds=reported.cpu_seconds)
        if result.outcome == REJECTED:
            self.known.end(submission, attempt, result)
            return
        for stream, summary in ((STDOUT, result.stdout), (STDERR, result.stderr)):
            output = await asyncio.to_thread(written_by, submission.folder, index, stream)
            chunks = output.chunks()
            try:
                while (piece := await asyncio.to_thread(next, chunks, None)) is not None:
                    chunk = OutputChunk(stream=stream, offset=piece[0], data=piece[1])
                    self.pool.reports.updates(self.pool.pool, [AttemptUpdate(key=attempt.key, output=chunk)], forgotten)
            except OSError as error:
                result.notes.append(f"its output cannot be read: {error.strerror}")
            summary.CopyFrom(output.summary())
            if reported is not None and reported.full:
                summary.incomplete = True
        if reported is not None and reported.full:
            result.notes.append(f"{FULL} when it ended: output may be missing")
        self.known.end(submission, attempt, result)

    async def clean(self) -> None:
        """Remove the files of attempts whose ends are durable."""
        forget, self.known.to_forget = self.known.to_forget, []
        done = []
        for submission, index in forget:
            submission.undurable.discard(index)
            if (
                not submission.undurable
                and not submission.attempts
                and self.known.submissions.pop(submission.name, None) is not None
            ):
                done.append(submission)
                if not submission.nobodys:  # otherwise a job of it that still runs is to be ended
                    self.known.finished[submission.name] = time.monotonic()
        await asyncio.to_thread(_remove, forget, done)
        if self.known.strays_until > time.monotonic():
            await asyncio.to_thread(remove_void, self.pool.tracker_folder, self.pool.prefix)
        long_ago = time.monotonic() - STRAY_SECONDS
        while self.known.finished and next(iter(self.known.finished.values())) < long_ago:
            del self.known.finished[next(iter(self.known.finished))]


def _look_into(submissions: Sequence[Submission]) -> list[tuple[dict[int, int], set[int], dict[int, JobReport], set[int]]]:
    """Return what is new in each: starts, indexes whose script has begun, results, and indexes that found no room."""
    found = []
    for submission in submissions:
        try:
            attempts = dict(submission.attempts)  # a copy, because this is a thread, and attempts may end meanwhile
            seen = submission.folder.look({index for index, attempt in attempts.items() if not attempt.started})
            new = [index for index in seen.results if index in attempts and attempts[index].reported is None]
            results = {index: submission.folder.result(index) for index in new}
            whole = {index: result for index, result in results.items() if result is not None}
            found.append((seen.starts, seen.claimed, whole, seen.full))
        except FileNotFoundError:  # somebody has removed the folder, so that nothing of it starts any more, and nothing is told
            found.append(({}, set(submission.attempts), {}, set()))
    return found


def _remove(forget: Sequence[tuple[Submission, int]], done: Sequence[Submission]) -> None:
    for submission in done:
        submission.folder.remove()
    for submission, index in forget:
        if submission not in done:
            submission.folder.forget_output(index)
