"""How long something took, each time it was done: a histogram in plain numbers, for the metrics to read.

`Durability` adds the duration of each commit. Adding is a search among a few bounds and allocates nothing. Nothing here knows a
clock.
"""

from __future__ import annotations

from bisect import bisect_left

# Seconds. From a commit in memory, over one that a disk of flash or of platters makes durable, to one that waits in trouble.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Durations:
    """`counts[i]` is the number of durations in (BOUNDS[i-1], BOUNDS[i]]; the last entry counts longer ones."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0  # the sum of all durations

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
