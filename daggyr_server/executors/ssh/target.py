"""One SSH target: it is kept connected, given attempts, and offered to the driver as a host.

`executor.py` makes one for each target of its pool and passes on what the driver asks; none of these calls waits. An asyncio task
of the target's own keeps a connection. While there is none, the target is HOST_PAUSED with the reason, from the first try on.
Attempts that were not sent are RETURNED so that others take them, and the target is tried again, at growing intervals, for ever.
What runs there goes on, and its results are fetched by the next connection. What is done on a connection is `session.py`'s.

A target whose disk is full keeps its connection, because results are fetched and folders removed there, which may be what makes
room. It is HOST_PAUSED until the session finds that there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping

from daggyr.attempts.keys import Ident, ident_of
from daggyr.attempts.times import duration
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
    Host,
    HostFault,
    HostState,
    OutputChunk,
)
from daggyr_server.executors.base import Reports
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.ssh.attempts import AttemptPhase, TargetAttempts
from daggyr_server.executors.ssh.connection import TargetFault
from daggyr_server.executors.ssh.session import ROOM_SECONDS, TargetPlace, TargetSession
from daggyr_server.executors.ssh.settings import SshSettings, TargetSettings
from daggyr_server.executors.ssh.telling import Telling

log = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.25  # seconds before a target that is down is tried again; doubling
LONGEST_PAUSE = 30.0
_LEAVE_SECONDS = 2.0  # for the pool's folder on the target to be removed, if nothing is left in it
STABLE_SECONDS = 10.0  # after a connection that lasted this long, the pauses begin anew


def folder_of(pool: str, target: str, tracker_id: str) -> str:
    """The folder of one pool's attempts on one target. Nobody else has it, and its name is plain whatever the two are called."""
    place = hashlib.sha256(f"{pool}\0{target}".encode()).hexdigest()[:16]
    tracker = hashlib.sha256(tracker_id.encode()).hexdigest()[:16]
    return f"ssh/{tracker}/{place}"


