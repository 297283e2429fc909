"""What is asked of a run is carried out on a copy: nobody sees that before the machine takes the copy, and it takes no stale one.

That a copy comes to the same as the machine itself, the other tests of this folder hold: their `world` does both.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from lines_run import lines_run
from many_tasks import end_first, many
from world import World, task

from daggyr_server.core.events import MarkAsked, RetryAsked
from daggyr_server.core.placing.reservations import RESERVE_AFTER
from daggyr_server.core.rehearsal import Rehearsal
from daggyr_server.core.states import Outcome, Phase, State
from daggyr_server.core.step import Reason, Refusal


def errored(world: World) -> int:
    run_id = world.submit({"a": task("b"), "b": task()})
    world.end(run_id, "a", outcome=Outcome.FAILED)
    return run_id


def rehearsal(world: World, run_id: int, ticket: object) -> Any:
    asked = RetryAsked(ticket=ticket, run_id=run_id)
    return Rehearsal(world.of(run_id), world.machine.pools).carried_out(asked, world.moment)


def test_a_run_is_as_it_was_until_the_machine_takes_the_copy() -> None:
    world = World()
    world.host(cores=2)
    run_id = errored(world)
    event = rehearsal(world, run_id, "first")
    run = world.of(run_id)
    assert run.state is State.ERRORED and world.phases(run_id) == {"a": Phase.ERRORED, "b": Phase.BLOCKED}
    step = world.tell(event)
    assert step.answers == {"first": None}
    assert world.of(run_id) is run and world.phase(run_id, "a") is Phase.ASSIGNED


def test_a_copy_of_a_run_that_has_changed_since_is_not_taken() -> None:
    world = World()
    world.host(cores=2)
    run_id = errored(world)
    first, second = rehearsal(world, run_id, "first"), rehearsal(world, run_id, "second")
    world.tell(first)
    answer = world.tell(second).answers["second"]
    assert isinstance(answer, Refusal) and answer.reason is Reason.STALE
    assert not second.refused  # so whoever asked tries again
    assert world.attempts(run_id, "a") == 2


def test_a_delay_that_ends_makes_a_copy_stale() -> None:
    world = World()
    world.host(cores=1)
    run_id = world.submit({"a": task(max_retries=1, retry_delay=5), "b": task()})
    world.end(run_id, "a", outcome=Outcome.FAILED)
    world.end(run_id, "b")
    world.host(cores=1, open=False)
    event = rehearsal(world, run_id, "late")
    world.wait(6)
    assert world.phase(run_id, "a") is Phase.READY
    answer = world.tell(event).answers["late"]
    assert isinstance(answer, Refusal)


def test_nothing_is_left_of_the_copy_once_it_was_taken() -> None:
    """No circle of references keeps it, and what it has in common with the run, until the garbage collector runs."""
    world = World()
    run_id = world.submit({"a": task(), "b": task()})
    world.kill(run_id)
    gc.collect()
    gc.disable()
    try:
        event = rehearsal(world, run_id, "t")
        copy = weakref.ref(event.done)
        world.tell(event)
        del event
        assert copy() is None
    finally:
        gc.enable()


def test_what_the_machine_does_to_take_a_copy_does_not_grow_with_the_run() -> None:
    """The machine moves no task of a run that was changed beside it: each move of a task would be lines that are run."""

    def lines(count: int) -> int:
        world = World(checked=False)
        run_id = world.submit(many(count))
        world.kill(run_id)
        event = rehearsal(world, run_id, "t")
        seen = lines_run(lambda: world.machine.handle(world.moment, [event]))
        assert world.of(run_id).state is State.QUEUED
        return seen

    assert lines(3_000) == lines(30)


def mark(world: World, run_id: int, name: str, *, completed: bool) -> None:
    number = world.number(run_id, name)
    assert world.ask(lambda ticket: MarkAsked(ticket=ticket, run_id=run_id, numbers=(number,), completed=completed)) is None


def test_a_run_that_was_changed_keeps_its_turn_and_its_reservation() -> None:
    """A large task that small ones pass over does not wait anew for a host because something was asked of its run."""
    world = World(rehearses=True)
    world.host("h", cores=4)
    small = world.submit(many(200))
    big = world.submit({"big": task(resources={"cores": 4}), "other": task(resources={"cores": 4})})
    world.wait(1)
    end_first(world, small)
    due = world.due
    assert due == world.now + RESERVE_AFTER
    world.wait(10)
    mark(world, big, "other", completed=True)
    assert world.due == due
    world.wait(RESERVE_AFTER - 10)
    host = world.machine.pools["main"].hosts["h"]
    assert host.reserved in world.of(big).queues
    mark(world, big, "other", completed=False)
    assert host.reserved in world.of(big).queues
    world.kill(big)
    assert host.reserved is None


@pytest.mark.parametrize("rehearses", [False, True])
def test_a_run_of_which_nothing_waits_for_now_keeps_its_turn(rehearses: bool) -> None:
    """The tasks of another run, which are passed over by its small one, are seen to have been."""
    gpu = {"cores": 2, "gpu": 1}
    world = World(rehearses=rehearses)
    world.host("h", cores=3)
    first = world.submit({"small": task(), "large": task(resources=gpu)})
    world.submit({"large": task(resources=gpu)})
    world.end(first, "small", outcome=Outcome.FAILED)
    world.kill(first, "large")
    assert world.retry(first) is None
    assert world.phase(first, "small") is Phase.ASSIGNED
    assert world.due == world.now + RESERVE_AFTER
