"""Looks at attempts while they run: keeps their output files small, sees to their timeouts and notes their peak memory.

Executions add themselves when their process has started, and are dropped once it has ended. Each is looked at 10 ms after its
start, then at doubling intervals of up to half a second, and sooner while it writes much or its timeout is near. A look is two
fstat(2) calls. To read the memory of a process costs more, and is done at intervals that go on doubling up to 8 s. Short
attempts end before their first look; the start of the others is told at that moment. Nothing here ends a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable
from typing import Protocol

from daggyr.attempts.kept import KEPT_BYTES

from .usage import resident_peak

_FIRST_LOOK = 0.01  # seconds
_LONGEST_INTERVAL = 0.5
_LONGEST_MEMORY_INTERVAL = 8.0
_WRITING_INTERVAL = 0.05  # while more than is kept is written between two looks
_NEVER = float("inf")


class Watched(Protocol):
    """What `watch` needs of an attempt that runs."""

    pid: int  # 0 once it has ended
    deadline: float  # of its timeout, by the event loop's clock; it is looked at then
    looked_peak: int  # bytes; `watch` sets it

    def look(self, *, first: bool) -> int:
        """Do what is due at each look. Returns the bytes written so far."""


class Watch:
    """The looks at all attempts that run, with one timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._looked: list[Callable[[], None]] = []
        self._numbers = itertools.count()
        # (when, tie-breaker, whom, interval, when to read the memory, its interval, bytes written at the last look)
        self._due: list[tuple[float, int, Watched, float, float, float, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER

    def after_each_look(self, call: Callable[[], None]) -> None:
        """Call `call` after each look: 10 ms after any start, and every half second while anything runs."""
        self._looked.append(call)

    def add(self, watched: Watched) -> None:
        """Look at an attempt from now on until its pid is 0. Any thread may call this."""
        when = self._loop.time() + _FIRST_LOOK
        heapq.heappush(self._due, (when, next(self._numbers), watched, _FIRST_LOOK, 0.0, _FIRST_LOOK, 0))
        if when < self._timer_at - _FIRST_LOOK / 2:
            with contextlib.suppress(RuntimeError):  # The event loop is closed, because the agent has left.
                self._loop.call_soon_threadsafe(self._arm)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due.clear()

    def _arm(self) -> None:
        if not self._due:
            return
        when = self._due[0][0]
        if when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer_at = _NEVER  # Whoever is added from here on arms the timer again.
        self._timer = None
        now = self._loop.time()
        due = self._due
        while due:
            entry = heapq.heappop(due)
            when, _, watched, interval, memory_when, memory_interval, before = entry
            if when > now:
                heapq.heappush(due, entry)
                break
            if not watched.pid:
                continue
            written = watched.look(first=interval == _FIRST_LOOK)
            if now >= memory_when:
                peak = resident_peak(watched.pid)
                if watched.pid:  # The process has not been reaped, so the number was not another's.
                    watched.looked_peak = max(watched.looked_peak, peak)
                memory_interval = min(memory_interval * 2, _LONGEST_MEMORY_INTERVAL)
                memory_when = now + memory_interval / 2
            interval = min(interval * 2, _LONGEST_INTERVAL)
            pause = _WRITING_INTERVAL if written - before > KEPT_BYTES else interval
            next_look = min(now + pause, max(watched.deadline, now + _FIRST_LOOK))
            heapq.heappush(due, (next_look, next(self._numbers), watched, interval, memory_when, memory_interval, written))
        for call in self._looked:
            call()
        if due:
            # The timer goes off every 10 ms at most, however many short attempts there are.
            when = max(due[0][0], now + _FIRST_LOOK)
            if when < self._timer_at:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer_at = when
                self._timer = self._loop.call_at(when, self._look)
