"""When a start that somebody has seen is one of a tracker's: the rule by which an older copy of a tracker is known.

Coordinators and agent sessions ask it. Nothing here knows where starts are kept.
"""

from __future__ import annotations

from collections.abc import Mapping


def has_seen(lives: Mapping[int, int], epoch: int, life: int) -> bool:
    """Whether the start of this epoch and life is one of the tracker with these `lives` of its last starts, by epoch.

    One before those that are told of counts as such: it is too long ago to say anything.
    """
    return lives.get(epoch) == life or epoch < min(lives, default=0)
