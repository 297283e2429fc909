"""The pauses between tries of what has failed: each twice as long as the one before it, up to a longest one.

Whoever tries something again and again asks `next` after each failure, and says `reset` once a try has worked. Nothing here
sleeps, and nothing here gives up: how long something is tried is for the caller to say.
"""

from __future__ import annotations

import random


class Backoff:
    """One series of pauses, in seconds."""

    __slots__ = ("_jitter", "_longest", "_pause", "_shortest")

    def __init__(self, shortest: float, longest: float, *, jitter: float = 0.0) -> None:
        """With `jitter`, up to that part of each pause is left out at random, so that many who wait do not all come at once."""
        self._shortest = shortest
        self._longest = longest
        self._jitter = jitter
        self._pause = shortest

    def reset(self) -> None:
        """A try has worked: the next failure begins a new series."""
        self._pause = self._shortest

    def next(self, longest: float | None = None) -> float:
        """How long to pause before the next try; `longest` stands in for the series' own, this once."""
        pause = min(self._pause, self._longest if longest is None else longest)
        self._pause = 2 * pause
        return pause * random.uniform(1 - self._jitter, 1.0) if self._jitter else pause
