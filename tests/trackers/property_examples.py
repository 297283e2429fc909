"""A tracker for the examples that Hypothesis makes of a property, opened again now and then instead of for each one.

Opening one takes longer than an example does. Examples do not see each other, because each has runs of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self

from tracker_kinds import TrackerKind

from daggyr_server.trackers.base import Tracker

EXAMPLES_A_TRACKER = 10


class Examples:
    """Each example calls `run`; it finds `tracker` open, and takes its run ids from `run_id`."""

    tracker: Tracker

    def __init__(self, kind: TrackerKind, folder: Path) -> None:
        self._kind = kind
        self._folder = folder
        self._address = ""
        self._runner = asyncio.Runner()
        self._count = 0
        self._run_ids = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._runner:
            if self._count:
                self._runner.run(self.tracker.close())

    def run(self, example: Coroutine[Any, Any, None]) -> None:
        if self._count % EXAMPLES_A_TRACKER == 0:
            self._runner.run(self._begin_anew())
        self._count += 1
        self._runner.run(example)

    def run_id(self) -> int:
        """One that no other run of the tracker has."""
        self._run_ids += 1
        return self._run_ids

    async def open_again(self) -> None:
        """As the next coordinator does."""
        await self.tracker.close()
        self.tracker = self._kind.make(self._address)
        await self.tracker.open()

    async def _begin_anew(self) -> None:
        if self._count:
            await self.tracker.close()
        folder = self._folder / f"examples-{self._count}"
        folder.mkdir()
        self._address = self._kind.address(folder)
        self.tracker = self._kind.make(self._address)
        await self.tracker.open()