class Target:
    """Life: `open`, then any calls in any order, `close`."""

    def __init__(
        self, target: TargetSettings, settings: SshSettings, pool: str, reports: Reports, context: ExecutorContext
    ) -> None:
        self.name = target.known_as
        self._place = TargetPlace(target, settings, context, folder_of(pool, self.name, context.places_id))
        self._pool = pool
        self._reports = reports
        self._attempts = TargetAttempts()
        self._telling = Telling(self.name, self._attempts, reports, self._wake)
        self._resources: dict[str, int] = dict(target.resources)
        self._session: TargetSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost_timer: asyncio.TimerHandle | None = None
        self._reason = ""  # why it is left out, if it is
        self._closing = False

    # -- what the driver asks for

    def open(self) -> None:
        self._task = asyncio.create_task(self._stay_connected(), name=f"target {self.name} of {self._pool}")

    async def close(self) -> None:
        task, self._task = self._task, None
        self._closing = self._telling.closed = True
        if self._lost_timer is not None:
            self._lost_timer.cancel()
        if self._session is not None and not self._attempts.held and not self._telling.undurable:
            with contextlib.suppress(TargetFault, TimeoutError):
                async with asyncio.timeout(_LEAVE_SECONDS):
                    await self._session.leave()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def start(self, batch: AssignmentBatch) -> None:
        fillings = [Filling(template) for template in batch.templates]
        for assignment in batch.assignments:
            ident = ident_of(assignment.key)
            if ident in self._attempts.held or ident in self._telling.undurable:
                continue
            try:
                spec = fillings[assignment.template].spec(assignment.values)
            except (ValueError, IndexError) as error:
                self._telling.ends_soon([ident], REJECTED, str(error))
                continue
            shortage = self._shortage(spec.resources)
            if shortage:
                self._telling.ends_soon([ident], REJECTED, shortage)
                continue
            self._attempts.add(ident, assignment.task_id, spec)
        self._settle()
        if self._session is None or self._session.full:  # the connection broke, or the disk filled, with the batch on its way
            self._return_waiting()

    def stop(self, idents: Iterable[Ident]) -> None:
        running = []
        for attempt in self._attempts.known(idents):
            if attempt.phase is AttemptPhase.WAITING:
                self._attempts.forget(attempt)
                self._telling.ends_soon([attempt.ident], KILLED)
            elif attempt.phase is not AttemptPhase.ENDED:
                attempt.stopping = True
                running.append(attempt)
        if self._session is not None:
            self._session.stop(running)

    def recall(self, idents: Iterable[Ident]) -> None:
        waiting = [attempt for attempt in self._attempts.known(idents) if attempt.phase is AttemptPhase.WAITING]
        for attempt in waiting:
            self._attempts.forget(attempt)
        self._telling.ends_soon([attempt.ident for attempt in waiting], RETURNED)

    def recover(self, idents: Iterable[Ident]) -> None:
        for ident in idents:
            self._attempts.place(ident)
        self._settle()

    async def follow(self, ident: Ident, stream: int, offset: int) -> AsyncGenerator[OutputChunk, None]:
        while ident in self._attempts.held and self._session is not None:
            piece = await self._session.peek(self._attempts.held[ident], stream, offset)
            if piece is None:
                return
            if piece.data:
                offset = piece.offset + len(piece.data)
                yield piece

    def _settle(self) -> None:
        """Have the session see to what was added. `recover` comes before any `start`, so all that was placed is known."""
        self._attempts.complete = True
        self._wake()

    def _wake(self) -> None:
        if self._session is not None:
            self._session.wake()

    # -- the connection to the target

    async def _stay_connected(self) -> None:
        backoff = Backoff(SHORTEST_PAUSE, LONGEST_PAUSE, jitter=0.5)
        while not self._closing:  # a fault that comes together with a cancellation hides it
            began = time.monotonic()
            reason = ""
            try:
                async with TargetSession.opened(self._place, self._attempts, self._telling, self._room_changed) as session:
                    self._resize(session.cores, session.memory_mb)
                    await session.take_up()
                    self._session = session
                    self._came_back(session.full)
                    await session.work()
            except TargetFault as fault:
                reason = str(fault)
            except Exception:
                log.exception("a fault of the ssh executor, at target %s", self.name)
                reason = "a fault of the ssh executor"
            finally:
                self._session = None
            if time.monotonic() - began > STABLE_SECONDS:
                backoff.reset()
            pause = backoff.next()
            if not self._closing:
                self._went(reason, pause)
                await asyncio.sleep(pause)

    def _resize(self, cores: int, memory_mb: int) -> None:
        """Note what the target says that it has. The settings win."""
        self._resources = {"cores": cores, "memory_mb": memory_mb, **self._place.target.resources}
        self._attempts.resize(self._resources)

    def _came_back(self, full: str) -> None:
        """A connection stands. `full` says why nothing can be started on it, if that is so."""
        if self._lost_timer is not None:
            self._lost_timer.cancel()
            self._lost_timer = None
        log.info("target %s of pool %s is connected", self.name, self._pool)
        self._room_changed(full, ROOM_SECONDS)

    def _room_changed(self, full: str, pause: float) -> None:
        """The target can keep no files, for the reason `full`, or it can again. `pause` is in seconds, between looks."""
        if not full:
            self._reason = ""
            self._offer(HOST_AVAILABLE)
            return
        self._leave_out(full, pause)
        self._return_waiting()

    def _leave_out(self, reason: str, pause: float) -> None:
        """Have nothing given to this target, which is looked at again in `pause` seconds."""
        if reason != self._reason:
            self._reason = reason
            log.warning("target %s of pool %s is left out for now: %s", self.name, self._pool, reason)
        self._offer(HOST_PAUSED, HostFault(reason=reason, pause=duration(pause)))

    def _went(self, reason: str, pause: float) -> None:
        """There is no connection, and it is tried again in `pause` seconds."""
        for attempt in self._attempts.held.values():
            attempt.attended = False
            attempt.missed = 0
        self._leave_out(reason, pause)
        self._return_waiting()
        if self._place.settings.lost_after is not None and self._lost_timer is None:
            self._lost_timer = asyncio.get_running_loop().call_later(self._place.settings.lost_after, self._give_up)

    def _give_up(self) -> None:
        """What runs there is LOST. Should the target come back, it is ended, because nobody knows it then."""
        self._lost_timer = None
        lost = [attempt for attempt in self._attempts.held.values() if attempt.phase is not AttemptPhase.WAITING]
        for attempt in lost:
            self._attempts.forget(attempt)
        self._attempts.ended.clear()
        self._telling.ends(
            [a.ident for a in lost], LOST, f"its target was out of reach for {self._place.settings.lost_after:g} s"
        )

    def _return_waiting(self) -> None:
        waiting = self._attempts.in_phase(AttemptPhase.WAITING)
        for attempt in waiting:
            self._attempts.forget(attempt)
        self._telling.ends_soon([attempt.ident for attempt in waiting], RETURNED)

    def _shortage(self, needs: Mapping[str, int]) -> str:
        for name, units in needs.items():
            has = self._resources.get(name, 0)
            if units > has:
                return f"it needs {units} of {name}, and the target {self.name} has {has or 'none'}"
        return ""

    def _offer(self, state: HostState, fault: HostFault | None = None) -> None:
        self._reports.host(
            Host(host=self.name, name=self.name, state=state, resources=self._resources, takes_ahead=True, fault=fault)
        )
