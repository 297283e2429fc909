"""A run is deleted in slices, everything of it and nothing of another run, while commits go on."""

from __future__ import annotations

import asyncio

import pytest
from tracker_kinds import OpenAgain, TrackerKind
from tracker_records import assigned, ended, kept, moved, recorded, run_added, run_moved, whole

from daggyr.v1.task_pb2 import STDERR
from daggyr_server.core.records import Record, RunEdited, TasksGenerated
from daggyr_server.core.states import Outcome, State
from daggyr_server.trackers.base import Tracker


def everything(run_id: int, tasks: int = 30) -> list[Record]:
    """A run with rows of every kind."""
    numbers = range(tasks)
    return [
        run_added(run_id, b"document" * 300_000),
        assigned(*numbers, run_id=run_id),
        *(kept(0, b"output" * number, number=number, run_id=run_id) for number in numbers),
        *(kept(3, b"errors", number=number, run_id=run_id, stream=STDERR) for number in numbers),
        *(ended(Outcome.SUCCEEDED, State.COMPLETED, number=number, run_id=run_id) for number in numbers),
        TasksGenerated(run_id, 1, 1, 2),
        RunEdited(run_id, 3, b"edit", {}, "pool", (), 3.0),
        moved(State.QUEUED, *numbers, attempts=1, run_id=run_id),
        run_moved(State.RUNNING, run_id=run_id),
        run_moved(State.COMPLETED, run_id=run_id),
    ]


async def is_unknown(tracker: Tracker, run_id: int) -> None:
    assert await tracker.load(run_id) is None
    assert await tracker.document(run_id) is None
    assert await tracker.attempts(run_id, 0) == []
    assert await whole(tracker, run_id=run_id, number=2) == []
    assert await tracker.history(run_id, None) == await tracker.history(run_id, 0) == []
    assert await tracker.find_request(f"request-{run_id}") is None
    assert run_id not in [row.run_id for row in await tracker.rows(before=None, limit=100)]
    assert run_id not in await tracker.unfinished()


async def delete(tracker: Tracker, run_id: int, limit: int) -> int:
    """Delete a run. Returns how many calls that took."""
    calls = 1
    while await tracker.delete([run_id], limit):
        await is_unknown(tracker, run_id)
        calls += 1
        assert calls < 3_000
    await is_unknown(tracker, run_id)
    return calls


@pytest.mark.parametrize(("limit", "tasks"), [(1, 6), (7, 30), (100_000, 30)])
async def test_everything_of_one_run_goes_and_nothing_of_another(tracker: Tracker, limit: int, tasks: int) -> None:
    await tracker.commit([record for run_id in (1, 2, 3) for record in everything(run_id, tasks)])
    others = [await tracker.load(run_id) for run_id in (1, 3)]
    await delete(tracker, 2, limit)
    assert await tracker.deleting() == []
    assert [await tracker.load(run_id) for run_id in (1, 3)] == others
    for run_id in (1, 3):
        assert await whole(tracker, run_id=run_id, number=2) == [(0, b"outputoutput")]
        assert len(await tracker.attempts(run_id, 2)) == 1
        assert len(await tracker.history(run_id, 2)) == 1
        assert await tracker.find_request(f"request-{run_id}") == run_id


async def test_commits_go_on_while_a_run_is_deleted(tracker: Tracker) -> None:
    await tracker.commit([*everything(1, tasks=300), run_added(2)])
    deleting = asyncio.create_task(delete(tracker, 1, 20))
    number = 0
    while not deleting.done() and number < 1_000:
        number += 1
        await tracker.commit([recorded(run_id=2, number=number), kept(0, b"a", run_id=2, number=number)])
    await deleting
    stored = await tracker.load(2)
    assert stored is not None
    assert list(stored.tasks.numbers) == list(range(1, number + 1))


async def test_an_id_is_never_used_again_and_a_request_id_may_be(kind: TrackerKind, open_again: OpenAgain) -> None:
    tracker, opened = await open_again()
    newest = opened.next_run_id + 3
    await tracker.commit([run_added(newest, request_id="mine")])
    await delete(tracker, newest, 100)
    await tracker.commit([run_added(newest + 1, request_id="mine")])
    assert await tracker.find_request("mine") == newest + 1
    await delete(tracker, newest + 1, 100)
    await tracker.close()
    if kind.durable:
        tracker, opened = await open_again()
        assert opened.next_run_id > newest + 1
        await is_unknown(tracker, newest)


async def test_a_deletion_that_was_cut_short_is_known_to_the_next_coordinator(kind: TrackerKind, open_again: OpenAgain) -> None:
    tracker, _ = await open_again()
    await tracker.commit([*everything(1), *everything(2)])
    more = await tracker.delete([1], 5)
    await tracker.close()
    if not kind.durable:
        assert not more, "what is left in memory is nobody's"
        return
    tracker, _ = await open_again()
    assert await tracker.deleting() == ([1] if more else [])
    await delete(tracker, 1, 1_000)
    assert await tracker.deleting() == []
    assert await tracker.load(2) is not None


@pytest.mark.parametrize("limit", [9, 100_000])
async def test_many_runs_go_together(kind: TrackerKind, open_again: OpenAgain, limit: int) -> None:
    """A coordinator that is killed in the middle leaves each of them whole or gone: none is known from the first call on."""
    tracker, _ = await open_again()
    await tracker.commit([record for run_id in range(1, 9) for record in everything(run_id, tasks=5)])
    others = {run_id: await tracker.load(run_id) for run_id in (1, 5, 8)}
    gone = [7, 2, 3, 4, 6, 99]
    more = await tracker.delete(gone, limit)
    for run_id in gone:
        await is_unknown(tracker, run_id)
    if kind.durable:
        await tracker.close()
        tracker, _ = await open_again()
        assert await tracker.deleting() == ([2, 3, 4, 6, 7] if more else [])
    calls = 0
    while more:
        more = await tracker.delete(gone, limit)
        calls += 1
        assert calls < 3_000
    assert await tracker.deleting() == []
    for run_id in gone:
        await is_unknown(tracker, run_id)
    assert {run_id: await tracker.load(run_id) for run_id in others} == others
    assert [row.run_id for row in await tracker.rows(before=None, limit=100)] == [8, 5, 1]
    assert await whole(tracker, run_id=5, number=2) == [(0, b"outputoutput")]


async def test_without_any_run_only_room_is_given_back(tracker: Tracker) -> None:
    await tracker.commit(everything(1))
    while await tracker.delete([], 10):
        pass
    assert await tracker.load(1) is not None
