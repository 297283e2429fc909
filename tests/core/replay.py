"""What a tracker could rebuild: the state of every task and run from the records alone, in the order of their commits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from daggyr_server.core.graph.graph import Edit, Graph
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Kind
from daggyr_server.core.records import (
    AttemptRecorded,
    AttemptsAssigned,
    Record,
    RunAdded,
    RunEdited,
    RunMoved,
    TasksGenerated,
    TasksMoved,
)
from daggyr_server.core.states import Outcome, State


class Replayed:
    """One run, rebuilt. Only its graph comes from elsewhere: the document and the generators' output make it."""

    def __init__(self) -> None:
        self.state = State.QUEUED
        self.tasks: dict[int, State] = {}  # those that ever moved
        self.attempts: dict[int, int] = {}  # the last that ended
        self.in_flight: set[int] = set()
        self.revision = 1
        self.successes: Counter[int] = Counter()  # that nobody asked to repeat
        self.edits: list[Edit] = []
        self.live = 0  # the first number that counts
        self.void: set[int] = set()  # of those in flight: how they end does not count

    def edit(self, edit: Edit) -> None:
        """Give tasks that go over what they had. Attempts in flight keep the numbers that they were assigned with."""
        self.edits.append(edit)
        self.live = edit.additions[0].segments[0].base
        for new, old, count, same in edit.carry:
            for offset in range(count):
                if old + offset in self.attempts:
                    self.attempts[new + offset] = self.attempts[old + offset]
                if same and old + offset in self.tasks:
                    self.tasks[new + offset] = self.tasks[old + offset]
                    self.successes[new + offset] = self.successes[old + offset]

    def newest(self, number: int) -> tuple[int | None, bool]:
        """The number by now of a task, and whether it does the same."""
        unchanged = True
        for edit in self.edits:
            if number < edit.additions[0].segments[0].base:
                over = edit.carry.forward(number)
                if over is None:
                    return None, False
                number, same = over
                unchanged = unchanged and same
        return number, unchanged

    def task_states(self, graph: Graph) -> dict[int, State]:
        """The states of all tasks. No record tells of structural tasks: they are COMPLETED while all their parents are."""
        states: dict[int, State] = {}

        def state(number: int) -> State:
            if number not in states:
                if graph.kind(number) is Kind.TASK:
                    states[number] = self.tasks.get(number, State.QUEUED)
                else:
                    done = all(state(parent) is State.COMPLETED for parent in graph.parents(number))
                    states[number] = State.COMPLETED if done else State.QUEUED
            return states[number]

        return {number: state(number) for number in range(graph.live, graph.size)}


def replay(records: Iterable[Record], edits: Mapping[tuple[int, int], Edit]) -> dict[int, Replayed]:
    """The runs that the records tell of, by run id; `edits` by run id and revision."""
    runs: dict[int, Replayed] = {}
    for record in records:
        if isinstance(record, RunAdded):
            assert record.run_id not in runs
            runs[record.run_id] = Replayed()
            continue
        run = runs[record.run_id]
        if isinstance(record, RunMoved):
            assert run.state is not record.state
            run.state = record.state
        elif isinstance(record, AttemptRecorded):
            run.in_flight.remove(record.number)
            number, unchanged = run.newest(record.number)
            if number is not None:
                assert record.attempt > run.attempts.get(number, 0), "attempt numbers only grow"
                run.attempts[number] = record.attempt
            if number is None or not unchanged or record.number in run.void:
                run.void.discard(record.number)
                continue
            assert run.tasks.get(number) is not State.COMPLETED, "a task that COMPLETED ran again"
            run.tasks[number] = record.state
            if record.state is State.COMPLETED:
                assert record.outcome is Outcome.SUCCEEDED
                run.successes[number] += 1
        elif isinstance(record, AttemptsAssigned):
            assert run.in_flight.isdisjoint(record.numbers)
            run.in_flight.update(record.numbers)
        elif isinstance(record, TasksMoved):
            for number in record.numbers:
                if number in run.in_flight:
                    # Only an end can be asked for, by a person who kills or who changes the task.
                    assert record.state is State.KILLED or record.reason == "edit"
                    if record.reason == "edit":
                        run.void.add(number)
                    continue
                run.successes[number] = int(record.state is State.COMPLETED)
                run.tasks[number] = record.state
        elif isinstance(record, RunEdited):
            run.revision = record.revision
            run.edit(edits[record.run_id, record.revision])
        elif isinstance(record, TasksGenerated):
            run.revision = record.revision
    return runs


def _counted_from(run: Run) -> dict[int, int]:
    """From which attempt on tasks count whose names earlier tasks had: no record tells, because the graph does."""
    floors: dict[int, int] = {}
    for number in range(run.graph.live, run.graph.size):
        for known in run.graph.lineage(number):
            before = run.graph.counted_from.back(known)
            if before is not None:
                floors[number] = max(floors.get(number, 0), run.attempts[before])
    return floors


def assert_same(rebuilt: Replayed, run: Run) -> None:
    """What the records tell is what the run has, but for attempts in flight."""
    assert rebuilt.state is run.state
    assert rebuilt.revision == run.revision
    flying = {number: flight.attempt for number, flight in run.in_flight.items()}
    ended = {number: attempt - (flying.get(number) == attempt) for number, attempt in enumerate(run.attempts)}
    floors = _counted_from(run)
    recorded, there = Counter(rebuilt.attempts), Counter(ended)
    for number, floor in floors.items():
        recorded[number], there[number] = max(recorded[number], floor), max(there[number], floor)
    live = range(run.graph.live, run.graph.size)
    assert {number: recorded[number] for number in live} == {number: there[number] for number in live}
    states = rebuilt.task_states(run.graph)
    for number, flight in run.in_flight.items():
        if flight.killed and number >= run.graph.live:  # once its attempt, which does not count any more, has ended
            assert states[number] is State.KILLED
            states[number] = State.QUEUED
    counts = Counter(states.values())
    told = run.task_states()
    for state in (State.COMPLETED, State.ERRORED, State.KILLED):
        assert counts.get(state, 0) == told.get(state, 0), (state, counts, told)
    for number, state in states.items():
        if run.graph.kind(number) is Kind.TASK:
            assert rebuilt.successes[number] == (state is State.COMPLETED), f"task {number} has its effect once"
