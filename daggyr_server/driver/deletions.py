"""Taking ended runs away, a slice at a time, so that everybody else has turns in between.

The API calls the one `Deletions` through `Requests`. Half a run is of no use to anybody: a deletion that has begun goes on if its
caller goes away, and at the next start if the coordinator ends. A run that has not ended is never taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from daggyr_server.driver.changes import Changes
from daggyr_server.driver.ended import Reader
from daggyr_server.driver.errors import Refused
from daggyr_server.trackers.base import Tracker, TrackerError

log = logging.getLogger(__name__)

DELETED_ROWS = 5_000  # in one call of the tracker
ROWS_AT_ONCE = 250  # runs that are read in one call, to find those that ended before a time


class Deletions:
    """The deletions of one coordinator. `close` cancels those that are under way."""

    def __init__(self, tracker: Tracker, reader: Reader, changes: Changes) -> None:
        self._tracker = tracker
        self._reader = reader
        self._changes = changes
        self._tasks: set[asyncio.Task[None]] = set()

    async def delete(self, run_id: int) -> None:
        """Take a run away that has ended; returns once it is gone, from the tracker's files too.

        Raises Refused, TrackerError, Closing.
        """
        await asyncio.shield(self._begin(self._delete_and_scrub(run_id), f"deleting run {run_id}"))

    async def prune(self, before: float, *, limit: int = 0, newest: int | None = None) -> tuple[int, int | None]:
        """Take runs away that ended before a time, in seconds since the epoch, and whose ids are below `newest`.

        Returns how many, and below which id to go on if `limit` of them are gone and there may be more. A `limit` of 0 is none.
        Raises TrackerError, Closing.
        """
        try:
            return await self._delete_before(before, limit, newest)
        finally:
            await asyncio.shield(self._begin(self._tracker.scrub(), "scrubbing"))

    async def _delete_before(self, before: float, limit: int, newest: int | None) -> tuple[int, int | None]:
        deleted = 0
        while rows := await self._tracker.rows(before=newest, limit=ROWS_AT_ONCE):
            newest = rows[-1].run_id
            for row in rows:
                if row.state.has_ended and row.stop_time is not None and row.stop_time < before:
                    with contextlib.suppress(Refused):  # Somebody has queued it again, so it has not ended.
                        await asyncio.shield(self._begin(self._delete(row.run_id), f"deleting run {row.run_id}"))
                        deleted += 1
                if limit and deleted >= limit:
                    return deleted, row.run_id
            await asyncio.sleep(0)
        return deleted, None

    def go_on(self, run_ids: Sequence[int]) -> None:
        """Go on with the runs that an earlier coordinator had begun to delete."""
        self._begin(self._delete_each(run_ids), "deleting")

    async def close(self) -> None:
        """Cancel what is under way, and wait until it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _delete_and_scrub(self, run_id: int) -> None:
        await self._delete(run_id)
        await self._tracker.scrub()

    async def _delete(self, run_id: int) -> None:
        async with self._reader.forgotten(run_id):
            more = await self._tracker.delete(run_id, DELETED_ROWS)
            self._changes.deleted(run_id)
        while more:
            await asyncio.sleep(0)
            more = await self._tracker.delete(run_id, DELETED_ROWS)

    async def _delete_each(self, run_ids: Sequence[int]) -> None:
        for run_id in run_ids:
            try:
                await self._delete(run_id)
            except TrackerError as error:
                log.warning("what is left of run %d is deleted at the next start: %s", run_id, error)
        with contextlib.suppress(TrackerError):
            # There is no run 0, so this only gives back room that was left before.
            while await self._tracker.delete(0, DELETED_ROWS):
                await asyncio.sleep(0)
            await self._tracker.scrub()
