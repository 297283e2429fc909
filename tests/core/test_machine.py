"""The ways of tasks and runs that nobody steers: `Machine` is told how attempts go and is asked what has become of the tasks.

`World` plays the hosts. What people ask for has files of its own: test_killing.py, test_retrying.py. What generators add is in
test_generators.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from lines_run import lines_run
from world import World, expanded, task

from daggyr_server.core.commands import StartAttempts
from daggyr_server.core.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    KillAsked,
    MarkAsked,
    RetryAsked,
    RunsForgotten,
    RunSubmitted,
)
from daggyr_server.core.graph.faults import IllegalTransition
from daggyr_server.core.graph.graph import Addition
from daggyr_server.core.graph.run import LONGEST_PAUSE_OF_LOST
from daggyr_server.core.graph.segments import Policy
from daggyr_server.core.records import AttemptRecorded, RunAdded
from daggyr_server.core.states import MAX_LOSSES, Outcome, Phase, State
from daggyr_server.core.step import Reason, Refusal

ENDS = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OOM_KILLED)


def outcomes(world: World, run_id: int, name: str) -> list[Outcome]:
    number = world.key(run_id, name)[1]
    return [r.outcome for r in world.records if isinstance(r, AttemptRecorded) and (r.run_id, r.number) == (run_id, number)]


# -- the way of a task ------------------------------------------------------------------------------------------------


def test_a_chain_runs_link_by_link(world: World) -> None:
    run_id = world.submit({"a": task("b"), "b": task()})
    assert world.phases(run_id) == {"a": Phase.ASSIGNED, "b": Phase.BLOCKED}
    assert world.state(run_id) is State.QUEUED
    world.start(run_id, "a")
    assert world.phase(run_id, "a") is Phase.RUNNING
    assert world.state(run_id) is State.RUNNING
    world.end(run_id, "a")
    assert world.phases(run_id) == {"a": Phase.COMPLETED, "b": Phase.ASSIGNED}
    world.end(run_id, "b")
    assert world.state(run_id) is State.COMPLETED
    assert world.moves(run_id) == [State.RUNNING, State.COMPLETED]


def test_a_result_implies_that_the_attempt_started(world: World) -> None:
    run_id = world.submit({"a": task(), "b": task()})
    world.now += 5
    world.end(run_id, "a", seconds=2)
    assert world.state(run_id) is State.RUNNING
    assert world.of(run_id).start_time == world.wall - 2


def test_a_step_tells_what_changed_for_clients(world: World) -> None:
    run_id = world.submit({"a": expanded("P", "b", parameters={"P": ["1", "2"]}), "b": task()})
    number = {name: world.key(run_id, name)[1] for name in world.phases(run_id)}
    assert world.start(run_id, "a.P:1").changed == {run_id: [number["a.P:1"]]}
    assert world.end(run_id, "a.P:1").changed == {run_id: [number["a.P:1"]]}
    # The tail is COMPLETED in the same step as the last expansion.
    assert sorted(world.end(run_id, "a.P:2").changed[run_id]) == sorted([number["a.P:2"], number["a.tail"]])


def test_structural_tasks_complete_however_long_their_chain(world: World) -> None:
    names = [f"t{index}" for index in range(200)]
    spec = {name: expanded("P", *after, parameters={"P": ["1", "2"]}) for name, *after in pairwise(names)}
    run_id = world.submit({**spec, names[-1]: expanded("P", parameters={"P": ["1", "2"]})})
    world.obey()
    world.run()
    assert world.state(run_id) is State.COMPLETED


def test_a_matched_expansion_waits_for_its_own_parents_only(world: World) -> None:
    run_id = world.submit(
        {
            "pull": expanded("M", parameters={"M": ["1", "2"]}),
            "join": expanded("M", parameters={"M": ["1", "2"]}, parents=[{"task": "pull", "match": ["M"]}]),
        }
    )
    assert world.phase(run_id, "join") is Phase.COMPLETED  # the head waits for nobody
    world.end(run_id, "pull.M:2")
    assert world.phase(run_id, "join.M:2") is Phase.ASSIGNED
    assert world.phase(run_id, "join.M:1") is Phase.BLOCKED


def test_a_failed_task_leaves_what_depends_on_it_queued(world: World) -> None:
    run_id = world.submit({"a": task("b"), "b": task("c"), "c": task(), "other": task()})
    world.end(run_id, "a", outcome=Outcome.FAILED)
    assert world.state(run_id) is State.RUNNING
    world.end(run_id, "other")
    assert world.state(run_id) is State.ERRORED
    assert world.of(run_id).task_states() == {State.QUEUED: 2, State.COMPLETED: 1, State.ERRORED: 1}


@pytest.mark.parametrize("outcome", ENDS)
def test_retries_wait_for_a_delay_that_doubles(world: World, outcome: Outcome) -> None:
    run_id = world.submit({"a": task(max_retries=3, retry_delay=5)})
    starts = [world.now]
    for delay in (5, 10, 20):
        world.end(run_id, "a", outcome=outcome)
        assert world.phase(run_id, "a") is Phase.DELAYED
        assert world.due == world.now + delay
        world.wait(delay - 0.5)
        assert world.phase(run_id, "a") is Phase.DELAYED
        world.wait(0.5)
        assert world.phase(run_id, "a") is Phase.ASSIGNED
        starts.append(world.now)
    assert [after - before for before, after in pairwise(starts)] == [5, 10, 20]
    world.end(run_id, "a", outcome=outcome)
    assert world.phase(run_id, "a") is Phase.ERRORED
    assert world.state(run_id) is State.ERRORED
    assert world.attempts(run_id, "a") == 4


def test_retries_without_delay_follow_at_once(world: World) -> None:
    run_id = world.submit({"a": task(max_retries=1)})
    step = world.end(run_id, "a", outcome=Outcome.FAILED)
    assert [command.attempts for command in step.commands if isinstance(command, StartAttempts)] == [[2]]


def test_delays_of_many_runs_are_kept_apart(world: World) -> None:
    runs = [world.submit({"a": task(max_retries=9, retry_delay=delay)}) for delay in (30, 10, 20)]
    for run_id in runs:
        world.end(run_id, "a", outcome=Outcome.FAILED)
    begin, order = world.now, []
    while len(order) < 3:
        assert world.due is not None
        world.wait(world.due - world.now)
        order += [(run_id, world.now - begin) for run_id in runs if world.attempts(run_id, "a") == 2 + (run_id in dict(order))]
        for run_id, _ in order:
            if world.phase(run_id, "a") is Phase.ASSIGNED:
                world.start(run_id, "a")
    assert [pair for index, pair in enumerate(order) if pair not in order[:index]] == [
        (runs[1], 10),
        (runs[2], 20),
        (runs[0], 30),
    ]
    assert world.due is None


def test_delays_do_not_pile_up(world: World) -> None:
    first = world.submit({"a": task(max_retries=1, retry_delay=10)})
    world.end(first, "a", outcome=Outcome.FAILED)
    second = world.submit({"t": expanded("N", parameters={"N": list(map(str, range(100)))}, max_retries=1, retry_delay=60)})
    while world.of(second).in_flight:
        names = [world.of(second).graph.task_id(number) for number in world.of(second).in_flight]
        world.end(second, *names, outcome=Outcome.FAILED)
    assert world.of(second).counts[Phase.DELAYED] == 100
    assert len(world.machine.delays) == 2
    world.wait(60)
    assert not world.machine.delays


def test_what_was_rejected_is_errored_at_once(world: World) -> None:
    run_id = world.submit({"a": task(max_retries=5)})
    world.end(run_id, "a", outcome=Outcome.REJECTED, seconds=None)
    assert world.phase(run_id, "a") is Phase.ERRORED
    assert world.moves(run_id) == [State.ERRORED]  # nothing of it has run


def test_lost_attempts_are_repeated_ten_times(world: World) -> None:
    run_id = world.submit({"a": task(max_retries=1)})
    for loss in range(MAX_LOSSES):
        world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
        assert world.phase(run_id, "a") is Phase.DELAYED
        world.wait(LONGEST_PAUSE_OF_LOST)
        assert world.phase(run_id, "a") is Phase.ASSIGNED
        assert world.attempts(run_id, "a") == loss + 2
    assert world.of(run_id).failures == {}  # no retry was used
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    assert world.phase(run_id, "a") is Phase.ERRORED
    assert world.state(run_id) is State.ERRORED


def test_returned_attempts_do_not_count(world: World) -> None:
    run_id = world.submit({"a": task()})
    for _ in range(5 * MAX_LOSSES):
        world.end(run_id, "a", outcome=Outcome.RETURNED, seconds=None)
    assert world.phase(run_id, "a") is Phase.ASSIGNED
    assert world.state(run_id) is State.QUEUED
    assert world.of(run_id).failures == world.of(run_id).losses == {}


def test_a_host_that_goes_loses_what_it_has(world: World) -> None:
    run_id = world.submit({"a": task(), "b": task()})
    world.start(run_id, "a")
    world.lose("h")
    assert world.phases(run_id) == {"a": Phase.DELAYED, "b": Phase.DELAYED}
    assert outcomes(world, run_id, "a") == outcomes(world, run_id, "b") == [Outcome.LOST]
    world.host("other", cores=8)
    world.wait(1)
    world.end(run_id, "a", "b")
    assert world.state(run_id) is State.COMPLETED


# -- reports that concern nothing any more ----------------------------------------------------------------------------


def test_late_double_and_foreign_reports_change_nothing(world: World) -> None:
    run_id = world.submit({"a": task(max_retries=1), "b": task()})
    late = world.key(run_id, "a")
    world.end(run_id, "a", outcome=Outcome.FAILED)
    world.end(run_id, "b")
    before = (world.phases(run_id), list(world.records), world.attempts(run_id, "a"))
    reports = [
        AttemptStarted(*late, world.wall),
        AttemptEnded(*late, Outcome.SUCCEEDED, 1.0, None),
        AttemptEnded(*world.key(run_id, "b"), Outcome.FAILED, 1.0, None),
        AttemptEnded(run_id, 0, 7, Outcome.FAILED, 1.0, None),
        AttemptEnded(run_id, 99, 1, Outcome.FAILED, 1.0, None),
        AttemptEnded(run_id + 1, 0, 1, Outcome.SUCCEEDED, 1.0, None),
        AttemptStarted(run_id + 1, 0, 1, world.wall),
    ]
    step = world.tell(*reports)
    assert not step.records and not step.commands and not step.changed
    assert before == (world.phases(run_id), world.records, world.attempts(run_id, "a"))


def test_a_second_start_changes_nothing(world: World) -> None:
    run_id = world.submit({"a": task()})
    world.start(run_id, "a")
    step = world.start(run_id, "a")
    assert not step.records and step.changed.get(run_id, []) == []


def test_an_illegal_transition_raises_and_changes_nothing(world: World) -> None:
    run_id = world.submit({"a": task("b"), "b": task()})
    run = world.of(run_id)
    flight = run.in_flight[0]
    for change in (lambda: run.assign([1], flight.sent), lambda: run.assign([0], flight.sent)):
        before = (bytes(run.phases), list(run.counts), list(run.attempts), dict(run.in_flight))
        with pytest.raises(IllegalTransition):
            change()
        assert before == (bytes(run.phases), run.counts, list(run.attempts), run.in_flight)
    world.tell()


# -- submitting -------------------------------------------------------------------------------------------------------


def test_a_request_that_was_seen_gets_the_same_run(world: World) -> None:
    first = world.submit({"a": task()}, request_id="once")
    assert world.submit({"a": task()}, request_id="once") == first
    assert world.submit({"a": task()}, request_id="twice") == first + 1
    assert [record.run_id for record in world.records if isinstance(record, RunAdded)] == [first, first + 1]


def test_a_run_for_an_unknown_pool_is_refused(world: World) -> None:
    event = RunSubmitted(
        ticket=1, request_id="x", tags={}, pool="main", parameters={}, addition=Addition([Policy("moon", ())]), document=b""
    )
    step = world.tell(event)
    assert step.answers == {1: Refusal(Reason.NOT_FOUND, "there is no pool moon; there are main")}
    assert not world.machine.runs and not step.records


def test_a_run_without_tasks_is_completed_at_once(world: World) -> None:
    run_id = world.submit_addition(Addition())
    assert world.state(run_id) is State.COMPLETED


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_refusal_changes_no_task(world: World) -> None:
    """Whatever was asked, nothing is recorded either, and nothing is told to hosts."""
    run_id = world.submit({"a": task("b"), "b": task(), "c": task()})
    world.end(run_id, "c")
    world.start(run_id, "a")
    asked: list[Callable[[int], Event]] = [
        lambda ticket: KillAsked(ticket=ticket, run_id=7),
        lambda ticket: KillAsked(ticket=ticket, run_id=run_id, numbers=(2,)),
        lambda ticket: RetryAsked(ticket=ticket, run_id=run_id),
        lambda ticket: RetryAsked(ticket=ticket, run_id=run_id, numbers=(1,)),
        lambda ticket: MarkAsked(ticket=ticket, run_id=run_id, numbers=(0, 1), completed=True),
        lambda ticket: RunsForgotten(ticket=ticket, run_ids=(run_id,)),
    ]
    run = world.of(run_id)
    for event in asked:
        before = (world.phases(run_id), list(run.counts), dict(run.in_flight), list(run.waiting), run.state, run.killing)
        count = len(world.records), len(world.commands)
        assert isinstance(world.ask(event), Refusal)
        assert before == (world.phases(run_id), run.counts, run.in_flight, list(run.waiting), run.state, run.killing)
        assert count == (len(world.records), len(world.commands))


# -- how runs end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "killed", "expected"),
    [
        ([Outcome.SUCCEEDED, Outcome.SUCCEEDED], False, State.COMPLETED),
        ([Outcome.SUCCEEDED, Outcome.FAILED], False, State.ERRORED),
        ([Outcome.FAILED, Outcome.KILLED], True, State.KILLED),
        ([Outcome.SUCCEEDED, Outcome.SUCCEEDED], True, State.COMPLETED),  # both had done their work before they heard
    ],
)
def test_how_a_run_ends(world: World, ends: list[Outcome], killed: bool, expected: State) -> None:
    run_id = world.submit({"a": task(), "b": task()})
    if killed:
        world.kill(run_id, "b")
    for name, outcome in zip("ab", ends, strict=True):
        assert world.state(run_id) in (State.QUEUED, State.RUNNING)
        world.end(run_id, name, outcome=outcome)
    assert world.state(run_id) is expected
    assert world.of(run_id).stop_time == world.wall


def test_to_forget_a_run_costs_the_same_however_many_there_are() -> None:
    def lines(count: int) -> int:
        world = World(checked=False)
        runs = [world.submit({"a": task()}) for _ in range(count)]
        world.kill(runs[0])
        found = lines_run(lambda: world.tell(RunsForgotten(run_ids=(runs[0],))))
        assert runs[0] not in world.machine.runs and len(world.machine.requests) == count - 1
        return found

    assert lines(100) == lines(2)
