"""Whatever records come, in whatever commits, a tracker gives back what a plain model of the contract says."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from property_examples import Examples
from tracker_kinds import TrackerKind
from tracker_records import DAY, assigned, ended, kept, moved, run_added, run_moved

from daggyr_server.core.records import Record, RunEdited, RunKillAsked
from daggyr_server.core.states import Outcome, State
from daggyr_server.core.stored import StoredRun
from daggyr_server.trackers.base import StateChange, Tracker

TASKS = range(4)
FAILURES = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OOM_KILLED)


@dataclass
class Model:
    """One run, as the docstrings of records.py and base.py say that it is."""

    run_id: int
    state: State = State.QUEUED
    killing: bool = False
    revision: int = 1
    attempts: dict[int, int] = field(default_factory=dict)
    in_flight: dict[int, int] = field(default_factory=dict)
    ended: list[tuple[int, int, Outcome, State]] = field(default_factory=list)
    moves: list[tuple[int, int, State, str]] = field(default_factory=list)
    run_history: list[tuple[State, str]] = field(default_factory=list)
    output: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def apply(self, choice: tuple[int, int, int]) -> Record:
        """The record that a random choice makes of the run as it is."""
        what, number, which = choice
        number %= len(TASKS)
        flying = self.in_flight.get(number)
        if what == 0 and flying is None:
            attempt = self.attempts[number] = self.attempts.get(number, 0) + 1
            self.in_flight[number] = attempt
            return assigned(number, attempt=attempt, run_id=self.run_id)
        if what == 1 and flying is not None:
            outcome, state = list(Outcome)[which % len(Outcome)], list(State)[which % len(State)]
            del self.in_flight[number]
            self.ended.append((number, flying, outcome, state))
            return ended(outcome, state, number=number, attempt=flying, run_id=self.run_id)
        if what == 2:
            state = list(State)[which % len(State)]
            reason = ("kill", "retry", "mark", "edit")[which % 4]
            had = self.attempts.get(number, 0) - (flying is not None and which % 2)
            self.moves.append((number, had, state, reason))
            return moved(state, number, attempts=had, run_id=self.run_id, reason=reason)
        if what == 3:
            self.killing = True
            self.run_history.append((self.state, "kill"))
            return RunKillAsked(self.run_id, DAY)
        if what == 4:
            self.revision += 1
            self.run_history.append((self.state, "edit"))
            return RunEdited(self.run_id, self.revision, b"%d" % self.revision, {}, "pool", (), DAY)
        if what == 5 and flying is not None:
            data = b"x" * which
            self.output[number, flying] = max(self.output.get((number, flying), b""), data)
            return kept(0, data, number=number, attempt=flying, run_id=self.run_id)
        self.state = list(State)[which % len(State)]
        self.killing = self.killing and self.state is not State.QUEUED
        self.run_history.append((self.state, ""))
        return run_moved(self.state, run_id=self.run_id)

    def task(self, number: int) -> tuple[State, int, int, int] | None:
        attempts = [entry for entry in self.ended if entry[0] == number]
        moves = [entry for entry in self.moves if entry[0] == number]
        if not attempts and not moves and number not in self.in_flight:
            return None
        state = attempts[-1][3] if attempts else State.QUEUED
        if moves and moves[-1][1] >= (attempts[-1][1] if attempts else 0):
            state = moves[-1][2]
        fresh = ([0] + [had for _, had, to, _ in moves if to is State.QUEUED])[-1]
        counted = [outcome for _, attempt, outcome, _ in attempts if attempt > fresh]
        refused = sum(
            outcome is Outcome.SUCCEEDED and to is not State.COMPLETED for _, attempt, outcome, to in attempts if attempt > fresh
        )
        return (
            state,
            self.attempts.get(number, 0),
            sum(outcome in FAILURES for outcome in counted) + refused,
            counted.count(Outcome.LOST),
        )

    async def check(self, tracker: Tracker) -> None:
        stored = await tracker.load(self.run_id)
        assert stored is not None
        assert tasks_of(stored) == {number: task for number in TASKS if (task := self.task(number)) is not None}
        assert [(flight.number, flight.attempt) for flight in stored.in_flight] == sorted(self.in_flight.items())
        assert (stored.row.state, stored.row.killing) == (self.state, self.killing)
        assert [(growth.revision, growth.document) for growth in stored.growths] == [
            (revision, b"%d" % revision) for revision in range(2, self.revision + 1)
        ]
        history = await tracker.history(self.run_id, None)
        assert [(change.state, change.reason) for change in history if not change.count] == self.run_history
        assert [(change.tasks, change.state, change.reason) for change in history if change.count] == [
            ((number,), state, reason) for number, _, state, reason in self.moves if reason != "edit"
        ]
        for number in TASKS:
            attempts = await tracker.attempts(self.run_id, number)
            assert [(entry.attempt, entry.result.outcome) for entry in attempts] == [
                (attempt, int(outcome)) for of, attempt, outcome, _ in self.ended if of == number
            ]
            assert await tracker.history(self.run_id, number) == [
                StateChange(DAY, number, state, reason) for of, _, state, reason in self.moves if of == number
            ]
        for (number, attempt), data in self.output.items():
            pieces = await tracker.output(self.run_id, number, attempt, 1, 0, 1_000)
            assert b"".join(piece.data for piece in pieces) == data
        assert (self.run_id in await tracker.unfinished()) == (self.state in (State.QUEUED, State.RUNNING))


def tasks_of(stored: StoredRun) -> dict[int, tuple[State, int, int, int]]:
    tasks = stored.tasks
    assert list(tasks.numbers) == sorted(set(tasks.numbers))
    columns = (map(State, tasks.states), tasks.attempts, tasks.failures, tasks.losses)
    return dict(zip(tasks.numbers, zip(*columns, strict=True), strict=True))


CHOICES = st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 40))


def test_any_records_leave_what_the_model_says(kind: TrackerKind, examples: Examples) -> None:
    async def keep(commits: list[list[tuple[int, tuple[int, int, int]]]]) -> None:
        runs = {1: Model(examples.run_id()), 2: Model(examples.run_id())}
        await examples.tracker.commit([run_added(run.run_id) for run in runs.values()])
        for choices in commits:
            await examples.tracker.commit([runs[which].apply(choice) for which, choice in choices])
        for run in runs.values():
            await run.check(examples.tracker)
        if kind.durable:
            await examples.open_again()
            for run in runs.values():
                await run.check(examples.tracker)

    @settings(max_examples=kind.examples, deadline=None, database=None)
    @given(st.lists(st.lists(st.tuples(st.sampled_from((1, 2)), CHOICES), min_size=1, max_size=12), max_size=6))
    def property_(commits: list[list[tuple[int, tuple[int, int, int]]]]) -> None:
        examples.run(keep(commits))

    property_()
