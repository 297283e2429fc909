"""Which runs are known to be damaged in the tracker, for whoever asks about one and for the health check and the metrics.

The reader makes the one `KnownDamage` and notes what it meets; MissingRuns tells it of what it finds at the start. What is
damaged is found when it is read, because nobody looks for it. Nothing here reads a tracker.
"""

from __future__ import annotations

import asyncio
import logging

from daggyr_server.trackers.base import DamagedPart, DamagedRun

log = logging.getLogger(__name__)

MOST_DAMAGED = 1_000  # runs that are remembered; others are found again when somebody asks


class KnownDamage:
    """The damage that was found so far, by run. Its length is the number of runs."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()  # set when some was found or deleted; the health check clears it
        self._runs: dict[int, DamagedRun] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def whole(self, run_id: int) -> DamagedRun | None:
        """Why nothing of a run can be read, if that is known."""
        found = self._runs.get(run_id)
        return None if isinstance(found, DamagedPart) else found

    def part(self, run_id: int) -> DamagedRun | None:
        """Why some of a run that can be read cannot be shown, if that is known."""
        found = self._runs.get(run_id)
        return found if isinstance(found, DamagedPart) else None

    def note(self, damage: DamagedRun) -> None:
        """Take note of it. What is known of a whole run stays, whatever is found of a part."""
        if self.whole(damage.run_id) is not None:
            return
        if type(self._runs.pop(damage.run_id, None)) is not type(damage):
            log.error("%s", damage)
        while len(self._runs) >= MOST_DAMAGED:
            del self._runs[next(iter(self._runs))]
        self._runs[damage.run_id] = damage
        self.changed.set()

    def forget(self, run_id: int) -> None:
        """A run was deleted."""
        if self._runs.pop(run_id, None) is not None:
            self.changed.set()
