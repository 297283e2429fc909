"""The file of a sqlite tracker as other programs see it, for the tests of what only this tracker can meet."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tracker_kinds import WAIT

from daggyr_server.trackers.base import Tracker, TrackerError
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker


@contextlib.asynccontextmanager
async def opened(file: Path, wait: float = WAIT) -> AsyncIterator[Tracker]:
    tracker = SqliteTracker(f"sqlite:{file}", wait=wait)
    try:
        await tracker.open()
        yield tracker
    finally:
        await tracker.close()


@contextlib.contextmanager
def database(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection of another program that looks into the file."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        yield connection


def contents(file: Path) -> dict[str, bytes]:
    """Return what stands in the file and in its log, without the index of the log that sqlite makes."""
    found = {path.name: path.read_bytes() for path in file.parent.glob(f"{file.name}*") if path.is_file()}
    return {name: data for name, data in found.items() if data and not name.endswith("-shm")}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def copy_as_a_crash_leaves_it(file: Path, copy: Path) -> None:
    copy.parent.mkdir()
    for ending in ("", "-wal"):
        copy.with_name(copy.name + ending).write_bytes(file.with_name(file.name + ending).read_bytes())


async def refused(file: Path, match: str) -> None:
    """The tracker refuses the file with these words and changes nothing of it."""
    before = contents(file)
    with pytest.raises(TrackerError, match=match) as raised:
        async with opened(file):
            pass
    assert str(file) in str(raised.value)
    assert contents(file) == before
