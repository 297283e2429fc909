"""The life of runs, tasks and attempts: what follows from what is told and asked, step by step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from world import World, expanded, task

from daggyr_server.core.commands import RecallAttempts, StartAttempts, StopAttempts
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
from daggyr_server.core.graph.faults import IllegalTransition, StaleAddition
from daggyr_server.core.graph.graph import Addition
from daggyr_server.core.graph.segments import Policy
from daggyr_server.core.records import AttemptRecorded, RunAdded, RunMoved, TasksMoved
from daggyr_server.core.states import MAX_LOSSES, Outcome, Phase, State
from daggyr_server.core.step import Reason, Refusal

ENDS = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OOM_KILLED)


@pytest.fixture
def world() -> World:
    world = World()
    world.host(cores=8)
    return world


def outcomes(world: World, run_id: int, name: str) -> list[Outcome]:
    number = world.key(run_id, name)[1]
    return [r.outcome for r in world.records if isinstance(r, AttemptRecorded) and (r.run_id, r.number) == (run_id, number)]


def moves(world: World, run_id: int) -> list[State]:
    return [record.state for record in world.records if isinstance(record, RunMoved) and record.run_id == run_id]


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
    assert moves(world, run_id) == [State.RUNNING, State.COMPLETED]


def test_a_result_implies_that_the_attempt_started(world: World) -> None:
    run_id = world.submit({"a": task(), "b": task()})
    world.now += 5
    world.end(run_id, "a", seconds=2)
    assert world.state(run_id) is State.RUNNING
    assert world.of(run_id).start_time == world.now - 2


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
    assert moves(world, run_id) == [State.ERRORED]  # nothing of it has run


def test_lost_attempts_are_repeated_ten_times(world: World) -> None:
    run_id = world.submit({"a": task(max_retries=1)})
    for loss in range(MAX_LOSSES):
        world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
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
    assert world.phases(run_id) == {"a": Phase.READY, "b": Phase.READY}
    assert outcomes(world, run_id, "a") == outcomes(world, run_id, "b") == [Outcome.LOST]
    world.host("other", cores=8)
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
        AttemptStarted(*late, world.now),
        AttemptEnded(*late, Outcome.SUCCEEDED, 1.0, None),
        AttemptEnded(*world.key(run_id, "b"), Outcome.FAILED, 1.0, None),
        AttemptEnded(run_id, 0, 7, Outcome.FAILED, 1.0, None),
        AttemptEnded(run_id, 99, 1, Outcome.FAILED, 1.0, None),
        AttemptEnded(run_id + 1, 0, 1, Outcome.SUCCEEDED, 1.0, None),
        AttemptStarted(run_id + 1, 0, 1, world.now),
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


# -- killing ----------------------------------------------------------------------------------------------------------


def test_a_killed_run_ends_its_attempts_and_leaves_the_rest_queued() -> None:
    world = World()
    world.host(cores=2)
    run_id = world.submit({"a": task("c"), "b": task(), "c": task(), "d": task()})
    world.start(run_id, "a")
    running, assigned = world.key(run_id, "a"), world.key(run_id, "b")
    world.commands.clear()
    assert world.kill(run_id) is None
    assert world.commands == [StopAttempts("main", "h", [running]), RecallAttempts("main", "h", [assigned])]
    world.end(run_id, "b", outcome=Outcome.RETURNED, seconds=None)
    assert world.state(run_id) is State.RUNNING  # a process is left
    world.end(run_id, "a", outcome=Outcome.KILLED)
    assert world.state(run_id) is State.KILLED
    assert world.of(run_id).task_states() == {State.KILLED: 1, State.QUEUED: 3}
    assert world.machine.pools["main"].ready == 0


def test_an_attempt_that_started_before_it_heard_of_its_recall_is_stopped(world: World) -> None:
    run_id = world.submit({"a": task()})
    world.kill(run_id)
    assert isinstance(world.commands[-1], RecallAttempts)
    step = world.start(run_id, "a")
    assert step.commands == [StopAttempts("main", "h", [world.key(run_id, "a")])]
    world.end(run_id, "a", outcome=Outcome.KILLED)
    assert world.state(run_id) is State.KILLED


@pytest.mark.parametrize("started", [False, True])
def test_what_exits_with_0_after_a_kill_has_completed(world: World, started: bool) -> None:
    run_id = world.submit({"a": task("b"), "b": task()})
    if started:
        world.start(run_id, "a")
    world.kill(run_id)
    world.end(run_id, "a")
    assert world.phases(run_id) == {"a": Phase.COMPLETED, "b": Phase.READY}
    assert world.state(run_id) is State.KILLED
    assert world.attempts(run_id, "b") == 0  # nothing new


def test_a_killed_run_takes_no_retries(world: World) -> None:
    run_id = world.submit({"a": task(max_retries=3), "b": task(max_retries=3, retry_delay=9)})
    world.end(run_id, "b", outcome=Outcome.FAILED)
    world.start(run_id, "a")
    world.kill(run_id)
    world.end(run_id, "a", outcome=Outcome.FAILED)
    assert world.phases(run_id) == {"a": Phase.KILLED, "b": Phase.DELAYED}
    assert world.state(run_id) is State.KILLED
    world.wait(60)
    assert world.attempts(run_id, "b") == 1


@pytest.mark.parametrize("outcome", [Outcome.KILLED, Outcome.FAILED, Outcome.RETURNED, Outcome.LOST])
def test_a_killed_task_is_killed_however_it_ends(world: World, outcome: Outcome) -> None:
    run_id = world.submit({"a": task("b", max_retries=3), "b": task(), "other": task()})
    world.kill(run_id, "a")
    assert world.commands[-1] == StopAttempts("main", "h", [world.key(run_id, "a")])
    world.end(run_id, "a", outcome=outcome, seconds=None)
    assert world.phase(run_id, "a") is Phase.KILLED
    world.end(run_id, "other")
    assert world.state(run_id) is State.KILLED


def test_tasks_that_wait_are_killed_at_once() -> None:
    world = World()
    world.host(cores=1)
    run_id = world.submit({"a": task("c", max_retries=1, retry_delay=60), "b": task(), "c": task(), "d": task("e"), "e": task()})
    world.end(run_id, "a", outcome=Outcome.FAILED)
    assert [world.phase(run_id, name) for name in "abcd"] == [Phase.DELAYED, Phase.ASSIGNED, Phase.BLOCKED, Phase.READY]
    assert world.kill(run_id, "a", "c", "d") is None
    assert [world.phase(run_id, name) for name in "abcd"] == [Phase.KILLED, Phase.ASSIGNED, Phase.KILLED, Phase.KILLED]
    moved = [record for record in world.records if isinstance(record, TasksMoved)]
    assert [(sorted(record.numbers), record.state) for record in moved] == [([0, 2, 3], State.KILLED)]
    world.end(run_id, "b")
    assert world.state(run_id) is State.KILLED
    assert world.phase(run_id, "e") is Phase.BLOCKED
    world.wait(100)
    assert len(world.sent) == 2


def test_the_name_of_an_expanded_task_means_all_expansions(world: World) -> None:
    run_id = world.submit({"a": task("t"), "t": expanded("P", parameters={"P": ["1", "2"]})})
    world.kill(run_id, "t")
    killed = [name for name, phase in world.phases(run_id).items() if phase is Phase.KILLED]
    assert killed == ["t.P:1", "t.P:2"]
    world.end(run_id, "a")
    assert world.state(run_id) is State.KILLED


def test_kills_that_are_refused(world: World) -> None:
    assert world.ask(lambda ticket: KillAsked(ticket=ticket, run_id=7)) == Refusal(Reason.NOT_FOUND, "there is no run 7")
    run_id = world.submit({"a": task(), "b": task()})
    world.end(run_id, "a")
    assert world.kill(run_id, "a") == Refusal(Reason.NOT_NOW, "nothing to kill: a ended already")
    world.end(run_id, "b")
    assert world.kill(run_id) == Refusal(Reason.NOT_NOW, f"run {run_id} has ended already: it is COMPLETED")
    assert world.kill(run_id, "a") == Refusal(Reason.NOT_NOW, f"run {run_id} has ended already: it is COMPLETED")
    assert world.state(run_id) is State.COMPLETED


def test_a_kill_that_comes_with_the_last_result_comes_too_late(world: World) -> None:
    run_id = world.submit({"a": task()})
    ended = AttemptEnded(*world.key(run_id, "a"), Outcome.SUCCEEDED, 1.0, None)
    step = world.tell(ended, KillAsked(ticket="kill", run_id=run_id))
    assert step.answers == {"kill": Refusal(Reason.NOT_NOW, f"run {run_id} has ended already: it is COMPLETED")}
    assert world.state(run_id) is State.COMPLETED


# -- retrying ---------------------------------------------------------------------------------------------------------


def test_a_retried_run_repeats_what_did_not_complete(world: World) -> None:
    run_id = world.submit({"a": task("c"), "b": task("c", max_retries=1), "c": task()})
    world.end(run_id, "a")
    world.end(run_id, "b", outcome=Outcome.FAILED)
    world.end(run_id, "b", outcome=Outcome.FAILED)
    assert world.state(run_id) is State.ERRORED
    assert world.retry(run_id) is None
    assert world.phases(run_id) == {"a": Phase.COMPLETED, "b": Phase.ASSIGNED, "c": Phase.BLOCKED}
    assert world.attempts(run_id, "b") == 3
    world.end(run_id, "b", outcome=Outcome.FAILED)  # a fresh budget
    world.end(run_id, "b")
    world.end(run_id, "c")
    assert world.state(run_id) is State.COMPLETED
    assert world.attempts(run_id, "a") == 1
    assert moves(world, run_id) == [State.RUNNING, State.ERRORED, State.QUEUED, State.RUNNING, State.COMPLETED]


def test_a_killed_run_goes_on_when_it_is_retried() -> None:
    world = World()
    world.host(cores=2)
    run_id = world.submit({"b": task(max_retries=1, retry_delay=60), "a": task(), "c": task(), "d": task()})
    world.end(run_id, "b", outcome=Outcome.FAILED)
    world.start(run_id, "a")
    world.kill(run_id)
    world.end(run_id, "a", outcome=Outcome.KILLED)
    world.end(run_id, "c", outcome=Outcome.RETURNED, seconds=None)
    assert [world.phase(run_id, name) for name in "abcd"] == [Phase.KILLED, Phase.DELAYED, Phase.READY, Phase.READY]
    assert world.retry(run_id) is None
    # Delays are over and budgets fresh; what has waited for longest goes first.
    assert Phase.DELAYED not in world.phases(run_id).values()
    assert world.of(run_id).failures == {}
    world.obey()
    world.run()
    assert world.state(run_id) is State.COMPLETED


def test_a_retried_task_does_not_wait_for_a_delay_of_before(world: World) -> None:
    run_id = world.submit({"a": task(max_retries=5, retry_delay=10)})
    world.end(run_id, "a", outcome=Outcome.FAILED)  # delayed until +10
    world.kill(run_id, "a")
    world.retry(run_id, "a")
    world.end(run_id, "a", outcome=Outcome.FAILED)
    world.wait(5)
    world.kill(run_id, "a")
    world.retry(run_id, "a")
    world.end(run_id, "a", outcome=Outcome.FAILED)  # delayed until +15
    world.wait(6)
    assert world.phase(run_id, "a") is Phase.DELAYED
    world.wait(4)
    assert world.phase(run_id, "a") is Phase.ASSIGNED


def test_a_task_that_was_ready_when_it_was_killed_runs_once_after_its_retry() -> None:
    world = World()
    world.host(cores=1)
    run_id = world.submit({"a": task(), "b": task(), "c": task()})
    world.kill(run_id, "b")
    world.retry(run_id, "b")
    world.host(cores=8)
    assert sorted(number for _, number, _ in world.sent) == [0, 1, 2]


def test_a_retry_without_downstream_repeats_that_task_only(world: World) -> None:
    run_id = world.submit({"a": task("b"), "b": task("c"), "c": task()})
    for name in "ab":
        world.end(run_id, name)
    world.start(run_id, "c")
    assert world.retry(run_id, "a") is None
    assert world.phases(run_id) == {"a": Phase.ASSIGNED, "b": Phase.COMPLETED, "c": Phase.RUNNING}
    world.end(run_id, "c")
    assert world.state(run_id) is State.RUNNING
    world.end(run_id, "a")
    assert world.state(run_id) is State.COMPLETED
    assert world.attempts(run_id, "b") == world.attempts(run_id, "c") == 1


def test_what_waits_for_a_retried_task_waits_again() -> None:
    world = World()
    world.host(cores=1)
    run_id = world.submit({"a": task("b", "c"), "b": task(max_retries=1), "c": task()})
    world.end(run_id, "a")
    world.start(run_id, "b")
    assert world.phase(run_id, "c") is Phase.READY
    world.retry(run_id, "a")
    assert world.phases(run_id) == {"a": Phase.READY, "b": Phase.RUNNING, "c": Phase.BLOCKED}
    world.end(run_id, "b", outcome=Outcome.FAILED)  # it has to be repeated, after its parent
    assert world.phases(run_id) == {"a": Phase.ASSIGNED, "b": Phase.BLOCKED, "c": Phase.BLOCKED}
    world.obey()
    world.run()
    assert world.state(run_id) is State.COMPLETED
    assert [world.attempts(run_id, name) for name in "abc"] == [2, 2, 1]


def test_a_retry_with_downstream_repeats_all_behind_it(world: World) -> None:
    run_id = world.submit({"a": task("t"), "t": expanded("P", "z", parameters={"P": ["1", "2"]}), "z": task(), "other": task()})
    world.obey()
    world.run()
    assert world.state(run_id) is State.COMPLETED
    assert world.retry(run_id, "a", downstream=True) is None
    assert {name for name, phase in world.phases(run_id).items() if phase is Phase.BLOCKED} == {
        "t",
        "t.P:1",
        "t.P:2",
        "t.tail",
        "z",
    }
    world.run()
    assert world.state(run_id) is State.COMPLETED
    tasks = ("a", "t.P:1", "t.P:2", "z", "other")
    assert [world.attempts(run_id, name) for name in tasks] == [2, 2, 2, 2, 1]


def test_a_tail_waits_again_for_a_retried_expansion() -> None:
    world = World()
    world.host(cores=1)
    run_id = world.submit({"t": expanded("P", "z", parameters={"P": ["1", "2"]}), "z": task("y"), "y": task(), "busy": task()})
    for name in ("t.P:1", "t.P:2"):
        while world.phase(run_id, name) is not Phase.COMPLETED:
            world.end(run_id, *(busy for busy, phase in world.phases(run_id).items() if phase is Phase.ASSIGNED))
    assert world.phase(run_id, "t.tail") is Phase.COMPLETED
    world.retry(run_id, "t.P:1")
    assert world.phase(run_id, "t.tail") is Phase.BLOCKED
    world.obey()
    world.run()
    assert world.state(run_id) is State.COMPLETED
    assert world.attempts(run_id, "z") == 1


def test_a_run_that_was_killed_with_all_its_work_done_completes_when_it_is_retried(world: World) -> None:
    run_id = world.submit({"a": task()})
    world.kill(run_id)
    world.end(run_id, "a")
    assert world.state(run_id) is State.KILLED
    assert world.retry(run_id) is None
    assert world.state(run_id) is State.COMPLETED
    assert world.attempts(run_id, "a") == 1


def test_retries_that_are_refused(world: World) -> None:
    run_id = world.submit({"a": task("b"), "b": task("c"), "c": task()})
    not_now = lambda message: Refusal(Reason.NOT_NOW, message)  # noqa: E731
    assert world.retry(run_id) == not_now(f"run {run_id} has not ended: it is QUEUED")
    assert world.retry(run_id, "a") == not_now("a still runs: wait for it, or kill it first")
    assert world.retry(run_id, "c") == not_now("c has not ended: it will run by itself")
    world.end(run_id, "a")
    assert world.retry(run_id, "a", downstream=True) == not_now("b still runs: wait for it, or kill it first")
    world.kill(run_id)
    world.start(run_id, "b")
    assert world.retry(run_id, "a") == not_now(f"run {run_id} is being killed: wait until it has ended")
    world.end(run_id, "b", outcome=Outcome.REJECTED, seconds=None)
    assert world.retry(run_id, "c") == not_now("c waits for tasks that did not complete: retry those")
    assert world.state(run_id) is State.KILLED
    world.retry(run_id)
    world.end(run_id, "b")
    world.end(run_id, "c")
    assert world.retry(run_id) == not_now(f"nothing to retry: run {run_id} is COMPLETED")
    assert world.retry(run_id, "c") is None


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


# -- generators -------------------------------------------------------------------------------------------------------

GENERATING = {"g": task("end", is_generator=True), "end": task()}


def test_generated_tasks_stand_between_the_generator_and_its_children(world: World) -> None:
    run_id = world.submit(GENERATING)
    step = world.generate(run_id, "g", {"x": task("y"), "y": task(), "t": expanded("P", parameters={"P": ["1", "2"]})})
    assert [
        type(record).__name__ for record in step.records if type(record).__name__ in ("AttemptRecorded", "TasksGenerated")
    ] == [
        "AttemptRecorded",
        "TasksGenerated",
    ]
    assert {name: phase for name, phase in world.phases(run_id).items() if phase is Phase.ASSIGNED}.keys() == {
        "x",
        "t.P:1",
        "t.P:2",
    }
    assert world.phase(run_id, "end") is Phase.BLOCKED
    world.obey()
    world.end(run_id, "x", "t.P:1", "t.P:2")
    assert world.phase(run_id, "end") is Phase.BLOCKED
    world.end(run_id, "y")
    world.end(run_id, "end")
    assert world.state(run_id) is State.COMPLETED


def test_generated_tasks_may_wait_for_what_has_completed_already(world: World) -> None:
    run_id = world.submit({**GENERATING, "early": task(), "late": task()})
    world.end(run_id, "early")
    world.generate(run_id, "g", {"x": task(parents=["early"]), "y": task(parents=["early", "late"])})
    assert (world.phase(run_id, "x"), world.phase(run_id, "y")) == (Phase.ASSIGNED, Phase.BLOCKED)
    world.end(run_id, "late")
    assert world.phase(run_id, "y") is Phase.ASSIGNED


def test_generators_generate_generators(world: World) -> None:
    run_id = world.submit(GENERATING)
    for level in range(5):
        world.generate(run_id, "g" if not level else f"g{level - 1}", {f"g{level}": task(is_generator=True)})
    world.generate(run_id, "g4", {"last": task()})
    world.end(run_id, "last")
    world.end(run_id, "end")
    assert world.state(run_id) is State.COMPLETED
    assert world.of(run_id).revision == 7


def test_a_refused_generator_is_errored_and_adds_nothing(world: World) -> None:
    run_id = world.submit(GENERATING)
    world.tell(AttemptEnded(*world.key(run_id, "g"), Outcome.SUCCEEDED, 1.0, "result", refusal="rubbish"))
    assert world.phases(run_id) == {"g": Phase.ERRORED, "end": Phase.BLOCKED}
    assert world.state(run_id) is State.ERRORED
    # A person may have mended it.
    world.retry(run_id)
    world.generate(run_id, "g", {"x": task()})
    world.end(run_id, "x")
    world.end(run_id, "end")
    assert world.state(run_id) is State.COMPLETED


def test_an_addition_for_an_older_graph_raises_and_changes_nothing(world: World) -> None:
    run_id = world.submit({"g": task(is_generator=True), "h": task(is_generator=True)})
    stale = world.generated(run_id, "g", {"y": task()})
    world.generate(run_id, "h", {"x": task()})
    before = (world.phases(run_id), world.of(run_id).graph.size, len(world.of(run_id).queues))
    with pytest.raises(StaleAddition):
        world.machine.handle(world.now, [AttemptEnded(*world.key(run_id, "g"), Outcome.SUCCEEDED, 1.0, None, stale)])
    assert before == (world.phases(run_id), world.of(run_id).graph.size, len(world.of(run_id).queues))
    world.tell()


def test_a_completed_generator_is_not_repeated(world: World) -> None:
    run_id = world.submit({"a": task("g"), "g": task(is_generator=True)})
    world.end(run_id, "a")
    world.generate(run_id, "g", {"x": task()})
    world.end(run_id, "x", outcome=Outcome.FAILED)
    refusal = Refusal(Reason.NOT_NOW, "g is a generator whose tasks are part of the run already: submit a new run instead")
    assert world.retry(run_id, "g") == refusal
    assert world.retry(run_id, "a", downstream=True) == refusal
    assert world.retry(run_id) is None
    world.end(run_id, "x")
    assert world.state(run_id) is State.COMPLETED


def test_a_generator_of_a_killed_run_adds_tasks_that_stay_queued(world: World) -> None:
    run_id = world.submit(GENERATING)
    world.start(run_id, "g")
    world.kill(run_id)
    world.generate(run_id, "g", {"x": task()})
    assert world.phases(run_id) == {"g": Phase.COMPLETED, "end": Phase.BLOCKED, "x": Phase.READY}
    assert world.state(run_id) is State.KILLED
    world.retry(run_id)
    assert world.phase(run_id, "x") is Phase.ASSIGNED


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
    assert world.of(run_id).stop_time == world.now
