"""The read side of a coordinator: runs in memory and, of those that have ended, from the tracker.

The API reads through the one `Reader`, and changes nothing of what it gets; the loop tells it which runs end. Where a tracker can
give ended runs back, only those stay in memory that somebody asked about lately. A run that comes back or leaves goes through the
inbox, because the loop alone changes the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from daggyr.v1.task_pb2 import AttemptResult, OutputChunk, Placement
from daggyr_server.core.commands import Key
from daggyr_server.core.events import RunsForgotten
from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.machine import Machine
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.stored import EVERY_RUN, RunFilter, RunRow
from daggyr_server.driver.agents import Agents
from daggyr_server.driver.clocks import Clock
from daggyr_server.driver.damage import KnownDamage
from daggyr_server.driver.durability import Durability
from daggyr_server.driver.inbox import Inbox
from daggyr_server.driver.lives import Lives
from daggyr_server.driver.recovery import recovered
from daggyr_server.driver.restoring import MissingRuns
from daggyr_server.executors.base import Executor
from daggyr_server.executors.believable import mend_result
from daggyr_server.trackers.base import MAX_ATTEMPTS, DamagedPart, DamagedRun, Piece, StateChange, StoredAttempt, Tracker

log = logging.getLogger(__name__)

MAX_POOL_NOTES = 20  # that an executor tells of its pool
NOTED_SECONDS = 1.0  # for which what a pool says of itself is told again
KEPT_ENDED_RUNS = 200  # ended runs in memory, where a tracker has them too
LOADS_AT_ONCE = 4  # runs that come back at a time; each may be large
KEPT_ENDED_TASKS = 2_000_000  # the tasks of these runs together


class _Lock(asyncio.Lock):
    """A lock that knows how many have it or wait for it."""

    users = 0


class Reader:
    """The read side of one coordinator. All methods belong to one event loop; those that ask the tracker raise TrackerError."""

    def __init__(
        self,
        machine: Machine,
        tracker: Tracker,
        executors: Mapping[str, Executor],
        inbox: Inbox,
        durability: Durability,
        lives: Lives,
        restoring: MissingRuns,
        clock: Clock,
        keep: Callable[[], Keeping],
        *,
        durable: bool,
    ) -> None:
        """`durable` says that the tracker can give ended runs back, so that not all of them need stay in memory. `executors` may
        be filled later; `keep` makes the lists of what tasks execute."""
        self._machine = machine
        self._tracker = tracker
        self._executors = executors
        self._inbox = inbox
        self._durability = durability
        self._lives = lives
        self._restoring = restoring
        self.now = clock  # what is told of waiting is told by it
        self._keep = keep
        self._durable = durable
        self._ended: dict[int, int] = {}  # ended runs in memory -> how many tasks; asked for longest ago first
        self._locks: dict[int, _Lock] = {}  # of runs that come back, or are being taken away
        self._loads = asyncio.Semaphore(LOADS_AT_ONCE)
        self._held: dict[int, int] = {}  # runs of which something is being asked -> how often
        self.damage = KnownDamage()
        self._noted: dict[str, tuple[float, list[str]]] = {}  # by pool, when it was asked (monotonic), and what it said
        self.settled = durability.settled
        self.agents = Agents(executors).known
        self.refused_agents = Agents(executors).refused

    @property
    def trouble(self) -> str | None:
        """Why nothing can be made durable at the moment."""
        return self._durability.trouble

    @property
    def pools(self) -> Mapping[str, Pool]:
        """All pools by name, those of restored runs included that are not configured any more."""
        return self._machine.pools

    def notes(self, pool: str) -> list[str]:
        """What the executor of a pool tells people of it; see Executor.notes."""
        executor = self._executors.get(pool)
        try:
            return [str(note) for note in islice(executor.notes(), MAX_POOL_NOTES)] if executor is not None else []
        except Exception as error:
            return [f"its executor has a fault: {type(error).__name__}: {error}"]

    def lately_noted(self, pool: str) -> list[str]:
        """What `notes` has told within the last second: whoever lists runs asks once for each of them."""
        now = time.monotonic()
        at, found = self._noted.get(pool, (-NOTED_SECONDS, []))
        if now >= at + NOTED_SECONDS:
            found = self.notes(pool)
            self._noted[pool] = now, found
        return found

    def placement(self, run: Run, number: int) -> Placement | None:
        """Where the attempt of a task is that has not ended, as its executor knows; None if there is none."""
        flight = run.in_flight.get(number)
        if flight is None:
            return None
        executor = self._executors.get(flight.pool)
        if executor is None:
            return Placement(host=flight.host)
        return executor.placement(flight.host, self._lives.key((run.run_id, flight.number, flight.attempt)))

    # -- runs ---------------------------------------------------------------------------------------------------------

    def in_memory(self, run_id: int) -> Run | None:
        """A run that has not ended, or that somebody asked about lately."""
        return self._machine.runs.get(run_id)

    async def find(self, run_id: int) -> Run | None:
        """A run, from the tracker if it is not in memory; None if there is none.

        Raises TrackerError, DamagedRun, BeingRestored, Closing.
        """
        await self._restoring.back(run_id)
        damaged = self.damage.whole(run_id)
        if damaged is not None:
            raise damaged
        try:
            with self.held(run_id):  # What others look at must not push it out again before it is handed over.
                return await self._find(run_id)
        except DamagedRun as damage:
            self.damage.note(damage)
            raise

    async def _find(self, run_id: int) -> Run | None:
        run = self._machine.runs.get(run_id)
        if run is None:
            async with self._alone(run_id), self._loads:
                if run_id not in self._machine.runs:
                    found = await recovered(run_id, self._tracker, self._keep, self.now())
                    if found is None:
                        return None
                    await self._inbox.ask(replace(found.event, ticket=object()))
                run = self._machine.runs.get(run_id)
        if run is not None and run.has_ended:
            self.ended(run)
        return run

    def being_restored(self, run_id: int) -> str | None:
        """What to say of a run that is not in memory because the server has just started; None for all others."""
        return self._restoring.words(run_id)

    async def row(self, run_id: int) -> RunRow | None:
        """A run as a list shows it; None if there is none. Raises TrackerError."""
        rows = await self._tracker.rows(before=run_id + 1, limit=1)
        return rows[0] if rows and rows[0].run_id == run_id else None

    async def newest(self) -> int | None:
        """The id of the run that was submitted last; None if there are no runs."""
        if not self._durable and self._machine.runs:
            return next(reversed(self._machine.runs))
        rows = await self._tracker.rows(before=None, limit=1)
        return rows[0].run_id if rows else None

    async def requested_as(self, request_id: str) -> int | None:
        """The id of the run that was submitted with this request_id; None if none was."""
        known = self._machine.requests.get(request_id)
        return known if known is not None else await self._tracker.find_request(request_id)

    async def rows(self, *, before: int | None, limit: int, wanted: RunFilter = EVERY_RUN) -> list[RunRow]:
        """See Tracker.rows."""
        return await self._tracker.rows(before=before, limit=limit, wanted=wanted)

    def in_flight(self) -> Iterator[InFlight]:
        """The attempts in flight, of all runs."""
        return (flight for run in self._machine.runs.values() for flight in run.in_flight.values())

    # -- what the tracker has of one run ------------------------------------------------------------------------------

    async def attempts(
        self, run_id: int, number: int, *, before: int | None = None, limit: int = MAX_ATTEMPTS
    ) -> list[StoredAttempt]:
        """See Tracker.attempts."""
        with self._noting_damage():
            found = await self._tracker.attempts(run_id, number, before=before, limit=limit)
        for attempt in found:
            mend_result(attempt.result)  # What was stored before results had bounds has to be shown as well.
        return found

    async def results(self, run_id: int, attempts: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], AttemptResult]:
        """See Tracker.results. Nothing is told if one of them is damaged."""
        with contextlib.suppress(DamagedPart), self._noting_damage():
            return await self._tracker.results(run_id, attempts)
        return {}

    async def history(self, run_id: int, number: int | None) -> list[StateChange]:
        """See Tracker.history."""
        with self._noting_damage():
            return await self._tracker.history(run_id, number)

    @contextlib.contextmanager
    def _noting_damage(self) -> Iterator[None]:
        try:
            yield
        except DamagedPart as damage:
            self.damage.note(damage)
            raise

    async def document(self, run_id: int, revision: int = 0) -> bytes | None:
        """See Tracker.document."""
        return await self._tracker.document(run_id, revision)

    async def output(self, run_id: int, number: int, attempt: int, stream: int, offset: int, limit: int) -> Sequence[Piece]:
        """See Tracker.output."""
        return await self._tracker.output(run_id, number, attempt, stream, offset, limit)

    def live_output(self, flight: InFlight, key: Key, stream: int, offset: int) -> AsyncIterator[OutputChunk] | None:
        """See Executor.follow; None for an attempt in a pool that is not configured any more."""
        executor = self._executors.get(flight.pool)
        return executor.follow(flight.host, self._lives.key(key), stream, offset) if executor is not None else None

    # -- which ended runs stay in memory ------------------------------------------------------------------------------

    def ended(self, run: Run) -> None:
        """A run has ended, or somebody asked for one that has: it stays, and those may go that were asked for longest ago."""
        if not self._durable:
            return
        self._ended.pop(run.run_id, None)
        self._ended[run.run_id] = run.graph.size - run.graph.live
        tasks = sum(self._ended.values())
        forgotten = []
        while len(self._ended) > 1 and (len(self._ended) > KEPT_ENDED_RUNS or tasks > KEPT_ENDED_TASKS):
            oldest = next((run_id for run_id in self._ended if run_id not in self._held), None)
            if oldest is None:
                break
            tasks -= self._ended.pop(oldest)
            forgotten.append(oldest)
        if forgotten:
            self._inbox.put(RunsForgotten(run_ids=tuple(forgotten)))

    @contextlib.contextmanager
    def held(self, run_id: int) -> Iterator[None]:
        """While this lasts, a run stays in memory once it is there, because something is being asked of it."""
        self._held[run_id] = self._held.get(run_id, 0) + 1
        try:
            yield
        finally:
            self._held[run_id] -= 1
            if not self._held[run_id]:
                del self._held[run_id]

    @contextlib.asynccontextmanager
    async def _alone(self, run_id: int) -> AsyncIterator[None]:
        """Bring a run back, or take it away, one at a time; other runs are not waited for."""
        lock = self._locks.setdefault(run_id, _Lock())
        lock.users += 1
        try:
            async with lock:
                yield
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[run_id]

    def is_awaited(self, run_id: int) -> bool:
        """Whether somebody brings a run back or takes it away at this moment."""
        return run_id in self._locks

    @contextlib.asynccontextmanager
    async def forgotten(self, run_ids: Sequence[int]) -> AsyncIterator[None]:
        """Take some ended runs from memory; nobody brings any of them back while this lasts.

        Raises BeingRestored, Closing, and Refused if one of them goes on.
        """
        for run_id in run_ids:
            await self._restoring.back(run_id)
        async with contextlib.AsyncExitStack() as stack:
            for run_id in sorted(run_ids):  # in one order, so that two who want the same runs do not wait for each other
                await stack.enter_async_context(self._alone(run_id))
            await self._inbox.ask(RunsForgotten(ticket=object(), run_ids=tuple(run_ids)))
            for run_id in run_ids:
                self._ended.pop(run_id, None)
            yield
            for run_id in run_ids:
                self.damage.forget(run_id)
