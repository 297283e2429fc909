"""What the README's journal tracker says of itself: a crash in the middle of a commit leaves the commits before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import readme_examples
from tracker_records import kept, run_added, whole

from daggyr_server.trackers.base import Tracker, TrackerError


def journal(path: Path) -> Tracker:
    made = readme_examples.module(readme_examples.TRACKERS, "daggyr_journal").JournalTracker(f"journal:{path}")
    assert isinstance(made, Tracker)
    return made


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.99])
async def test_HalfACommitIsAsIfItHadNotBeen(tmp_path: Path, left: float) -> None:
    path = tmp_path / "journal"
    tracker = journal(path)
    await tracker.open()
    await tracker.commit([run_added(1), kept(0, b"whole")])
    before = len(contents(path))
    await tracker.commit([run_added(2), kept(5, b"half")])
    await tracker.close()
    whole_length = len(contents(path))
    path.write_bytes(contents(path)[: before + int((whole_length - before) * left)])
    for run_id in (2, 3):  # and what is written after it is read again
        again = journal(path)
        assert (await again.open()).next_run_id == run_id
        assert await whole(again) == [(0, b"whole")]
        await again.commit([run_added(run_id)])
        await again.close()


async def test_AfterClosingItTakesNothing(tmp_path: Path) -> None:
    tracker = journal(tmp_path / "journal")
    await tracker.open()
    await tracker.close()
    with pytest.raises(TrackerError, match="is closed"):
        await tracker.commit([run_added(1)])


def contents(path: Path) -> bytes:
    return path.read_bytes()
