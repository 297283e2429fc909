"""The last start of a tracker that a place where tasks run has seen, and when a coordinator is behind that.

Agents say it in their hello, SSH targets keep it in their fence, and a Slurm pool's directory keeps it in a file. The executors
ask `behind` before they take such a place into use. A tracker that lacks the start is an older copy, and what it takes for
queued may be done already. Nothing here reads or writes a place.
"""

from __future__ import annotations

from dataclasses import dataclass

from daggyr.lives import has_seen
from daggyr_server.executors.context import ExecutorContext


@dataclass(frozen=True, slots=True)
class SeenStart:
    """A start of a coordinator."""

    tracker_id: str  # empty: an earlier version of DaggyR has noted it, which told neither tracker nor life
    epoch: int
    life: int  # 0: the same


def behind(seen: SeenStart, context: ExecutorContext, who: str) -> str | None:
    """Why this coordinator's tracker must not use a place that has seen this start; None if it may. `who` names the place."""
    if seen.tracker_id not in ("", context.tracker_id):
        # Places on hosts keep their names through all lives of a tracker, and each life's starts are numbered above those before.
        if seen.epoch <= context.epoch:
            return None
        return (
            f"this server's tracker was restored since as another life of itself: {who} has seen start {seen.epoch} of that one, "
            f"and this is start {context.epoch}. Stop the one of the two servers that is out of date; if that is the other one, "
            "make this tracker another life once more: daggyr-server restore --tracker TRACKER"
        )
    if seen.epoch > context.epoch:
        how = f"which this copy has not reached: it is at start {context.epoch}"
    elif seen.life and not has_seen(context.lives, seen.epoch, seen.life):
        how = "which was another one than this copy's: both went on by themselves since"
    else:
        return None
    return (
        f"this server's tracker is an older copy of itself: {who} has seen start {seen.epoch} of it, {how}. Stop the "
        "server; then bring the newest tracker back, or make this one another life: daggyr-server restore --tracker TRACKER"
    )
