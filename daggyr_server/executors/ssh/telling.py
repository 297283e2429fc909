"""What one SSH target tells the driver: starts, output and results of its attempts, and which of these are not durable yet.

`target.py` makes one, and the parts of a connection call it as well. It moves no attempt from one phase to the next; it only
forgets those whose result it tells. Nothing here talks with the target.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from daggyr.attempts.keys import Ident, key_of
from daggyr.attempts.outcome import without_process
from daggyr.attempts.times import timestamp
from daggyr.v1.task_pb2 import AttemptOutcome, AttemptResult, AttemptStarted, AttemptUpdate, OutputChunk
from daggyr_server.executors.base import Reports, forgotten
from daggyr_server.executors.ssh.attempts import AttemptPhase, TargetAttempt, TargetAttempts

STARTED_SECONDS = 0.02  # an attempt that ends sooner has its start told with its result


class Telling:
    """Life: made, then any calls in any order; after `closed` is set, nothing that was to be told soon is told."""

    def __init__(self, host: str, attempts: TargetAttempts, reports: Reports, may_drop: Callable[[], None]) -> None:
        """`may_drop` is called when folders were added to `droppable`."""
        self.undurable: set[Ident] = set()  # attempts whose result was told and is not durable yet
        self.droppable: list[str] = []  # folders of attempts whose result is durable
        self.closed = False
        self._host = host
        self._attempts = attempts
        self._reports = reports
        self._may_drop = may_drop

    def started(self, attempt: TargetAttempt, start_ns: int) -> None:
        """Tell in a moment that an attempt runs since `start_ns`, unless it has ended by then."""
        attempt.start_ns = start_ns
        if not attempt.told_start:
            asyncio.get_running_loop().call_later(STARTED_SECONDS, self._started, attempt)

    def _started(self, attempt: TargetAttempt) -> None:
        if self._attempts.held.get(attempt.ident) is attempt and attempt.phase is AttemptPhase.RUNNING and not attempt.told_start:
            attempt.told_start = True
            started = AttemptStarted(start_time=timestamp(attempt.start_ns))
            self._reports.updates(self._host, [AttemptUpdate(key=key_of(attempt.ident), started=started)], forgotten)

    def output(self, attempt: TargetAttempt, chunks: Sequence[OutputChunk], durable: Callable[[], None]) -> None:
        """Tell output of an attempt whose result comes later. Until the result is durable, the output can be fetched again."""
        key = key_of(attempt.ident)
        self._reports.updates(self._host, [AttemptUpdate(key=key, output=chunk) for chunk in chunks], durable)

    def results(self, results: Sequence[tuple[TargetAttempt, AttemptResult]]) -> None:
        """Tell the results of attempts, which nothing follows. Their folders may be dropped once that is durable."""
        for attempt, _ in results:
            self._attempts.forget(attempt)
            self.undurable.add(attempt.ident)
        updates = [AttemptUpdate(key=key_of(attempt.ident), finished=result) for attempt, result in results]

        def durable() -> None:
            for attempt, _ in results:
                self.undurable.discard(attempt.ident)
                self.droppable.append(attempt.name)
            self._may_drop()

        self._reports.updates(self._host, updates, durable)

    def ends(self, idents: Sequence[Ident], outcome: AttemptOutcome, *notes: str) -> None:
        """Tell how attempts ended that have no folder on the target, or whose folder is left to the next connection."""
        result = without_process(outcome, *notes)
        if idents:
            self._reports.updates(self._host, [AttemptUpdate(key=key_of(ident), finished=result) for ident in idents], forgotten)

    def ends_soon(self, idents: Sequence[Ident], outcome: AttemptOutcome, *notes: str) -> None:
        """As `ends`, but not before the caller has returned, because the driver may be the caller."""
        if idents:
            asyncio.get_running_loop().call_soon(self._ends_unless_closed, idents, outcome, *notes)

    def _ends_unless_closed(self, idents: Sequence[Ident], outcome: AttemptOutcome, *notes: str) -> None:
        if not self.closed:
            self.ends(idents, outcome, *notes)
