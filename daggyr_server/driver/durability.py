"""What is durable by now, and what is not: trouble with the tracker, and the runs of which more is decided than is durable.

The loop tells what it has decided and committed. Readers wait here until what they are about to show is durable, and the metrics
read the counts. Nothing here calls a tracker.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable

# Seconds. From a commit in memory, over one that a disk of flash or of platters makes durable, to one that waits in trouble.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Durability:
    """What is durable of one coordinator's state. Public attributes are for reading."""

    def __init__(self) -> None:
        self.trouble: str | None = None  # why nothing can be made durable at the moment
        self.records = 0  # that were committed since the start
        self.commits = [0] * (len(BOUNDS) + 1)  # [i] counts those that took (BOUNDS[i-1], BOUNDS[i]]; the last, longer ones
        self.commit_seconds = 0.0  # of all commits together
        self._unsettled: set[int] = set()  # runs of which more is decided than is durable
        self._settled = asyncio.Event()  # made anew each time that readers have been woken

    def decided(self, run_ids: Iterable[int]) -> None:
        """The machine has changed these runs, and no reader may see that before it is durable."""
        self._unsettled.update(run_ids)

    def committed(self, records: int, seconds: float) -> None:
        """A commit of this many records has succeeded and took that long."""
        self.commits[bisect_left(BOUNDS, seconds)] += 1
        self.commit_seconds += seconds
        self.records += records
        self.trouble = None

    def all_settled(self) -> None:
        """All that was decided is durable."""
        if self._unsettled:
            self._unsettled.clear()
            self._settled.set()
            self._settled = asyncio.Event()

    def in_trouble(self, trouble: str) -> None:
        """A commit did not succeed. Readers that are not patient are woken, because they would wait for as long as it lasts."""
        self.trouble = trouble
        self._settled.set()
        self._settled = asyncio.Event()

    def mended(self) -> None:
        """What was told by `in_trouble` is over, though nothing was committed."""
        self.trouble = None

    async def settled(self, run_id: int, *, patient: bool = False) -> None:
        """Return once all that is to be seen of a run is durable; in `trouble` at once, unless `patient`.

        What is read before the next `await` is settled.
        """
        while run_id in self._unsettled and (patient or self.trouble is None):
            await self._settled.wait()
