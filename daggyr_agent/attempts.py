"""The agent's attempts: which wait, which run, and what the coordinator's messages change about that.

The session passes the coordinator's messages on, executions come back with results, and everything that is to be told goes to
the outbox. Attempts start in the order in which they came, each when its resources are free. A large one is not overtaken,
because the coordinator has chosen the order. An attempt is held from its assignment to its result. Nothing here touches
processes or the network.

Everything happens in the event loop, except for `_next_after`, which the threads of `slots` call. If the next attempt needs the
resources that the ended one had, it takes its place at once, and the event loop hears of both later, together with others. A
lock protects what waits and what runs, because both sides change it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

from daggyr.attempts.keys import Ident, ident_of
from daggyr.attempts.outcome import OVER_NOTE, STOPPED_NOTE, Cause, Seen, judge, without_process
from daggyr.attempts.startable import NotStartable
from daggyr.attempts.times import timestamp
from daggyr.v1.task_pb2 import (
    KILLED,
    REJECTED,
    RETURNED,
    AssignmentBatch,
    AttemptKey,
    AttemptOutcome,
    AttemptStarted,
    HostFault,
)

from .attempt import AssignedAttempt, Template
from .execution import Execution
from .execution_context import ExecutionContext
from .host_condition import HostCondition
from .outbox import GATHERED, Outbox
from .resources import Ledger
from .room import Room
from .slots import Slots
from .start_faults import HostError, LostError

MAX_WAITING = 50_000  # A hello that names them all stays well below the limit of a message.

_log = logging.getLogger(__name__)


class Attempts:
    """All attempts that this agent holds."""

    def __init__(
        self,
        context: ExecutionContext,
        ledger: Ledger,
        outbox: Outbox,
        changed: Callable[[], None],
        *,
        room: Room,
        most: int,
        beat: Callable[[], None],
    ) -> None:
        """`changed` is called whenever fewer attempts are held than before. `most` attempts run at once, whatever they need.

        `beat` has the coordinator told at once that the host is at fault, or no longer is.
        """
        self._context = context
        self._most = most
        self._beat = beat
        self._ledger = ledger
        self._outbox = outbox
        self._changed = changed
        self._lock = threading.Lock()
        self._waiting: dict[Ident, AssignedAttempt] = {}
        self._running: dict[Ident, Execution] = {}
        self._disowned: set[Execution] = set()  # These are being ended. An assignment with the same key is another attempt.
        self._ended: deque[Execution] = deque()  # These were carried out, and the event loop has not heard of them.
        self._collecting = False  # The event loop is about to hear of them.
        self._closed: str | None = None  # why nothing new is taken
        self._host = HostCondition(context, room, self._executions, self._host_changed)
        self._slots = Slots(self._next_after)
        context.watch.after_each_look(self._collect)
        context.watch.after_each_look(self._look_while_they_run)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many attempts have processes, including those that are not this agent's any more."""
        return len(self._running) + len(self._disowned)

    @property
    def ahead(self) -> int:
        """How many attempts wait for those that run to end."""
        return len(self._waiting)

    def held_keys(self) -> list[AttemptKey]:
        with self._lock:
            waiting = [attempt.key for attempt in self._waiting.values()]
            return [*waiting, *(execution.attempt.key for execution in self._running.values())]

    def execution(self, ident: Ident) -> Execution | None:
        """The attempt's execution, if it runs."""
        return self._running.get(ident)

    def waits(self, ident: Ident) -> bool:
        """Whether the attempt is here and has not started."""
        return ident in self._waiting

    def assign(self, batch: AssignmentBatch) -> None:
        """Take new attempts. Nothing changes for one that is held, or whose result is not acknowledged: it was sent before."""
        self._host.look()
        templates = [Template(template) for template in batch.templates]
        for assignment in batch.assignments:
            ident = ident_of(assignment.key)
            if ident in self._waiting or ident in self._running or self._outbox.undelivered(ident):
                continue
            if assignment.template >= len(templates):
                _log.error("the coordinator sent an assignment without its template")
                continue
            attempt = AssignedAttempt.of(assignment, templates[assignment.template])
            if why := self._closed or self._host.reason:
                self._without_process(attempt, RETURNED, why)
            elif len(self._waiting) >= MAX_WAITING:
                self._without_process(attempt, RETURNED, f"{MAX_WAITING} attempts wait here already")
            elif shortage := self._ledger.shortage(attempt.template.demand):
                self._without_process(attempt, REJECTED, shortage)
            else:
                with self._lock:
                    self._waiting[ident] = attempt
        self._start()

    def welcomed(self, kill_grace: float) -> None:
        """The coordinator has said how long its tasks have from SIGTERM to SIGKILL when their timeout has passed, in seconds."""
        self._context.kill_grace = kill_grace

    def cancel(self, keys: Iterable[AttemptKey], grace: float) -> None:
        """End these attempts, because a person asked for it; `grace` is in seconds. Keys that are not here are passed over."""
        for attempt, execution in self._taken(keys):
            if attempt is not None:
                self._without_process(attempt, KILLED)
            elif execution is not None:
                execution.end(Cause.KILL, grace)
        self._start()

    def recall(self, keys: Iterable[AttemptKey]) -> None:
        """Hand back those of these attempts that wait."""
        for attempt, _ in self._taken(keys):
            if attempt is not None:
                self._without_process(attempt, RETURNED)
        self._start()

    def close(self, reason: str) -> None:
        """Hand back all that wait, and all that are assigned from now on. What runs goes on."""
        self._closed = reason
        self._hand_back(reason)
        self._host.close()

    def _hand_back(self, reason: str) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for attempt in waiting.values():
            self._without_process(attempt, RETURNED, reason)

    def stop(self, grace: float, cause: Cause) -> None:
        """Hand back all that wait, and end all that run, which are LOST unless they succeed. The notes tell the `cause`."""
        self.close(OVER_NOTE if cause is Cause.OVER else STOPPED_NOTE)
        with self._lock:
            running = list(self._running.values())
        for execution in running:
            execution.end(cause, grace)

    def end_silently(self, keys: Iterable[AttemptKey] | None) -> None:
        """End these attempts, or all if None, at once and tell nobody, because they are no longer this agent's."""
        for ident in [ident_of(key) for key in (self.held_keys() if keys is None else keys)]:
            with self._lock:
                self._waiting.pop(ident, None)
                execution = self._running.pop(ident, None)
            if execution is not None:
                self._disowned.add(execution)
                execution.disown()
        self._changed()
        self._start()

    def tell_running(self) -> None:
        """Tell once more of all that runs, because this coordinator has not heard of it, or has forgotten it."""
        on_their_way = self._outbox.starts()
        with self._lock:
            running = list(self._running.items())
        for ident, execution in running:
            if execution.lasts and ident not in on_their_way:
                self._runs(execution)

    def _taken(self, keys: Iterable[AttemptKey]) -> list[tuple[AssignedAttempt | None, Execution | None]]:
        """For each key that is here, the attempt that waited, which is taken from the queue, or the execution."""
        found = []
        for ident in map(ident_of, keys):
            with self._lock:
                attempt, execution = self._waiting.pop(ident, None), self._running.get(ident)
            if attempt is not None or execution is not None:
                found.append((attempt, execution))
        return found

    def _start(self) -> None:
        """Start attempts that wait, in order, as long as their resources are free."""
        while self._host.reason is None and self.running < self._most:
            with self._lock:
                ident = next(iter(self._waiting), None)
                if ident is None or not self._ledger.take(self._waiting[ident].template.demand):
                    return
                execution = self._running[ident] = Execution(self._context, self._waiting.pop(ident), self._runs)
            try:
                self._slots.carry_out(execution)
            except RuntimeError as error:
                execution.fault = HostError(f"a thread cannot be started: {error}")
                self._finish(execution)

    def _next_after(self, execution: Execution) -> Execution | None:
        """Return the execution that takes this one's place, if any. A thread calls this when the execution was carried out.

        The event loop is woken if it has to hear of the end soon.
        """
        following = None
        with self._lock:
            if execution.is_over and not isinstance(execution.fault, HostError) and self._host.reason is None:
                ident = next(iter(self._waiting), None)
                if ident is not None and self._waiting[ident].template.demand == execution.attempt.template.demand:
                    following = self._running[ident] = Execution(self._context, self._waiting.pop(ident), self._runs)
                    execution.succeeded = True
            self._ended.append(execution)
            gathered = len(self._ended) * GATHERED >= len(self._waiting)
            tell = not self._collecting and (gathered or following is None or execution.cause is not None)
            self._collecting = self._collecting or tell
        if tell:
            with contextlib.suppress(RuntimeError):  # The event loop is closed, because the agent has left.
                self._context.loop.call_soon_threadsafe(self._collect)
        return following

    def _collect(self) -> None:
        """Settle what was carried out, and start what can be started now. In the event loop."""
        self._collecting = False
        if self._context.leaving:
            return  # Everything was killed, and what settling needs may be closed.
        if self._ended:
            self._host.look(soon=True)
        with self._context.journal.together():
            while self._ended:
                self._ended.popleft().settle(self._finish)
        self._start()

    def _runs(self, execution: Execution) -> None:
        attempt = execution.attempt
        self._outbox.started(attempt.ident, attempt.key, AttemptStarted(start_time=timestamp(execution.started_ns)))

    def _finish(self, execution: Execution) -> None:
        """Give back the execution's resources and tell its result. No process of it is left."""
        attempt, fault = execution.attempt, execution.fault
        with self._lock:
            if execution in self._disowned:
                self._disowned.remove(execution)
            else:
                del self._running[attempt.ident]
        if not execution.succeeded:
            self._ledger.give_back(attempt.template.demand)
        if isinstance(fault, HostError):
            self._host.begin_pause(str(fault))  # The coordinator is told first, or it would send back what comes back.
        if fault is None:
            result, outputs = execution.result(self._host.blamed(execution))
            if result is not None:
                self._outbox.finished(attempt.ident, attempt.key, result, outputs, ahead=len(self._waiting))
                if execution.cause is not None:
                    self._outbox.hurry()
        elif not execution.disowned:
            outcome, notes = judge(_seen_of(fault, execution.cause))
            self._without_process(attempt, outcome, *notes)
        self._changed()
        if not execution.succeeded:
            self._start()

    # -- the host

    def fault(self) -> HostFault | None:
        """Why this host takes nothing for now, as heartbeats tell it."""
        return self._host.fault()

    def _look_while_they_run(self) -> None:
        if self._running:
            self._host.look()

    def _executions(self) -> list[Execution]:
        with self._lock:
            return list(self._running.values())

    def _host_changed(self) -> None:
        self._beat()
        if self._host.reason is not None:
            self._hand_back(self._host.reason)
        else:
            self._start()

    def _without_process(self, attempt: AssignedAttempt, outcome: AttemptOutcome, *notes: str) -> None:
        self._outbox.finished(attempt.ident, attempt.key, without_process(outcome, *notes))
        self._outbox.hurry()
        self._changed()


def _seen_of(fault: NotStartable | HostError | LostError, cause: Cause | None) -> Seen:
    """What is seen of an attempt that was not started, or of which the end is not known."""
    if isinstance(fault, HostError):
        return Seen(host_fault=str(fault), cause=cause)
    if isinstance(fault, LostError):
        return Seen(vanished=str(fault), cause=cause)
    return Seen(rejected=str(fault))
