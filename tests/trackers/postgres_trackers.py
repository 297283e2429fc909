"""Opens postgres trackers and commits as the driver does, for the tests of what only these trackers can meet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from support.waiting import DEADLINE
from tracker_kinds import WAIT

from daggyr_server.core.records import Record
from daggyr_server.trackers.base import LostTracker, Tracker, TrackerError
from daggyr_server.trackers.sql.postgres.tracker import PostgresTracker


@contextlib.asynccontextmanager
async def opened(address: str, wait: float = WAIT) -> AsyncIterator[Tracker]:
    tracker = PostgresTracker(address, wait=wait)
    try:
        await tracker.open()
        yield tracker
    finally:
        await tracker.close()


async def run_ids(tracker: Tracker) -> list[int]:
    return [row.run_id for row in await tracker.rows(before=None, limit=100)][::-1]


async def until_kept(tracker: Tracker, records: Sequence[Record]) -> None:
    """Commit the same records again until they are durable, as the driver does."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await tracker.commit(records)
                return
            except LostTracker:
                raise
            except TrackerError:
                await asyncio.sleep(0.02)
