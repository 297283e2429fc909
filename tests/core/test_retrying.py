"""People retry runs and tasks that have ended: which tasks `Machine` repeats then, and which wait again. `World` plays the hosts.

Retries that a task's own `max_retries` allows are in test_machine.py.
"""

from __future__ import annotations

from world import World, expanded, task

from daggyr_server.core.states import Outcome, Phase, State
from daggyr_server.core.step import Reason, Refusal


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
    assert world.moves(run_id) == [State.RUNNING, State.ERRORED, State.QUEUED, State.RUNNING, State.COMPLETED]


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
    assert world.retry(run_id, "c") == not_now("c waits for b, which is ERRORED: retry that")
    assert world.state(run_id) is State.KILLED
    world.retry(run_id)
    world.end(run_id, "b")
    world.end(run_id, "c")
    assert world.retry(run_id) == not_now(f"nothing to retry: run {run_id} is COMPLETED")
    assert world.retry(run_id, "c") is None
