"""One SSH target: kept connected, given attempts, and told of to the driver.

The executor (`ssh.py`) makes one for each target of its pool and passes on what the driver asks; nothing of that waits. A task
of the target's own keeps a connection: while there is none, the target is HOST_PAUSED, attempts that were not sent are RETURNED
so that others take them, and it is tried again, at growing intervals, for ever. What runs there goes on, and its results are
fetched by the next connection. What is done on a connection is `session.py`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence

from daggyr.attempts.keys import Ident, ident_of, key_of
from daggyr.attempts.outcome import without_process
from daggyr.attempts.times import timestamp
from daggyr.backoff import Backoff
from daggyr.substitution import Filling
from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    HOST_PAUSED,
    KILLED,
    LOST,
    REJECTED,
    RETURNED,
    AssignmentBatch,
    AttemptOutcome,
    AttemptResult,
    AttemptStarted,
    AttemptUpdate,
    Host,
    HostState,
    OutputChunk,
)
from daggyr_server.executors.base import Reports, forgotten
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.ssh.attempts import Attempt, Attempts, Phase
from daggyr_server.executors.ssh.connection import TargetFault
from daggyr_server.executors.ssh.session import Session
from daggyr_server.executors.ssh.settings import SshSettings, TargetSettings

log = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.25  # seconds before a target that is down is tried again; doubling
LONGEST_PAUSE = 30.0
STABLE_SECONDS = 10.0  # a connection that lasted this long was a good one
STARTED_SECONDS = 0.02  # an attempt that ends sooner has its start told with its result


def folder_of(pool: str, target: str, tracker_id: str) -> str:
    """The folder of one pool's attempts on one target: of nobody else, and a plain name whatever they are called."""
    place = hashlib.sha256(f"{pool}\0{target}".encode()).hexdigest()[:16]
    tracker = hashlib.sha256(tracker_id.encode()).hexdigest()[:16]
    return f"ssh/{tracker}/{place}"


