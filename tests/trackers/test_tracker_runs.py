"""Runs as their records left them: lists, states, graphs that grew, history, request ids."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stored_runs import after, load
from tracker_kinds import OpenAgain, TrackerKind
from tracker_records import DAY, assigned, ended, kept, moved, recorded, run_added, run_moved

from daggyr.v1.task_pb2 import STDERR
from daggyr_server.core.records import RunAdded, RunEdited, RunKillAsked, RunMoved, TasksGenerated, TasksStopped
from daggyr_server.core.states import Outcome, State
from daggyr_server.core.stored import Growth, RunFilter, RunRow
from daggyr_server.trackers.base import MAX_ROWS_BYTES, StateChange, Tracker
from daggyr_server.trackers.memory import tracker as memory_tracker
from daggyr_server.trackers.sql import tracker as sql_tracker


async def test_a_run_that_was_only_added(kind: TrackerKind, open_again: OpenAgain) -> None:
    added = RunAdded(7, "mine", {"a": "b", "ü": '"\n\x00'}, "slow", DAY + 0.000001, b'{"tasks": {}}')
    tracker, _ = await open_again()
    await tracker.commit([added])
    stored = await load(tracker, 7)
    assert stored.row == RunRow(7, "mine", added.tags, "slow", State.QUEUED, DAY + 0.000001, None, None, False, {})
    assert (stored.document, stored.growths, stored.in_flight) == (added.document, [], [])
    tasks = stored.tasks
    assert (len(tasks.numbers), len(tasks.states), len(tasks.attempts), len(tasks.failures), len(tasks.losses)) == (0, 0, 0, 0, 0)


async def test_a_run_that_is_not_known(tracker: Tracker) -> None:
    assert await tracker.load(1) is None
    assert await tracker.history(1, None) == await tracker.history(1, 0) == []
    assert await tracker.find_request("request-1") is None
    assert await tracker.rows(before=None, limit=10) == []
    assert await tracker.unfinished() == await tracker.deleting() == []
    assert await tracker.delete([1], 10) is False


# -- the run's own course ---------------------------------------------------------------------------------------------


async def test_a_run_keeps_its_first_start_and_its_last_stop(kind: TrackerKind, open_again: OpenAgain) -> None:
    counts = {State.COMPLETED: 2, State.ERRORED: 1}
    stored = await after(
        kind,
        open_again,
        [run_added(), run_moved(State.RUNNING, DAY + 1)],
        [run_moved(State.ERRORED, DAY + 2, counts=counts)],
        [run_moved(State.QUEUED, DAY + 3), run_moved(State.RUNNING, DAY + 4)],
    )
    row = stored.row
    assert (row.state, row.start_time, row.stop_time, row.task_states) == (State.RUNNING, DAY + 1, None, {})


async def test_a_run_keeps_for_how_long_it_ran(kind: TrackerKind, open_again: OpenAgain) -> None:
    """And since when it runs: a coordinator that is started again goes on from there."""
    moves = [
        (RunMoved(1, State.RUNNING, DAY + 1), (0.0, DAY + 1)),
        (RunMoved(1, State.ERRORED, DAY + 3, ran_seconds=1.75), (1.75, None)),
        (RunMoved(1, State.QUEUED, DAY + 10, ran_seconds=1.75), (1.75, None)),
        (RunMoved(1, State.RUNNING, DAY + 11, ran_seconds=1.75), (1.75, DAY + 11)),
        (RunMoved(1, State.COMPLETED, DAY - 99, ran_seconds=3.5), (3.5, None)),
    ]
    tracker, _ = await open_again()
    await tracker.commit([run_added()])
    for record, told in moves:
        await tracker.commit([record])
        row = (await load(tracker)).row
        assert (row.ran_seconds, row.running_time) == told
        assert await tracker.rows(before=None, limit=1) == [row]


async def test_a_run_that_ended_tells_how_many_tasks_are_in_each_state(kind: TrackerKind, open_again: OpenAgain) -> None:
    counts = {State.QUEUED: 3, State.COMPLETED: 1_000_000, State.KILLED: 1}
    stored = await after(
        kind,
        open_again,
        [run_added(), run_moved(State.RUNNING, DAY + 1.5)],
        [run_moved(State.KILLED, DAY + 2.5, counts=counts)],
    )
    row = stored.row
    assert (row.state, row.start_time, row.stop_time, row.task_states) == (State.KILLED, DAY + 1.5, DAY + 2.5, counts)


async def test_a_run_that_is_being_killed_says_so_until_it_is_queued_again(kind: TrackerKind, open_again: OpenAgain) -> None:
    tracker, _ = await open_again()
    await tracker.commit([run_added(), run_moved(State.RUNNING, DAY + 1)])
    await tracker.commit([RunKillAsked(1, DAY + 2)])
    assert (await load(tracker)).row.killing
    await tracker.commit([run_moved(State.KILLED, DAY + 3)])
    assert (await load(tracker)).row.killing
    await tracker.commit([run_moved(State.QUEUED, DAY + 4)])
    assert not (await load(tracker)).row.killing
    await tracker.commit([RunKillAsked(1, DAY + 5), run_moved(State.KILLED, DAY + 5), run_moved(State.QUEUED, DAY + 6)])
    assert not (await load(tracker)).row.killing
    assert [(change.time - DAY, change.number, change.state, change.reason) for change in await tracker.history(1, None)] == [
        (1, None, State.RUNNING, ""),
        (2, None, State.RUNNING, "kill"),
        (3, None, State.KILLED, ""),
        (4, None, State.QUEUED, ""),
        (5, None, State.QUEUED, "kill"),
        (5, None, State.KILLED, ""),
        (6, None, State.QUEUED, ""),
    ]


async def test_unfinished_runs_are_those_queued_or_running(tracker: Tracker) -> None:
    await tracker.commit([run_added(run_id) for run_id in (5, 1, 4, 2, 3)])
    assert await tracker.unfinished() == [1, 2, 3, 4, 5]
    await tracker.commit(
        [
            run_moved(State.RUNNING, run_id=1),
            run_moved(State.COMPLETED, run_id=2),
            run_moved(State.ERRORED, run_id=3),
            run_moved(State.KILLED, run_id=4),
        ]
    )
    assert await tracker.unfinished() == [1, 5]
    await tracker.commit([run_moved(State.QUEUED, run_id=4)])
    assert await tracker.unfinished() == [1, 4, 5]


async def test_rows_come_newest_first_page_by_page(tracker: Tracker) -> None:
    await tracker.commit([run_added(run_id) for run_id in range(1, 8)])
    await tracker.commit([run_moved(State.COMPLETED, run_id=6, counts={State.COMPLETED: 1})])
    assert [row.run_id for row in await tracker.rows(before=None, limit=3)] == [7, 6, 5]
    assert [row.run_id for row in await tracker.rows(before=5, limit=3)] == [4, 3, 2]
    assert [row.run_id for row in await tracker.rows(before=2, limit=3)] == [1]
    assert await tracker.rows(before=1, limit=3) == []
    rows = await tracker.rows(before=None, limit=100)
    assert rows == [(await load(tracker, row.run_id)).row for row in rows]


STATES = {1: State.QUEUED, 2: State.RUNNING, 3: State.COMPLETED, 4: State.ERRORED, 5: State.COMPLETED, 6: State.KILLED}
TAGS = {3: {"a": 'x","b":"y', "ü": "1"}, 5: {"b": "y", "ü": "12"}, 6: {"a": "x", "b": "y"}}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (RunFilter(), [6, 5, 4, 3, 2, 1]),
        (RunFilter(states=frozenset({State.COMPLETED})), [5, 3]),
        (RunFilter(states=frozenset({State.QUEUED, State.RUNNING, State.KILLED})), [6, 2, 1]),
        (RunFilter(tags={"b": "y"}), [6, 5]),
        (RunFilter(tags={"b": "y", "a": "x"}), [6]),
        (RunFilter(tags={"ü": "1"}), [3]),
        (RunFilter(tags={"a": 'x","b":"y'}), [3]),
        (RunFilter(tags={"a": "X"}), []),
        (RunFilter(since=DAY + 2, until=DAY + 5), [4, 3, 2]),
        (RunFilter(ended_before=DAY + 105), [4, 3]),
        (RunFilter(states=frozenset({State.COMPLETED}), ended_before=DAY + 105), [3]),
    ],
)
async def test_runs_are_looked_for(
    tracker: Tracker, wanted: RunFilter, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_tracker, "SCANNED_RUNS", 2)
    monkeypatch.setattr(memory_tracker, "RUNS_A_TURN", 2)
    for run_id, state in STATES.items():
        moves = [] if state is State.QUEUED else [run_moved(State.RUNNING, run_id=run_id)]
        moves += [run_moved(state, DAY + 100 + run_id, run_id=run_id)] if state.has_ended else []
        added = replace(run_added(run_id), submit_time=DAY + run_id, tags=TAGS.get(run_id, {}))
        await tracker.commit([added, *moves])

    async def found(limit: int) -> list[int]:
        """The ids, page by page, of those that were given and are wanted: others may be given too."""
        ids, before = [], None
        while rows := await tracker.rows(before=before, limit=limit, wanted=wanted):
            assert len(rows) <= limit
            before = rows[-1].run_id
            ids += [row.run_id for row in rows if wanted.admits(row.tags, row.state, row.submit_time, row.stop_time)]
        return ids

    assert await found(1) == await found(100) == expected


async def test_a_request_is_found_by_its_id(kind: TrackerKind, open_again: OpenAgain) -> None:
    tracker, _ = await open_again()
    ids = ["a", "A", "ä", "with a NUL\0", "x" * 255, "a' OR 1=1 --"]
    await tracker.commit([run_added(run_id, request_id=request_id) for run_id, request_id in enumerate(ids, 1)])
    assert [await tracker.find_request(request_id) for request_id in ids] == [1, 2, 3, 4, 5, 6]
    assert await tracker.find_request("") is None
    assert await tracker.find_request("b") is None
    await tracker.close()
    if kind.durable:
        tracker, _ = await open_again()
        assert await tracker.find_request("A") == 2


# -- graphs that grew -------------------------------------------------------------------------------------------------


async def test_generated_tasks_are_what_the_generator_printed(kind: TrackerKind, open_again: OpenAgain) -> None:
    printed = bytes(range(256)) * 2_000
    pieces = [kept(start, printed[start : start + 200_000]) for start in range(0, len(printed), 200_000)]
    stored = await after(
        kind,
        open_again,
        [run_added(document=b"first"), assigned(0)],
        # Pieces come out of order, and one comes twice. Standard error is no part of what a generator printed.
        [pieces[1], kept(0, b"a warning", stream=STDERR), pieces[1]],
        # The last piece comes in the commit of the end.
        [pieces[0], recorded(), TasksGenerated(1, 0, 1, 2), pieces[2]],
        [kept(0, b"other", number=3), recorded(number=3), TasksGenerated(1, 3, 1, 3)],
    )
    assert stored.document == b"first"
    assert stored.growths == [Growth(2, printed, 0, 1), Growth(3, b"other", 3, 1)]


async def test_edits_are_kept_with_their_documents(kind: TrackerKind, open_again: OpenAgain) -> None:
    large = b"x" * 3_000_001
    stored = await after(
        kind,
        open_again,
        [run_added(document=b"first"), run_moved(State.RUNNING, DAY + 1)],
        [RunEdited(1, 2, large, {"edited": "once"}, "other", (), DAY + 2), moved(State.QUEUED, 0, reason="edit", time=DAY + 2)],
        [RunEdited(1, 3, b"", {}, "third", (2, 7), DAY + 3)],
    )
    assert stored.growths == [Growth(2, large, None, None, "other", ()), Growth(3, b"", None, None, "third", (2, 7))]
    assert (stored.document, stored.row.state) == (b"first", State.RUNNING)
    assert (stored.pool, stored.row.pool, stored.row.tags) == ("default", "third", {})


async def test_an_edit_is_in_the_run_s_history(tracker: Tracker) -> None:
    await tracker.commit([run_added(document=b"first"), run_moved(State.COMPLETED, DAY + 1)])
    await tracker.commit([RunEdited(1, 2, b"second", {}, "pool", (), DAY + 2), run_moved(State.QUEUED, DAY + 2)])
    assert await tracker.history(1, None) == [
        StateChange(DAY + 1, None, State.COMPLETED, ""),
        StateChange(DAY + 2, None, State.COMPLETED, "edit"),
        StateChange(DAY + 2, None, State.QUEUED, ""),
    ]
    assert await tracker.document(1) == b"first"
    assert await tracker.document(1, 2) == b"second"
    assert await tracker.document(1, 3) is None


async def test_an_attempt_in_flight_may_be_void(kind: TrackerKind, open_again: OpenAgain) -> None:
    """Its task was queued again by a move that counts this attempt, so that the move's state stays however it ends."""
    stored = await after(
        kind,
        open_again,
        [run_added(), assigned(0, 1, 2, 3, 4), moved(State.QUEUED, 0, 1, 2, attempts=1, reason="edit")],
        [moved(State.KILLED, 2, attempts=0, reason="kill"), ended(Outcome.SUCCEEDED, State.QUEUED, number=1)],
    )
    assert [(flight.number, flight.void) for flight in stored.in_flight] == [(0, True), (2, False), (3, False), (4, False)]
    states = dict(zip(stored.tasks.numbers, map(State, stored.tasks.states), strict=True))
    assert states == {0: State.QUEUED, 1: State.QUEUED, 2: State.KILLED, 3: State.QUEUED, 4: State.QUEUED}
    assert list(stored.tasks.requeued) == [0, 1, 2]


