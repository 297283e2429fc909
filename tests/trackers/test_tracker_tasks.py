"""Tasks as a run's records left them: states, attempts in flight, what was used up, and large runs."""

from __future__ import annotations

import asyncio

import pytest
from stored_runs import after, load
from tracker_kinds import OpenAgain, TrackerKind
from tracker_records import DAY, assigned, ended, moved, run_added, run_moved

from daggyr_server.core.records import Record, RunEdited
from daggyr_server.core.states import Outcome, State
from daggyr_server.core.stored import Adopted, StoredRun
from daggyr_server.trackers.base import Tracker


def tasks(stored: StoredRun) -> list[tuple[int, State, int, int, int]]:
    """Number, state, last attempt, failures and losses of each task."""
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
    # Whose life they have, test_tracker_life.py tests.
    assert [sent._replace(life=0) for sent in stored.in_flight] == [
        Adopted(0, 2, "h3", "three", DAY + 3),
        Adopted(9, 1, "h2", "two", DAY + 2),
    ]


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
        (Outcome.SUCCEEDED, 1, 0),  # a generator whose document was refused
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
    """A generator that printed no tasks has SUCCEEDED, but is ERRORED."""
    await tracker.commit([run_added(), assigned(0), ended(Outcome.SUCCEEDED, State.ERRORED)])
    assert tasks(await load(tracker)) == [(0, State.ERRORED, 1, 1, 0)]


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
    """A move says how many attempts had ended. How the one in flight ends counts, unless the move counted it."""
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
