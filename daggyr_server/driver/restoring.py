"""Brings the runs that had not ended back after a start, one after the other, while the server answers already.

The loop makes the one `MissingRuns`. Until all runs are back, executors are told nothing, and what they tell waits, so that
nothing is placed beside attempts that are not known yet. Readers ask here whether a run is missing only because it is not back so
far. A tracker that cannot be read for a while is asked again, for as long as that takes. Nothing here changes the machine: it
asks the loop to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from daggyr.backoff import Backoff
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.driver.clocks import Clock
from daggyr_server.driver.durability import Durability
from daggyr_server.driver.errors import BeingRestored
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.inbox import Inbox
from daggyr_server.driver.lives import Lives
from daggyr_server.driver.recovery import recovered, take_printed
from daggyr_server.trackers.base import DamagedRun, LostTracker, Tracker, TrackerError

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that a request waits for its run to be back
_PAUSES = (0.1, 5.0)  # seconds before a tracker that could not be read is read again: doubled from the first to the last

T = TypeVar("T")


class MissingRuns:
    """The runs of one coordinator that are not back so far. All methods belong to one event loop."""

    def __init__(
        self,
        tracker: Tracker,
        inbox: Inbox,
        generators: Generators,
        lives: Lives,
        durability: Durability,
        clock: Clock,
        keep: Callable[[], Keeping],
        damaged: Callable[[DamagedRun], None],
    ) -> None:
        """`keep` makes the lists of what tasks execute. `damaged` is told of runs that
        make no sense, and that therefore do not come back."""
        self._tracker = tracker
        self._inbox = inbox
        self._generators = generators
        self._lives = lives
        self._durability = durability
        self._clock = clock
        self._keep = keep
        self._damaged = damaged
        self._missing: dict[int, asyncio.Event] = {}  # by run; set once it is back
        self._all = 0  # runs that there were to restore
        self.done = asyncio.Event()  # all are back, and executors know of their attempts

    @property
    def left(self) -> int:
        """How many runs are not back so far."""
        return len(self._missing)

    def words(self, run_id: int) -> str | None:
        """What to say of a run that is not back so far; None for all others."""
        if run_id not in self._missing:
            return None
        back = self._all - len(self._missing)
        return f"it is being restored, because the server has just started: {back:,} of {self._all:,} runs are back"

    async def back(self, run_id: int) -> None:
        """Return once a run is back that had to be restored. Raises BeingRestored if that takes longer than PATIENCE."""
        missing = self._missing.get(run_id)
        if missing is None:
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await missing.wait()
        except TimeoutError:
            raise BeingRestored(f"ask for run {run_id} again in a moment: {self.words(run_id)}") from None

    async def begin(self) -> list[int]:
        """Find out which runs are to be restored. Raises TrackerError."""
        found = await self._tracker.unfinished()
        self._missing = {run_id: asyncio.Event() for run_id in found}
        self._all = len(found)
        return found

    async def bring_back(self, run_id: int) -> None:
        """Give one run to the machine. Raises LostTracker, Closing."""
        try:
            found = await self._patiently(lambda: recovered(run_id, self._tracker, self._keep, self._clock()))
        except DamagedRun as damage:
            self._damaged(damage)
            found = None
        if found is not None:
            await self._patiently(lambda: take_printed(found.event.run, self._generators, self._tracker))
            self._lives.take_up(run_id, found.adopted)
            await self._inbox.ask(replace(found.event, ticket=object()))
        self._missing.pop(run_id).set()
        return

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """What `read` gives, however often the tracker has to be asked."""
        backoff: Backoff | None = None
        while True:
            try:
                found = await read()
                if backoff is not None:
                    self._durability.mended()
                    log.warning("runs can be restored again")
                return found
            except (DamagedRun, LostTracker):
                raise
            except TrackerError as error:
                self._durability.in_trouble(str(error))
                log.error("runs are restored once this is mended: %s", error)
                backoff = backoff or Backoff(*_PAUSES)
                await asyncio.sleep(backoff.next())