# -- history ----------------------------------------------------------------------------------------------------------


async def test_a_task_s_history_is_its_moves(kind: TrackerKind, open_again: OpenAgain) -> None:
    tracker, _ = await open_again()
    await tracker.commit([run_added(1), run_added(2), moved(State.KILLED, 5, 1, 3, reason="kill", time=DAY + 1.25)])
    await tracker.commit([moved(State.QUEUED, 3, 1, time=DAY + 2), moved(State.COMPLETED, 3, reason="mark", time=DAY + 2)])
    await tracker.commit([moved(State.QUEUED, *range(70_000), reason="edit", time=DAY + 3), run_moved(State.RUNNING)])
    await tracker.commit([moved(State.KILLED, 3, run_id=2, reason="kill")])
    if kind.durable:
        await tracker.close()
        tracker, _ = await open_again()
    assert await tracker.history(1, 3) == [
        StateChange(DAY + 1.25, 3, State.KILLED, "kill"),
        StateChange(DAY + 2, 3, State.QUEUED, "retry"),
        StateChange(DAY + 2, 3, State.COMPLETED, "mark"),
        StateChange(DAY + 3, 3, State.QUEUED, "edit"),
    ]
    assert [change.reason for change in await tracker.history(1, 5)] == ["kill", "edit"]
    assert [change.reason for change in await tracker.history(1, 2)] == ["edit"]
    assert [change.reason for change in await tracker.history(1, 69_999)] == ["edit"]
    assert await tracker.history(1, 70_000) == []
    # A run's history tells what people moved of its tasks. An edit is one entry of the run's own, which is not made here.
    assert [(change.state, change.reason, change.tasks, change.count) for change in await tracker.history(1, None)] == [
        (State.KILLED, "kill", (5, 1, 3), 3),
        (State.QUEUED, "retry", (3, 1), 2),
        (State.COMPLETED, "mark", (3,), 1),
        (State.RUNNING, "", (), 0),
    ]


