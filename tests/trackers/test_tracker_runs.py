"""Runs as their records left them: lists, states, graphs that grew, history, request ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tracker_kinds import OpenAgain, TrackerKind
from tracker_records import DAY, assigned, ended, kept, moved, recorded, run_added, run_moved

from daggyr.v1.task_pb2 import STDERR
from daggyr_server.core.records import Record, RunAdded, RunEdited, RunKillAsked, TasksGenerated
from daggyr_server.core.states import Outcome, State
from daggyr_server.core.stored import Adopted, Growth, RunRow, StoredRun
from daggyr_server.trackers.base import MAX_ROWS_BYTES, StateChange, Tracker


async def load(tracker: Tracker, run_id: int = 1) -> StoredRun:
    stored = await tracker.load(run_id)
    assert stored is not None
    return stored


async def after(kind: TrackerKind, open_again: OpenAgain, *commits: Sequence[Record]) -> StoredRun:
    """Run 1 as `commits` left it: to be read at once, and, of a durable tracker, by the next coordinator."""
    tracker, _ = await open_again()
    for records in commits:
        await tracker.commit(records)
    stored = await load(tracker)
    await tracker.close()
    if kind.durable:
        assert await load((await open_again())[0]) == stored
    return stored


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
    assert await tracker.delete(1, 10) is False


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


# -- tasks ------------------------------------------------------------------------------------------------------------


def tasks(stored: StoredRun) -> list[tuple[int, State, int, int, int]]:
    """Number, state, last attempt, failures, losses of each."""
    found = stored.tasks
    columns = (found.numbers, map(State, found.states), found.attempts, found.failures, found.losses)
    return list(zip(*columns, strict=True))


async def test_attempts_in_flight_leave_the_state_as_it_was(kind: TrackerKind, open_again: OpenAgain) -> None:
    stored = await after(
        kind,
        open_again,
        [run_added(), assigned(2, 0, time=DAY + 1), assigned(9, host="h2", host_name="two", time=DAY + 2)],
        [ended(Outcome.FAILED, State.QUEUED, number=0), ended(Outcome.SUCCEEDED, State.COMPLETED, number=2)],
        [assigned(0, attempt=2, host="h3", host_name="three", time=DAY + 3)],
    )
    assert tasks(stored) == [(0, State.QUEUED, 2, 1, 0), (2, State.COMPLETED, 1, 0, 0), (9, State.QUEUED, 1, 0, 0)]
    assert stored.in_flight == [Adopted(0, 2, "h3", "three", DAY + 3), Adopted(9, 1, "h2", "two", DAY + 2)]


async def test_one_commit_may_hold_a_task_s_whole_life(kind: TrackerKind, open_again: OpenAgain) -> None:
    stored = await after(
        kind,
        open_again,
        [
            run_added(),
            assigned(0),
            ended(Outcome.LOST, State.QUEUED),
            assigned(0, attempt=2),
            ended(Outcome.TIMED_OUT, State.QUEUED, attempt=2),
            assigned(0, attempt=3),
            ended(Outcome.SUCCEEDED, State.COMPLETED, attempt=3),
            run_moved(State.RUNNING),
            run_moved(State.COMPLETED, counts={State.COMPLETED: 1}),
        ],
    )
    assert tasks(stored) == [(0, State.COMPLETED, 3, 1, 1)]
    assert stored.in_flight == []
    assert stored.row.state is State.COMPLETED


@pytest.mark.parametrize(
    ("outcome", "failures", "losses"),
    [
        (Outcome.SUCCEEDED, 0, 0),
        (Outcome.FAILED, 1, 0),
        (Outcome.TIMED_OUT, 1, 0),
        (Outcome.OOM_KILLED, 1, 0),
        (Outcome.REJECTED, 0, 0),
        (Outcome.KILLED, 0, 0),
        (Outcome.LOST, 0, 1),
        (Outcome.RETURNED, 0, 0),
    ],
)
async def test_what_counts_as_failure_and_as_loss(tracker: Tracker, outcome: Outcome, failures: int, losses: int) -> None:
    await tracker.commit([run_added(), assigned(0), ended(outcome, State.QUEUED)])
    assert tasks(await load(tracker)) == [(0, State.QUEUED, 1, failures, losses)]


async def test_the_state_is_the_record_s_not_the_outcome_s(tracker: Tracker) -> None:
    """A generator that printed rubbish has SUCCEEDED and is ERRORED."""
    await tracker.commit([run_added(), assigned(0), ended(Outcome.SUCCEEDED, State.ERRORED)])
    assert tasks(await load(tracker)) == [(0, State.ERRORED, 1, 0, 0)]


async def test_a_move_counts_until_a_later_attempt_has_ended(tracker: Tracker) -> None:
    await tracker.commit([run_added(), assigned(0), ended(Outcome.FAILED, State.ERRORED)])
    await tracker.commit([moved(State.QUEUED, 0, attempts=1)])
    assert tasks(await load(tracker)) == [(0, State.QUEUED, 1, 0, 0)]
    await tracker.commit([assigned(0, attempt=2)])
    assert tasks(await load(tracker)) == [(0, State.QUEUED, 2, 0, 0)]
    await tracker.commit([ended(Outcome.OOM_KILLED, State.QUEUED, attempt=2)])
    assert tasks(await load(tracker)) == [(0, State.QUEUED, 2, 1, 0)]
    await tracker.commit([assigned(0, attempt=3), ended(Outcome.KILLED, State.KILLED, attempt=3)])
    assert tasks(await load(tracker)) == [(0, State.KILLED, 3, 1, 0)]


async def test_a_move_while_an_attempt_is_in_flight(tracker: Tracker) -> None:
    """It says how many attempts had ended: how this one ends counts then. One that says that this has ended outlasts it."""
    await tracker.commit([run_added(), assigned(0, 1), moved(State.KILLED, 0, reason="kill"), moved(State.QUEUED, 1, attempts=1)])
    stored = await load(tracker)
    assert tasks(stored) == [(0, State.KILLED, 1, 0, 0), (1, State.QUEUED, 1, 0, 0)]
    assert [flight.number for flight in stored.in_flight] == [0, 1]
    await tracker.commit([ended(Outcome.SUCCEEDED, State.COMPLETED), ended(Outcome.FAILED, State.KILLED, number=1)])
    stored = await load(tracker)
    assert (tasks(stored), stored.in_flight) == ([(0, State.COMPLETED, 1, 0, 0), (1, State.QUEUED, 1, 0, 0)], [])


async def test_only_a_move_to_queued_gives_fresh_budgets(tracker: Tracker) -> None:
    await tracker.commit([run_added(), assigned(0), ended(Outcome.FAILED, State.QUEUED)])
    await tracker.commit([assigned(0, attempt=2), ended(Outcome.LOST, State.QUEUED, attempt=2)])
    await tracker.commit([moved(State.KILLED, 0, attempts=2, reason="kill")])
    assert tasks(await load(tracker)) == [(0, State.KILLED, 2, 1, 1)]
    await tracker.commit([moved(State.QUEUED, 0, attempts=2), moved(State.COMPLETED, 0, attempts=2, reason="mark")])
    assert tasks(await load(tracker)) == [(0, State.COMPLETED, 2, 0, 0)]


async def test_tasks_that_were_moved_and_never_attempted(kind: TrackerKind, open_again: OpenAgain) -> None:
    stored = await after(
        kind,
        open_again,
        [run_added(), assigned(3, 1), ended(Outcome.SUCCEEDED, State.COMPLETED, number=3)],
        [moved(State.KILLED, 4, 2, 0, reason="kill")],
    )
    assert [(number, state, attempt) for number, state, attempt, _, _ in tasks(stored)] == [
        (0, State.KILLED, 0),
        (1, State.QUEUED, 1),
        (2, State.KILLED, 0),
        (3, State.COMPLETED, 1),
        (4, State.KILLED, 0),
    ]


async def test_numbers_as_large_as_the_contract_s(kind: TrackerKind, open_again: OpenAgain) -> None:
    last = 2**32 - 1
    stored = await after(kind, open_again, [run_added(), assigned(0, last), moved(State.KILLED, last - 1, reason="kill")])
    assert [number for number, *_ in tasks(stored)] == [0, last - 1, last]
    assert [flight.number for flight in stored.in_flight] == [0, last]


async def test_a_large_run(kind: TrackerKind, open_again: OpenAgain) -> None:
    count, sent = 50_000, 30_000
    commits: list[list[Record]] = [[run_added()]]
    for first in range(0, sent, 2_000):
        numbers = range(first, first + 2_000)
        commits.append([assigned(*numbers, host=f"h{first % 7}")])
        commits.append([ended(Outcome.SUCCEEDED, State.COMPLETED, number=number) for number in numbers[:-10]])
    commits.append([moved(State.KILLED, *range(sent, count), reason="kill")])
    stored = await after(kind, open_again, *commits)
    assert list(stored.tasks.numbers) == list(range(count))
    assert [flight.number for flight in stored.in_flight] == [n for n in range(sent) if n % 2_000 >= 1_990]
    completed = sent - len(stored.in_flight)
    assert [stored.tasks.states.count(state) for state in State] == [len(stored.in_flight), 0, completed, 0, count - sent]


async def test_others_have_their_turn_while_a_large_run_is_loaded(tracker: Tracker) -> None:
    await tracker.commit([run_added(), *(ended(Outcome.SUCCEEDED, State.COMPLETED, number=n) for n in range(20_000))])
    turns = 0
    loading = asyncio.create_task(tracker.load(1))
    while not loading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 2 or tracker.address == "memory" or "journal" in tracker.address


async def test_what_is_loaded_is_one_commit_s_state(tracker: Tracker) -> None:
    """Commits go on while a run is read; each of these moves all of its tasks."""
    numbers = range(5_000)
    await tracker.commit([run_added(), *(ended(Outcome.FAILED, State.ERRORED, number=n) for n in numbers)])

    async def write() -> None:
        for attempt in range(2, 6):
            queued = moved(State.QUEUED, *numbers, attempts=attempt - 1)
            await tracker.commit(
                [assigned(*numbers, attempt=attempt), queued, RunEdited(1, attempt, b"edit", {}, "pool", (), DAY)]
            )
            await tracker.commit([ended(Outcome.FAILED, State.ERRORED, number=n, attempt=attempt) for n in numbers])

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        seen = set()
        while not writing.done():
            stored = await load(tracker)
            (attempt,) = set(stored.tasks.attempts)
            (state,) = set(stored.tasks.states)
            assert len(stored.in_flight) in (0, len(numbers))
            assert len(stored.growths) == attempt - 1
            seen.add((attempt, state, bool(stored.in_flight)))
            await asyncio.sleep(0)
    assert all(in_flight == (state == State.QUEUED) for _, state, in_flight in seen)


# -- graphs that grew -------------------------------------------------------------------------------------------------


async def test_generated_tasks_are_what_the_generator_printed(kind: TrackerKind, open_again: OpenAgain) -> None:
    printed = bytes(range(256)) * 2_000
    pieces = [kept(start, printed[start : start + 200_000]) for start in range(0, len(printed), 200_000)]
    stored = await after(
        kind,
        open_again,
        [run_added(document=b"first"), assigned(0)],
        # Out of order, one twice, and not what it said on its standard error.
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
    """Its task was queued again, by a move that counts it: however it ends, that move's state stays."""
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
    assert [change.state for change in await tracker.history(1, None)] == [State.RUNNING]


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
