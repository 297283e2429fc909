"""The agent's attempts: which wait, which run, and what the coordinator's words change about that.

The session passes the coordinator's messages on; executions come back with results; everything to be told goes to the
outbox. Attempts wait in the order in which they came and start in that order, each when its resources are free: a big one
is not overtaken, because the coordinator has chosen the order. An attempt is held from its assignment to its result.
Nothing here touches processes or the network.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from daggyr.v1.task_pb2 import (
    KILLED,
    LOST,
    REJECTED,
    RETURNED,
    AssignmentBatch,
    AttemptKey,
    AttemptOutcome,
    AttemptResult,
    AttemptStarted,
)

from .attempt import Attempt, Template
from .capture import Kept
from .execution import Execution, Host, timestamp
from .outbox import Ident, Outbox, ident_of
from .outcomes import STOPPED_NOTE, Ending
from .process import HostError, StartRefusedError
from .resources import Ledger

MAX_WAITING = 50_000  # so that a hello that names them all stays well below the limit of a message

_STARTS_AT_ONCE = 32  # then the event loop has its turn
_PAUSE = 1.0  # seconds without starts, when the host could not start a process

_log = logging.getLogger(__name__)


class Attempts:
    """All attempts that this agent holds."""

    def __init__(self, host: Host, ledger: Ledger, outbox: Outbox, changed: Callable[[], None]) -> None:
        """`changed` is called whenever fewer attempts are held than before."""
        self._host = host
        self._ledger = ledger
        self._outbox = outbox
        self._changed = changed
        self._waiting: dict[Ident, Attempt] = {}
        self._running: dict[Ident, Execution] = {}
        self._disowned: set[Execution] = set()  # being ended; whoever is assigned under the same name now is another
        self._closed: str | None = None  # why nothing new is taken
        self._next_start: asyncio.Handle | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many have processes, those included that are not this agent's any more."""
        return len(self._running) + len(self._disowned)

    @property
    def ahead(self) -> int:
        """How many attempts wait for those that run to end."""
        return len(self._waiting)

    def held_keys(self) -> list[AttemptKey]:
        return [*(attempt.key for attempt in self._waiting.values()), *self.running_keys()]

    def running_keys(self) -> list[AttemptKey]:
        return [execution.attempt.key for execution in self._running.values()]

    def execution(self, ident: Ident) -> Execution | None:
        """The attempt's execution, if it runs."""
        return self._running.get(ident)

    def waits(self, ident: Ident) -> bool:
        """Whether the attempt is here and has not started."""
        return ident in self._waiting

    def assign(self, batch: AssignmentBatch) -> None:
        """Take new attempts. One that is held, or whose result is not acknowledged, is the same as before: nothing changes."""
        templates = [Template(template) for template in batch.templates]
        for assignment in batch.assignments:
            ident = ident_of(assignment.key)
            if ident in self._waiting or ident in self._running or self._outbox.undelivered(ident):
                continue
            if assignment.template >= len(templates):
                _log.error("the coordinator sent an assignment without its template")
                continue
            attempt = Attempt.of(assignment, templates[assignment.template])
            if self._closed or len(self._waiting) >= MAX_WAITING:
                self._never_started(attempt, RETURNED, self._closed or f"{MAX_WAITING} attempts wait here already")
            elif shortage := self._ledger.shortage(attempt.template.demand):
                self._never_started(attempt, REJECTED, shortage)
            else:
                self._waiting[ident] = attempt
        self._start()

    def cancel(self, keys: Iterable[AttemptKey], grace: float) -> None:
        """A person asked for the end of these; `grace` in seconds. Keys that are not here are passed over."""
        for ident in map(ident_of, keys):
            if attempt := self._waiting.pop(ident, None):
                self._never_started(attempt, KILLED)
            elif execution := self._running.get(ident):
                execution.end(Ending.KILL, grace)
        self._start()

    def recall(self, keys: Iterable[AttemptKey]) -> None:
        """Hand back those of these that wait."""
        for ident in map(ident_of, keys):
            if attempt := self._waiting.pop(ident, None):
                self._never_started(attempt, RETURNED)
        self._start()

    def close(self, reason: str) -> None:
        """Hand back all that wait, now and from now on; what runs goes on."""
        self._closed = reason
        while self._waiting:
            self._never_started(self._waiting.pop(next(iter(self._waiting))), RETURNED, reason)

    def stop(self, grace: float) -> None:
        """Hand back all that wait, and end all that run; they are LOST unless they succeed."""
        self.close(STOPPED_NOTE)
        for execution in list(self._running.values()):
            execution.end(Ending.STOP, grace)

    def end_silently(self, keys: Iterable[AttemptKey] | None) -> None:
        """End these, or all, at once: they are no longer this agent's, and nobody is told."""
        idents = [*self._waiting, *self._running] if keys is None else [ident_of(key) for key in keys]
        for ident in idents:
            self._waiting.pop(ident, None)
            if execution := self._running.pop(ident, None):
                self._disowned.add(execution)
                execution.end(Ending.SILENT, 0)
        self._changed()
        self._start()

    def runs(self, execution: Execution) -> None:
        """For executions, as are the next two: it is not a short one."""
        attempt = execution.attempt
        self._outbox.started(attempt.ident, attempt.key, AttemptStarted(start_time=timestamp(execution.started_ns)))

    def tell_running(self) -> None:
        """Tell once more of all that runs and was told of: this coordinator has not heard of it, or has forgotten it."""
        on_their_way = self._outbox.starts()
        for ident, execution in self._running.items():
            if execution.lasts and ident not in on_their_way:
                self.runs(execution)

    def gone(self, execution: Execution) -> None:
        self._ledger.give_back(execution.attempt.template.demand)
        self._start()

    def finished(self, execution: Execution, result: AttemptResult | None, outputs: tuple[Kept, ...]) -> None:
        attempt = execution.attempt
        if execution in self._disowned:
            self._disowned.remove(execution)
        else:
            del self._running[attempt.ident]
        if result is not None:
            self._outbox.finished(attempt.ident, attempt.key, result, outputs, ahead=len(self._waiting))
            if execution.ending is not None:
                self._outbox.hurry()
        self._changed()

    def _start(self) -> None:
        """Start what waits, in order, as far as resources allow."""
        if self._next_start is not None:
            return
        budget = _STARTS_AT_ONCE
        while self._waiting:
            ident = next(iter(self._waiting))
            attempt = self._waiting[ident]
            if not self._ledger.take(attempt.template.demand):
                return
            if not budget:
                self._ledger.give_back(attempt.template.demand)
                self._next_start = self._host.loop.call_soon(self._start_more)
                return
            budget -= 1
            del self._waiting[ident]
            try:
                self._running[ident] = Execution(self._host, attempt, self)
            except StartRefusedError as refusal:
                self._ledger.give_back(attempt.template.demand)
                self._never_started(attempt, REJECTED, str(refusal))
            except HostError as error:
                self._ledger.give_back(attempt.template.demand)
                _log.warning("%s; nothing is started for %g s", error, _PAUSE)
                self._never_started(attempt, LOST, str(error))
                self._next_start = self._host.loop.call_later(_PAUSE, self._start_more)
                return

    def _start_more(self) -> None:
        self._next_start = None
        self._start()

    def _never_started(self, attempt: Attempt, outcome: AttemptOutcome, note: str = "") -> None:
        result = AttemptResult(outcome=outcome, stop_time=timestamp(time.time_ns()), notes=[note] if note else [])
        self._outbox.finished(attempt.ident, attempt.key, result)
        self._outbox.hurry()
        self._changed()
