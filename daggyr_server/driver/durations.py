"""How long something took, each time: a histogram in plain numbers, for the metrics to read.

The driver tells one of each commit. It costs a search among a few bounds, allocates nothing, and knows no clock.
"""

from __future__ import annotations

from bisect import bisect_left

# Seconds. From a commit in memory, over one that a disk of flash or of platters makes durable, to one that waits in trouble.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Durations:
    """Public attributes are for reading: `counts` has those up to each of BOUNDS and above the one before, then the others."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0  # all together

    def add(self, seconds: float) -> None:
        """It took this long."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
