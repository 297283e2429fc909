"""Taking ended runs away, a few hundred together and a slice at a time, so that everybody else has turns in between.

The API calls the one `Deletions` through `Requests`. Half a run is of no use to anybody: a deletion that has begun goes on if its
caller goes away, and at the next start if the coordinator ends. A run that has not ended is never taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from daggyr_server.core.stored import RunFilter
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.ended import Reader
from daggyr_server.driver.errors import Refused
from daggyr_server.trackers.base import Tracker, TrackerError

log = logging.getLogger(__name__)

DELETED_ROWS = 2_000  # in one call of the tracker: commits wait for the slice that is under way
RUNS_AT_ONCE = 250  # that are looked at, and taken away, together


T = TypeVar("T")


class Deletions:
    """The deletions of one coordinator. `close` cancels those that are under way."""

    def __init__(self, tracker: Tracker, reader: Reader, changes: Changes) -> None:
        self._tracker = tracker
        self._reader = reader
        self._changes = changes
        self._tasks: set[asyncio.Task[Any]] = set()

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
        wanted = RunFilter(ended_before=before)
        while rows := await self._tracker.rows(before=newest, limit=RUNS_AT_ONCE, wanted=wanted):
            newest = rows[-1].run_id
            ended = [row.run_id for row in rows if row.state.has_ended and row.stop_time is not None and row.stop_time < before]
            if limit and len(ended) > limit - deleted:
                del ended[limit - deleted :]
                newest = ended[-1]
            if ended:
                deleted += await asyncio.shield(self._begin(self._delete_ended(ended), f"deleting {len(ended)} runs"))
            if limit and deleted >= limit:
                return deleted, newest
            await asyncio.sleep(0)
        return deleted, None

    def go_on(self, run_ids: Sequence[int]) -> None:
        """Go on with the runs that an earlier coordinator had begun to delete."""
        self._begin(self._delete_begun(run_ids), "deleting")

    async def close(self) -> None:
        """Cancel what is under way, and wait until it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _delete_and_scrub(self, run_id: int) -> None:
        await self._delete([run_id])
        await self._tracker.scrub()

    async def _delete_ended(self, run_ids: Sequence[int]) -> int:
        """Take runs away, all that still have ended. Returns how many they were."""
        # A run that somebody looks at may be large, and nobody is to wait for it on behalf of the others.
        alone = [run_id for run_id in run_ids if self._reader.is_awaited(run_id)]
        together = [run_id for run_id in run_ids if run_id not in alone]
        deleted = 0
        try:
            await self._delete(together)
            deleted = len(together)
        except Refused:  # Somebody has queued one of them again.
            alone = list(run_ids)
        for run_id in alone:
            with contextlib.suppress(Refused):
                await self._delete([run_id])
                deleted += 1
        return deleted

    async def _delete(self, run_ids: Sequence[int]) -> None:
        async with self._reader.forgotten(run_ids):
            more = await self._tracker.delete(run_ids, DELETED_ROWS)
            for run_id in run_ids:
                self._changes.deleted(run_id)
        while more:
            await asyncio.sleep(0)
            more = await self._tracker.delete(run_ids, DELETED_ROWS)

    async def _delete_begun(self, run_ids: Sequence[int]) -> None:
        for first in range(0, len(run_ids), RUNS_AT_ONCE):
            some = run_ids[first : first + RUNS_AT_ONCE]
            try:
                await self._delete(some)
            except TrackerError as error:
                log.warning("what is left of deleted runs (%d and others) is deleted at the next start: %s", some[0], error)
        with contextlib.suppress(TrackerError):
            # Without any run, this only gives back room that was left before.
            while await self._tracker.delete([], DELETED_ROWS):
                await asyncio.sleep(0)
            await self._tracker.scrub()
