"""Looks into the folders of submissions, where jobs write when they start and how they end, and tells that.

The executor of job mode runs one `Watch`. It also finds what an earlier coordinator had submitted, takes back what has not
started when that is asked for, and removes the files of what is durable. It never waits for Slurm: what Slurm says,
`calls.py` notes in the attempts' `state`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from daggyr.attempts.outcome import result_of, without_process
from daggyr.attempts.times import timestamp
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
from daggyr_server.executors.slurm.jobs.in_flight import STRAY_SECONDS, Attempt, Flight, Flights
from daggyr_server.executors.slurm.jobs.outcomes import GONE, is_settled, seen_of
from daggyr_server.executors.slurm.jobs.output import written_by
from daggyr_server.executors.slurm.jobs.submission import Reported, kept_submissions, remove_void

log = logging.getLogger(__name__)


class Watch:
    """To be run once."""

    def __init__(self, flights: Flights) -> None:
        self.flights = flights
        self.pool = flights.pool

    async def run(self) -> None:
        while True:
            try:
                if self.flights.placed is not None:
                    await self._adopt()
                await self._heed()
                await self._look()
                await self.clean()
            except OSError as error:
                log.error("pool %s: its directory cannot be used for now: %s", self.pool.pool, error)
            await self.flights.rest(self.flights.watch_wake)

    async def _adopt(self) -> None:
        """Find what an earlier coordinator had submitted."""
        placed = {attempt.ident: attempt for attempt in self.flights.placed or ()}
        kept = await asyncio.to_thread(lambda: list(kept_submissions(self.pool.tracker_folder, self.pool.prefix)))
        self.flights.strays_until = time.monotonic() + STRAY_SECONDS
        for submission in kept:
            flight = Flight(submission, made=time.monotonic())
            for index, ident in enumerate(submission.manifest.keys):
                attempt = placed.pop(tuple(ident), None)  # type: ignore[arg-type]
                if attempt is not None:
                    attempt.flight, attempt.index = flight, index
                    flight.attempts[index] = attempt
            if flight.attempts:
                self.flights.flying[submission.name] = flight
                self.flights.in_slurm += len(flight.attempts)
            else:
                await asyncio.to_thread(submission.remove)
        for attempt in placed.values():
            self.flights.tell(attempt, without_process(LOST, "it was not submitted to Slurm before the coordinator ended"))
        self.flights.placed = None  # from now on, jobs of no flight are nobody's
        self.flights.talk_wake.set()

    async def _heed(self) -> None:
        """Take back what was asked for and has not started; what is to stop and has is the talk's."""
        for attempt in [each for each in self.flights.attempts.values() if each.ask is not None]:
            outcome = KILLED if attempt.ask == "stop" else RETURNED
            flight = attempt.flight
            if attempt.ident in self.flights.waiting:
                del self.flights.waiting[attempt.ident]
                self.flights.tell(attempt, without_process(outcome))
                continue
            if flight is None or flight.made is None:
                continue  # being submitted, or looked for
            if not attempt.runs:
                attempt.runs = not await asyncio.to_thread(flight.submission.claim, attempt.index)
                if not attempt.runs:
                    if flight.submission.manifest.job_id:
                        self.flights.to_cancel.append(flight.task(attempt.index))
                        self.flights.talk_wake.set()
                    self.flights.end(flight, attempt, without_process(outcome))
                    continue
            if attempt.ask == "recall":
                attempt.ask = None
            else:
                self.flights.talk_wake.set()

    async def _look(self) -> None:
        """See what jobs have told in their folders."""
        flights = [flight for flight in self.flights.flying.values() if flight.made is not None and flight.attempts]
        for flight, (starts, begun, results) in zip(flights, await asyncio.to_thread(_look_into, flights), strict=True):
            for index, attempt in list(flight.attempts.items()):
                attempt.runs = attempt.runs or index in begun
                if index in results:
                    attempt.reported, attempt.reported_at = results[index], time.monotonic()
                if attempt.reported is None and index in starts and not attempt.started:
                    attempt.started = True
                    started = AttemptStarted(start_time=timestamp(starts[index]))
                    self.pool.reports.updates(self.pool.pool, [AttemptUpdate(key=attempt.key, started=started)], forgotten)
                await self._settle(flight, attempt)

    async def _settle(self, flight: Flight, attempt: Attempt) -> None:
        """Tell an attempt's end if it is known."""
        asked = attempt.ask == "stop"
        now = time.monotonic()
        over = attempt.state == GONE or attempt.state in ENDED_STATES
        if attempt.reported is not None:
            if is_settled(attempt.reported, asked=asked) or over or now > attempt.reported_at + self.pool.settings.settle_seconds:
                await self._finish(flight, attempt)
        elif attempt.over_since is not None and over:
            # Slurm may say so before the script and what it ends have come to their end, and files take their time.
            if attempt.runs and now < attempt.over_since + self.pool.settings.settle_seconds:
                return
            if not attempt.runs and not await asyncio.to_thread(flight.submission.claim, attempt.index):
                attempt.runs = True
                return
            await self._finish(flight, attempt)

    async def _finish(self, flight: Flight, attempt: Attempt) -> None:
        reported, index = attempt.reported, attempt.index
        printed = await asyncio.to_thread(flight.submission.printed, index) if reported is None else ""
        seen = seen_of(
            reported,
            attempt.state,
            asked=attempt.ask == "stop",
            timeout=flight.submission.manifest.timeout,
            printed=printed,
        )
        if reported is None:
            result = result_of(seen)
        else:
            result = result_of(seen, start_ns=reported.start, stop_ns=reported.stop, cpu_seconds=reported.cpu_seconds)
        if result.outcome == REJECTED:
            self.flights.end(flight, attempt, result)
            return
        for stream, summary in ((STDOUT, result.stdout), (STDERR, result.stderr)):
            output = await asyncio.to_thread(written_by, flight.submission, index, stream)
            chunks = output.chunks()
            try:
                while (piece := await asyncio.to_thread(next, chunks, None)) is not None:
                    chunk = OutputChunk(stream=stream, offset=piece[0], data=piece[1])
                    self.pool.reports.updates(self.pool.pool, [AttemptUpdate(key=attempt.key, output=chunk)], forgotten)
            except OSError as error:
                result.notes.append(f"its output cannot be read: {error.strerror}")
            summary.CopyFrom(output.summary())
        self.flights.end(flight, attempt, result)

    async def clean(self) -> None:
        """Remove the files of what is durable."""
        forget, self.flights.to_forget = self.flights.to_forget, []
        done = []
        for flight, index in forget:
            flight.undurable.discard(index)
            if not flight.undurable and not flight.attempts and self.flights.flying.pop(flight.submission.name, None) is not None:
                done.append(flight)
                self.flights.finished[flight.submission.name] = time.monotonic()
        await asyncio.to_thread(_remove, forget, done)
        if self.flights.strays_until > time.monotonic():
            await asyncio.to_thread(remove_void, self.pool.tracker_folder, self.pool.prefix)
        long_ago = time.monotonic() - STRAY_SECONDS
        while self.flights.finished and next(iter(self.flights.finished.values())) < long_ago:
            del self.flights.finished[next(iter(self.flights.finished))]


def _look_into(flights: Sequence[Flight]) -> list[tuple[dict[int, int], set[int], dict[int, Reported]]]:
    """What is new in each: starts, indexes whose script has begun, and results."""
    found = []
    for flight in flights:
        try:
            attempts = dict(flight.attempts)  # in a thread: others may end meanwhile
            seen = flight.submission.look({index for index, attempt in attempts.items() if not attempt.started})
            new = [index for index in seen.results if index in attempts and attempts[index].reported is None]
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
