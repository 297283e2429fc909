"""Looks at attempts while they run: keeps their output files small and notes their peak memory.

Executions add themselves at their start and are dropped once they have ended. Each is looked at 10 ms after its start,
then at doubling intervals up to half a second, sooner while it writes a lot. A look is two fstat(2) calls; the memory of a
process, which costs more, is read at intervals that go on doubling up to 8 s. Short attempts end before their first look;
one that does not is told of as started then.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Protocol

from .capture import KEPT_BYTES, Capture
from .usage import resident_peak

_FIRST_LOOK = 0.01  # seconds
_LONGEST_INTERVAL = 0.5
_LONGEST_MEMORY_INTERVAL = 8.0
_WRITING_INTERVAL = 0.05  # while more than is kept is written between two looks
_TIDY_INTERVAL = 1.0


class Watched(Protocol):
    """What an attempt that runs shows."""

    pid: int  # 0 once it has ended
    capture: Capture
    looked_peak: int  # bytes; set here

    def outlived_first_look(self) -> None:
        """Called once."""


class Watch:
    """One timer for all that runs; `tidy` is called every second while anything runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tidy: Callable[[], None]) -> None:
        self._loop = loop
        self._tidy = tidy
        self._next_tidy = 0.0
        self._numbers = itertools.count()
        # (when, tie-breaker, whom, interval, when to read the memory, its interval, bytes written at the last look)
        self._due: list[tuple[float, int, Watched, float, float, float, int]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watched: Watched) -> None:
        """Look at it from now on until its pid is 0."""
        when = self._loop.time() + _FIRST_LOOK
        heapq.heappush(self._due, (when, next(self._numbers), watched, _FIRST_LOOK, 0.0, _FIRST_LOOK, 0))
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due.clear()

    def _look(self) -> None:
        now = self._loop.time()
        due = self._due
        while due and due[0][0] <= now:
            _, _, watched, interval, memory_when, memory_interval, before = heapq.heappop(due)
            if not watched.pid:
                continue
            written = watched.capture.trim()
            if now >= memory_when:
                watched.looked_peak = max(watched.looked_peak, resident_peak(watched.pid))
                memory_interval = min(memory_interval * 2, _LONGEST_MEMORY_INTERVAL)
                memory_when = now + memory_interval / 2
            if interval == _FIRST_LOOK:
                watched.outlived_first_look()
            interval = min(interval * 2, _LONGEST_INTERVAL)
            pause = _WRITING_INTERVAL if written - before > KEPT_BYTES else interval
            heapq.heappush(due, (now + pause, next(self._numbers), watched, interval, memory_when, memory_interval, written))
        if now >= self._next_tidy:
            self._next_tidy = now + _TIDY_INTERVAL
            self._tidy()
        # Not more often than every 10 ms, however many short attempts there are.
        self._timer = self._loop.call_at(max(due[0][0], now + _FIRST_LOOK), self._look) if due else None
