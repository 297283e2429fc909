"""People kill runs and tasks: what `Machine` tells the hosts then, and what becomes of the tasks. `World` plays the hosts."""

from __future__ import annotations

import pytest
from world import World, expanded, task

from daggyr_server.core.commands import RecallAttempts, StopAttempts
from daggyr_server.core.events import (
    AttemptEnded,
    KillAsked,
)
from daggyr_server.core.records import TasksMoved
from daggyr_server.core.states import Outcome, Phase, State
from daggyr_server.core.step import Reason, Refusal


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