async def test_a_move_of_many_tasks_is_one_entry_of_its_run_s_history(tracker: Tracker) -> None:
    await tracker.commit([run_added(), moved(State.KILLED, *range(70_000), reason="kill"), run_moved(State.KILLED)])
    assert [(change.reason, change.tasks, change.count) for change in await tracker.history(1, None)] == [
        ("kill", (0, 1, 2), 70_000),
        ("", (), 0),
    ]


async def test_tasks_that_a_kill_left_behind_are_those_of_the_last_record(kind: TrackerKind, open_again: OpenAgain) -> None:
    tracker, _ = await open_again()
    await tracker.commit([run_added(), TasksStopped(1, [1, 5, 7])])
    stored = await tracker.load(1)
    assert stored is not None and list(stored.stopped) == [1, 5, 7]
    await tracker.commit([TasksStopped(1, [5]), run_moved(State.QUEUED)])
    if kind.durable:
        await tracker.close()
        tracker, _ = await open_again()
    stored = await tracker.load(1)
    assert stored is not None and list(stored.stopped) == [5]
    await tracker.commit([TasksStopped(1, [])])
    stored = await tracker.load(1)
    assert stored is not None and not list(stored.stopped)


async def test_runs_with_large_tags_come_few_at_a_time(tracker: Tracker) -> None:
    for run_id in range(1, 10):
        tags = {"text": "x" * 1_200_000} if run_id < 7 else {"env": "test"}
        await tracker.commit([replace(run_added(run_id), tags=tags)])
    pages = []
    before = None
    while rows := await tracker.rows(before=before, limit=100):
        assert sum(len(value) for row in rows[:-1] for value in row.tags.values()) < MAX_ROWS_BYTES
        pages.append([row.run_id for row in rows])
        before = rows[-1].run_id
    assert [run_id for page in pages for run_id in page] == list(range(9, 0, -1))
    assert len(pages) > 1 and len(pages[0]) > 3
    assert [row.run_id for row in await tracker.rows(before=7, limit=1)] == [6]
