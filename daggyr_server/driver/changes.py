"""What changed lately in each run, for clients that watch.

The loop publishes a step's changed tasks once they are durable; watchers wait here and catch up at their own pace. Nobody waits
for a watcher that falls too far behind: it is told to read the run again. Nothing here knows of clients or messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

KEPT_TASKS = 20_000  # changed tasks that are kept of one run
KEPT_ENDED = 1_000  # the last changes of so many ended runs are kept, those that ended last


class _Log:
    """The last changes of one run."""

    __slots__ = ("entries", "seq", "since", "tasks")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.since = seq  # the changes after this one are kept
        self.entries: deque[tuple[int, Sequence[int]]] = deque()
        self.tasks = 0


class Changes:
    """Numbered changes by run. Numbers grow from change to change, and from each start of the coordinator to the next."""

    def __init__(self, epoch: int) -> None:
        self._first = epoch << 32  # the number that runs without a log have: no number of theirs was higher
        self._logs: dict[int, _Log] = {}
        self._ended: dict[int, None] = {}  # ended runs with a log; the one that ended last comes last
        self._waiters: dict[int, set[asyncio.Event]] = {}

    def publish(self, changed: Mapping[int, Sequence[int]]) -> None:
        """Note the tasks that have changed in each run; where there are none, the run itself has changed."""
        for run_id, numbers in changed.items():
            log = self._logs.get(run_id)
            if log is None:
                log = self._logs[run_id] = _Log(self._first)
            log.seq += 1
            log.entries.append((log.seq, numbers))
            log.tasks += len(numbers) + 1
            while log.tasks > KEPT_TASKS and log.entries:
                log.since, oldest = log.entries.popleft()
                log.tasks -= len(oldest) + 1
            for event in self._waiters.get(run_id, ()):
                event.set()

    def restart(self, run_id: int) -> None:
        """A run has other tasks now, so that whoever watches has to read it again."""
        log = self._logs.get(run_id)
        if log is not None:
            log.entries.clear()
            log.since, log.tasks = log.seq, 0

    def ended(self, run_id: int) -> None:
        """A run has ended. Once KEPT_ENDED runs have ended after it, its changes are forgotten.

        Nothing of it stays, not even a number. All runs without a log have one number together, which is never below one that was
        told. A watcher of a forgotten run may so be told to read the run again, which costs it a look.
        """
        self._ended.pop(run_id, None)
        self._ended[run_id] = None
        if len(self._ended) > KEPT_ENDED:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            log = self._logs.pop(oldest, None)
            if log is not None:
                self._first = max(self._first, log.seq)

    def deleted(self, run_id: int) -> None:
        """A run is taken away, and its id is never used again."""
        self._ended.pop(run_id, None)
        self._logs.pop(run_id, None)

    def seq(self, run_id: int) -> int:
        """The number of the run's newest change."""
        log = self._logs.get(run_id)
        return log.seq if log is not None else self._first

    def after(self, run_id: int, seq: int) -> list[int] | None:
        """The tasks that changed after change `seq`, each once; None if changes since then are no longer kept."""
        log = self._logs.get(run_id)
        if log is None:
            return [] if seq == self.seq(run_id) else None
        if not log.since <= seq <= log.seq:
            return None
        found: dict[int, None] = {}
        for entry_seq, numbers in reversed(log.entries):
            if entry_seq <= seq:
                break
            found.update(dict.fromkeys(numbers))
        return list(found)

    async def wait(self, run_id: int, seq: int) -> None:
        """Return once there is a change after `seq`."""
        event = asyncio.Event()
        waiters = self._waiters.setdefault(run_id, set())
        waiters.add(event)
        try:
            while self.seq(run_id) <= seq:
                event.clear()
                await event.wait()
        finally:
            waiters.discard(event)
            if not waiters:
                self._waiters.pop(run_id, None)
