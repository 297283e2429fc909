"""What is durable by now, and what is not: trouble with the tracker, and the runs of which more is decided than is durable.

The loop tells what it has decided and committed. Readers wait here until what they are about to show is durable, and the metrics
read the counts. Nothing here calls a tracker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from daggyr_server.driver.durations import Durations


class Durability:
    """Of one coordinator. Public attributes are for reading."""

    def __init__(self) -> None:
        self.trouble: str | None = None  # why nothing can be made durable at the moment
        self.records = 0  # committed since the start
        self.commits = Durations()
        self._unsettled: set[int] = set()  # runs of which more is decided than is durable
        self._settled = asyncio.Event()  # made anew each time that readers have been woken

    def decided(self, run_ids: Iterable[int]) -> None:
        """The machine has changed these runs, and no reader may see that before it is durable."""
        self._unsettled.update(run_ids)

    def committed(self, records: int, seconds: float) -> None:
        """A commit of this many records has succeeded and took that long."""
        self.commits.add(seconds)
        self.records += records
        self.trouble = None

    def all_settled(self) -> None:
        """All that was decided is durable."""
        if self._unsettled:
            self._unsettled.clear()
            self._wake_readers()

    def in_trouble(self, trouble: str) -> None:
        """A commit did not succeed. Readers that are not patient are woken, because they would wait for as long as it lasts."""
        self.trouble = trouble
        self._wake_readers()

    async def settled(self, run_id: int, *, patient: bool = False) -> None:
        """Return once all that is to be seen of a run is durable; in `trouble` at once, unless `patient`.

        What is read before the next `await` is settled.
        """
        while run_id in self._unsettled and (patient or self.trouble is None):
            await self._settled.wait()

    def _wake_readers(self) -> None:
        self._settled.set()
        self._settled = asyncio.Event()
