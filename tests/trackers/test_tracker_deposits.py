"""Deposits: a large document is written before the commit that it belongs to, and is nobody's until then. Others go on meanwhile.

Trackers that wait for no disk take none.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import psycopg
import pytest
from tracker_kinds import DATABASES, OpenAgain, TrackerKind
from tracker_records import kept, recorded, run_added

from daggyr_server.core.records import RunAdded, RunEdited, TasksGenerated
from daggyr_server.trackers.base import LostTracker, Tracker
from daggyr_server.trackers.pieces import DOCUMENT_PIECE_BYTES

LARGE = bytes(range(256)) * (5 * DOCUMENT_PIECE_BYTES // 256) + b"the end"
LIMIT = 4

in_databases = pytest.mark.parametrize("kind", DATABASES, ids=lambda kind: kind.name, indirect=True)


def run_of(deposit: int, run_id: int = 1) -> RunAdded:
    return RunAdded(run_id, f"request-{run_id}", {}, "default", 1.0, b"", deposit)


async def deposited(tracker: Tracker, document: bytes = LARGE) -> int:
    number = tracker.new_deposit()
    await tracker.deposit(number, document)
    return number


async def discard(tracker: Tracker, number: int) -> int:
    """Discard all of a deposit. Returns how many calls that took."""
    calls = 1
    while await tracker.discard(number, LIMIT):
        calls += 1
        assert calls < 100
    return calls


async def test_a_tracker_that_takes_none_has_none(kind: TrackerKind, tracker: Tracker) -> None:
    assert (tracker.new_deposit() > 0) == (kind in DATABASES)
    assert await tracker.deposits() == []


@in_databases
async def test_the_commit_that_names_it_makes_it_the_document(open_again: OpenAgain) -> None:
    tracker, _ = await open_again()
    specification, edit, replaced = await deposited(tracker), await deposited(tracker, b"edit"), await deposited(tracker, b"gone")
    printed = await deposited(tracker, b"printed")
    assert await tracker.deposits() == [specification, edit, replaced, printed]
    await tracker.commit([run_of(specification), run_added(2, b"other")])
    assert await tracker.document(1) == LARGE
    await tracker.commit([kept(0, b"printed"), recorded(), TasksGenerated(1, 0, 1, 2, printed)])
    await tracker.commit([RunEdited(1, 3, b"", {}, "p", (2,), 2.0, deposit=edit, replaced_deposit=replaced)])
    assert await tracker.deposits() == []
    stored = await tracker.load(1)
    assert stored is not None and stored.replaced == {3: b"gone"}
    await tracker.close()
    tracker, _ = await open_again()
    assert await tracker.load(1) == stored
    assert [await tracker.document(1, revision) for revision in (0, 2, 3)] == [LARGE, b"printed", b"edit"]
    assert await tracker.document(2) == b"other"


@in_databases
async def test_what_no_commit_has_named_is_told_at_the_next_start_and_can_be_discarded(open_again: OpenAgain) -> None:
    tracker, _ = await open_again()
    named, nobodys = await deposited(tracker), await deposited(tracker)
    await tracker.commit([run_of(named)])
    await tracker.close()
    tracker, _ = await open_again()
    assert await tracker.deposits() == [nobodys]
    assert tracker.new_deposit() not in (named, nobodys)
    assert await discard(tracker, nobodys) > 1, "not in slices"
    assert await tracker.deposits() == []
    assert await discard(tracker, named) == 1
    assert await tracker.document(1) == LARGE


@in_databases
async def test_it_goes_with_its_run(tracker: Tracker) -> None:
    first, second = await deposited(tracker), await deposited(tracker)
    await tracker.commit([run_of(first), run_of(second, 2)])
    while await tracker.delete([1], LIMIT):
        assert await tracker.document(1) is None
    assert await tracker.deposits() == []
    assert await tracker.document(2) == LARGE
    while await tracker.delete([2], 1_000):
        pass
    assert await tracker.deposits() == []
    await tracker.commit([run_added(3)])
    assert await tracker.document(3) == b"{}"


@in_databases
async def test_commits_come_between_its_pieces(tracker: Tracker) -> None:
    """Nobody who commits waits for more than a piece."""
    await tracker.commit([run_added(1)])
    writing = asyncio.create_task(tracker.deposit(tracker.new_deposit(), LARGE * 4))
    between = 0
    while not writing.done():
        await tracker.commit([recorded(number=between)])
        between += 1
    await writing
    assert between >= 20
    stored = await tracker.load(1)
    assert stored is not None and len(stored.tasks.numbers) == between


@in_databases
async def test_a_commit_that_fails_names_none(tracker: Tracker) -> None:
    number = await deposited(tracker)
    await tracker.commit([run_added(1)])
    with pytest.raises(Exception, match=r"(?i)unique"):
        await tracker.commit([run_of(number, 2), run_added(1)])
    assert await tracker.deposits() == [number]
    await tracker.commit([run_of(number, 2)])
    assert await tracker.document(2) == LARGE


@in_databases
async def test_an_older_coordinator_writes_none(kind: TrackerKind, open_again: OpenAgain, tmp_path: Path) -> None:
    tracker, _ = await open_again()
    number = await deposited(tracker)
    take_over(kind.address(tmp_path))
    with pytest.raises(LostTracker):
        await tracker.deposit(tracker.new_deposit(), LARGE)
    with pytest.raises(LostTracker):
        await tracker.discard(number, LIMIT)


def take_over(address: str) -> None:
    """Take the next epoch, as another coordinator would that got past the lock."""
    if address.startswith("sqlite:"):
        with contextlib.closing(sqlite3.connect(address.removeprefix("sqlite:"))) as file:
            file.execute("UPDATE tracker SET epoch = epoch + 1")
            file.commit()
        return
    with psycopg.connect(address) as database:
        database.execute("UPDATE daggyr.tracker SET epoch = epoch + 1")
