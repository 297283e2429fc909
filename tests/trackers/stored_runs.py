"""Loads runs from a tracker, for the tests of what their records leave."""

from __future__ import annotations

from collections.abc import Sequence

from tracker_kinds import OpenAgain, TrackerKind

from daggyr_server.core.records import Record
from daggyr_server.core.stored import StoredRun
from daggyr_server.trackers.base import Tracker


async def load(tracker: Tracker, run_id: int = 1) -> StoredRun:
    stored = await tracker.load(run_id)
    assert stored is not None
    return stored


async def after(kind: TrackerKind, open_again: OpenAgain, *commits: Sequence[Record]) -> StoredRun:
    """Return run 1 as `commits` left it. A durable tracker gives the next coordinator the same."""
    tracker, _ = await open_again()
    for records in commits:
        await tracker.commit(records)
    stored = await load(tracker)
    await tracker.close()
    if kind.durable:
        assert await load((await open_again())[0]) == stored
    return stored
