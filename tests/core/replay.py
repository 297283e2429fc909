"""What a tracker could rebuild: the state of every task and run from the records alone, in the order of their commits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from daggyr_server.core.graph import Graph, Kind
from daggyr_server.core.records import (
    AttemptRecorded,
    AttemptsAssigned,
    Record,
    RunAdded,
    RunMoved,
    TasksGenerated,
    TasksMoved,
)
from daggyr_server.core.run import Run
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

    def task_states(self, graph: Graph) -> dict[int, State]:
        """Of all tasks. Structural ones are COMPLETED while all their parents are, and no record tells of them."""
        states: dict[int, State] = {}

        def state(number: int) -> State:
            if number not in states:
                if graph.kind(number) is Kind.TASK:
                    states[number] = self.tasks.get(number, State.QUEUED)
                else:
                    done = all(state(parent) is State.COMPLETED for parent in graph.parents(number))
                    states[number] = State.COMPLETED if done else State.QUEUED
            return states[number]

        return {number: state(number) for number in range(graph.size)}


def replay(records: Iterable[Record]) -> dict[int, Replayed]:
    """The runs that the records tell of, by run id."""
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
            assert record.attempt > run.attempts.get(record.number, 0), "attempt numbers only grow"
            run.attempts[record.number] = record.attempt
            run.in_flight.remove(record.number)
            assert run.tasks.get(record.number) is not State.COMPLETED, "a task that COMPLETED ran again"
            run.tasks[record.number] = record.state
            if record.state is State.COMPLETED:
                assert record.outcome is Outcome.SUCCEEDED
                run.successes[record.number] += 1
        elif isinstance(record, AttemptsAssigned):
            assert run.in_flight.isdisjoint(record.numbers)
            run.in_flight.update(record.numbers)
        elif isinstance(record, TasksMoved):
            for number in record.numbers:
                if number in run.in_flight:
                    assert record.state is State.KILLED, "only an end can be asked for"
                    continue
                run.successes[number] = int(record.state is State.COMPLETED)
                run.tasks[number] = record.state
        elif isinstance(record, TasksGenerated):
            run.revision = record.revision
    return runs


def assert_same(rebuilt: Replayed, run: Run) -> None:
    """The records tell all but what is in flight."""
    assert rebuilt.state is run.state
    assert rebuilt.revision == run.revision
    ended = {number: attempt - (number in run.in_flight) for number, attempt in enumerate(run.attempts)}
    assert rebuilt.attempts == {number: attempt for number, attempt in ended.items() if attempt}
    states = rebuilt.task_states(run.graph)
    counts = Counter(states.values())
    told = run.task_states()
    for state in (State.COMPLETED, State.ERRORED, State.KILLED):
        assert counts.get(state, 0) == told.get(state, 0), (state, counts, told)
    for number, state in states.items():
        if run.graph.kind(number) is Kind.TASK:
            assert rebuilt.successes[number] == (state is State.COMPLETED), f"task {number} has its effect once"
