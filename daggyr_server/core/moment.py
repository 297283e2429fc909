"""Now, by two clocks: the one that the machine waits by, and the one that it writes down.

Whoever calls the machine reads both clocks of its host at once and gives the moment with the events (`driver/clocks.py`). A wall
clock may be set, forwards or back, and the machine must neither wait longer nor hurry because of that: all that it compares or
adds up is steady, and wall times go into records only. Nothing here looks at a clock.
"""

from __future__ import annotations

from typing import NamedTuple


class Moment(NamedTuple):
    """A reading of both clocks, in seconds."""

    steady: float  # since some moment that means nothing outside this process; it never goes back
    wall: float  # since the epoch; it may jump

    def wall_at(self, steady: float) -> float:
        """What the wall clock shows, or showed, at a steady time, if nobody sets it: for people."""
        return self.wall + (steady - self.steady)

    def steady_at(self, wall: float) -> float:
        """The steady time of what happened at a wall time, such as one that was recorded before a restart. It is never in the
        future, because a clock that was set back meanwhile would make it so."""
        return self.steady - max(0.0, self.wall - wall)