class Target:
    """Life: `open`, then any calls in any order, `close`."""

    def __init__(
        self, target: TargetSettings, settings: SshSettings, pool: str, reports: Reports, context: ExecutorContext
    ) -> None:
        self.target = target
        self.settings = settings
        self.context = context
        self.name = target.known_as
        self.folder = folder_of(pool, self.name, context.tracker_id)
        self.attempts = Attempts()
        self.told: set[Ident] = set()  # with a result that is not durable yet
        self.droppable: list[str] = []  # folders whose results are durable
        self.may_tidy = False  # all that an earlier coordinator placed here is known
        self._pool = pool
        self._reports = reports
        self._resources: dict[str, int] = dict(target.resources)
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost_timer: asyncio.TimerHandle | None = None
        self._offered = False
        self._reason = ""
        self._closing = False

    # -- what the driver asks

    def open(self) -> None:
        self._task = asyncio.create_task(self._stay_connected(), name=f"target {self.name} of {self._pool}")

    async def close(self) -> None:
        task, self._task = self._task, None
        self._closing = True
        if self._lost_timer is not None:
            self._lost_timer.cancel()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def start(self, batch: AssignmentBatch) -> None:
        fillings = [Filling(template) for template in batch.templates]
        for assignment in batch.assignments:
            ident = ident_of(assignment.key)
            if ident in self.attempts.held or ident in self.told:
                continue
            try:
                spec = fillings[assignment.template].spec(assignment.values)
            except (ValueError, IndexError) as error:
                self.tell_soon([ident], REJECTED, str(error))
                continue
            shortage = self._shortage(spec.resources)
            if shortage:
                self.tell_soon([ident], REJECTED, shortage)
                continue
            self.attempts.add(ident, assignment.task_id, spec)
        self.settle()
        if self._session is None:  # it broke when this was on its way
            self._return_waiting()

    def stop(self, idents: Iterable[Ident]) -> None:
        running = []
        for attempt in self.attempts.known(idents):
            if attempt.phase is Phase.WAITING:
                self.attempts.forget(attempt)
                self.tell_soon([attempt.ident], KILLED)
            elif attempt.phase is not Phase.ENDED:
                attempt.stopping = True
                running.append(attempt)
        if self._session is not None:
            self._session.stop(running)

    def recall(self, idents: Iterable[Ident]) -> None:
        waiting = [attempt for attempt in self.attempts.known(idents) if attempt.phase is Phase.WAITING]
        for attempt in waiting:
            self.attempts.forget(attempt)
        self.tell_soon([attempt.ident for attempt in waiting], RETURNED)

    def recover(self, idents: Iterable[Ident]) -> None:
        for ident in idents:
            self.attempts.place(ident)
        self.settle()

    async def follow(self, ident: Ident, stream: int, offset: int) -> AsyncGenerator[OutputChunk, None]:
        while ident in self.attempts.held and self._session is not None:
            piece = await self._session.peek(self.attempts.held[ident], stream, offset)
            if piece is None:
                return
            if piece.data:
                offset = piece.offset + len(piece.data)
                yield piece

    def settle(self) -> None:
        """Something changed: let the session see to it. `recover` comes before any `start`, so all that was placed is known."""
        self.may_tidy = True
        if self._session is not None:
            self._session.wake()

    # -- the connection

    async def _stay_connected(self) -> None:
        backoff = Backoff(SHORTEST_PAUSE, LONGEST_PAUSE, jitter=0.5)
        while not self._closing:  # a fault that comes together with a cancellation hides it
            began = time.monotonic()
            try:
                async with Session.opened(self) as session:
                    await session.take_up()
                    self._session = session
                    self._came_back()
                    await session.work()
            except TargetFault as fault:
                self._went(str(fault))
            except Exception:
                log.exception("a fault of the ssh executor, at target %s", self.name)
                self._went("a fault of the ssh executor")
            finally:
                self._session = None
            if time.monotonic() - began > STABLE_SECONDS:
                backoff.reset()
            if not self._closing:
                await asyncio.sleep(backoff.next())

    def resources(self, cores: int, memory_mb: int) -> None:
        """What the target says that it has; the settings win."""
        self._resources = {"cores": cores, "memory_mb": memory_mb, **self.target.resources}
        self.attempts.resize(self._resources)

    def _came_back(self) -> None:
        if self._lost_timer is not None:
            self._lost_timer.cancel()
            self._lost_timer = None
        log.info("target %s of pool %s is connected", self.name, self._pool)
        self._reason = ""
        self._offered = True
        self._offer(HOST_AVAILABLE)

    def _went(self, reason: str) -> None:
        self._session = None
        if self._closing:
            return
        for attempt in self.attempts.held.values():
            attempt.attended = False
            attempt.missed = 0
        if reason != self._reason:
            self._reason = reason
            log.warning("target %s of pool %s is left out for now: %s", self.name, self._pool, reason)
        if self._offered:
            self._offered = False
            self._offer(HOST_PAUSED)
        self._return_waiting()
        if self.settings.lost_after is not None and self._lost_timer is None:
            self._lost_timer = asyncio.get_running_loop().call_later(self.settings.lost_after, self._give_up)

    def _give_up(self) -> None:
        """What runs there is LOST: should it come back, it is ended."""
        self._lost_timer = None
        lost = [attempt for attempt in self.attempts.held.values() if attempt.phase is not Phase.WAITING]
        for attempt in lost:
            self.attempts.forget(attempt)
        self.attempts.ended.clear()
        self._tell([a.ident for a in lost], LOST, f"its target was out of reach for {self.settings.lost_after:g} s")

    def _return_waiting(self) -> None:
        waiting = self.attempts.in_phase(Phase.WAITING)
        for attempt in waiting:
            self.attempts.forget(attempt)
        self.tell_soon([attempt.ident for attempt in waiting], RETURNED)

    def _shortage(self, needs: Mapping[str, int]) -> str:
        for name, units in needs.items():
            has = self._resources.get(name, 0)
            if units > has:
                return f"it needs {units} of {name}, and the target {self.name} has {has or 'none'}"
        return ""

    def _offer(self, state: HostState) -> None:
        self._reports.host(Host(host=self.name, name=self.name, state=state, resources=self._resources, takes_ahead=True))

    # -- telling

    def tell_started(self, attempt: Attempt, start_ns: int) -> None:
        """It runs; told in a moment, unless it has ended by then."""
        attempt.start_ns = start_ns
        if not attempt.told_start:
            asyncio.get_running_loop().call_later(STARTED_SECONDS, self._started, attempt)

    def _started(self, attempt: Attempt) -> None:
        if self.attempts.held.get(attempt.ident) is attempt and attempt.phase is Phase.RUNNING and not attempt.told_start:
            attempt.told_start = True
            started = AttemptStarted(start_time=timestamp(attempt.start_ns))
            self._reports.updates(self.name, [AttemptUpdate(key=key_of(attempt.ident), started=started)], forgotten)

    def tell_output(self, updates: Sequence[AttemptUpdate], durable: Callable[[], None]) -> None:
        """Output of attempts whose result comes later: until that is durable, it can be fetched again."""
        self._reports.updates(self.name, updates, durable)

    def tell_results(self, results: Sequence[tuple[Attempt, AttemptResult]]) -> None:
        """The last word of attempts; their folders go once it is durable."""
        for attempt, _ in results:
            self.attempts.forget(attempt)
            self.told.add(attempt.ident)
        updates = [AttemptUpdate(key=key_of(attempt.ident), finished=result) for attempt, result in results]

        def durable() -> None:
            for attempt, _ in results:
                self.told.discard(attempt.ident)
                self.droppable.append(attempt.name)
            if self._session is not None:
                self._session.wake()

        self._reports.updates(self.name, updates, durable)

    def tell_soon(self, idents: Sequence[Ident], outcome: AttemptOutcome, *notes: str) -> None:
        """As `_tell`, but not before the caller has returned: the driver may be the caller."""
        if idents:
            asyncio.get_running_loop().call_soon(self._tell_if_open, idents, outcome, *notes)

    def _tell_if_open(self, idents: Sequence[Ident], outcome: AttemptOutcome, *notes: str) -> None:
        if self._task is not None:
            self._tell(idents, outcome, *notes)

    def _tell(self, idents: Sequence[Ident], outcome: AttemptOutcome, *notes: str) -> None:
        result = without_process(outcome, *notes)
        updates = [AttemptUpdate(key=key_of(ident), finished=result) for ident in idents]
        if updates:
            self._reports.updates(self.name, updates, forgotten)
