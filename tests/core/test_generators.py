"""Generators add tasks to their run: where these stand in the graph, and when `Machine` refuses them. `World` plays the hosts."""

from __future__ import annotations

import pytest
from world import World, expanded, task

from daggyr_server.core.events import (
    AttemptEnded,
)
from daggyr_server.core.graph.faults import StaleAddition
from daggyr_server.core.states import Outcome, Phase, State
from daggyr_server.core.step import Reason, Refusal

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
        world.machine.handle(world.moment, [AttemptEnded(*world.key(run_id, "g"), Outcome.SUCCEEDED, 1.0, None, stale)])
    assert before == (world.phases(run_id), world.of(run_id).graph.size, len(world.of(run_id).queues))
    world.tell()


def test_a_completed_generator_is_not_repeated_while_its_tasks_are_there(world: World) -> None:
    """With all behind it, these are to go first, which takes an edit; the driver makes it."""
    run_id = world.submit({"a": task("g"), "g": task(is_generator=True)})
    world.end(run_id, "a")
    world.generate(run_id, "g", {"x": task()})
    world.end(run_id, "x", outcome=Outcome.FAILED)
    how = f"to take them away and run it again, daggyr retry {run_id} --task g --downstream"
    refusal = Refusal(Reason.NOT_NOW, f"g is a generator whose tasks are part of the run: {how}")
    assert world.retry(run_id, "g") == refusal
    grown = Refusal(Reason.GROWN, "g has made tasks that are to go first")
    assert world.retry(run_id, "a", downstream=True) == grown
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
