"""The no-op worker (`--noop`): answers every assignment with success at once, to measure everything but processes.

A session passes messages to it as to `attempts`. It keeps nothing, so that cancel and recall find nothing. An assignment that
comes twice is answered twice, which is harmless, because nothing runs. Resources are offered but not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from daggyr.attempts.keys import Ident
from daggyr.attempts.outcome import STOPPED_NOTE, Cause
from daggyr.attempts.times import timestamp
from daggyr.v1.task_pb2 import RETURNED, SUCCEEDED, AssignmentBatch, AttemptKey, AttemptResult, AttemptUpdate, HostFault

from .execution import Execution
from .outbox import Outbox


class Noop:
    """Carries out nothing, successfully."""

    waiting = 0
    running = 0
    ahead = 0

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._closed: str | None = None

    def held_keys(self) -> list[AttemptKey]:
        return []

    def tell_running(self) -> None:
        pass

    def execution(self, ident: Ident) -> Execution | None:
        return None

    def waits(self, ident: Ident) -> bool:
        return False

    def assign(self, batch: AssignmentBatch) -> None:
        now = timestamp(time.time_ns())
        if self._closed is not None:
            result = AttemptResult(outcome=RETURNED, stop_time=now, notes=[self._closed])
        else:
            result = AttemptResult(outcome=SUCCEEDED, exit_code=0, start_time=now, stop_time=now)
        self._outbox.answer([AttemptUpdate(key=assignment.key, finished=result) for assignment in batch.assignments])

    def welcomed(self, kill_grace: float) -> None:
        pass

    def cancel(self, keys: Iterable[AttemptKey], grace: float) -> None:
        pass

    def recall(self, keys: Iterable[AttemptKey]) -> None:
        pass

    def close(self, reason: str) -> None:
        self._closed = reason

    def stop(self, grace: float, cause: Cause) -> None:
        self.close(STOPPED_NOTE)

    def fault(self) -> HostFault | None:
        return None

    def end_silently(self, keys: Iterable[AttemptKey] | None) -> None:
        pass
