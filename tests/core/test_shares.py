"""How runs share a pool: equal shares of what comes free, and priority within a run. `World` plays the hosts.

What priority takes back from hosts that were sent tasks ahead is here too, because priority decides it.
"""

from __future__ import annotations

from typing import Any

import pytest
from many_tasks import end_first, in_flight, known_to_last, many, placed
from world import World, task

from daggyr_server.core.check import check
from daggyr_server.core.commands import RecallAttempts, StartAttempts
from daggyr_server.core.states import Outcome, Phase, State
from daggyr_server.core.step import Step

# -- equal shares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("seconds", [0.002, 5.0])
def test_a_small_run_does_not_wait_for_a_big_one(ahead: bool, seconds: float) -> None:
    world = World(checked=False)  # every step of 10,000 tasks would be walked whole
    for name in ("h1", "h2"):
        world.host(name, cores=4, ahead=ahead)
    world.lasts = lambda key: seconds
    big = world.submit(many(10_000))
    world.run(lambda: world.of(big).counts[Phase.COMPLETED] > 1_000)
    small = world.submit({"a": task("b"), "b": task("c"), "c": task()})
    world.run(lambda: world.state(small) is State.COMPLETED)
    assert world.state(small) is State.COMPLETED
    # The small run had to wait for the attempts that were sent already, not for its turn.
    assert world.of(big).counts[Phase.COMPLETED] < 2_500
    assert world.state(big) is State.RUNNING
    world.run()
    assert world.state(big) is State.COMPLETED
    assert world.of(big).counts[Phase.COMPLETED] == 10_002


def test_runs_get_equal_parts_of_what_comes_free() -> None:
    world = World()
    world.host(cores=12)
    first, second, third = (world.submit(many(50)) for _ in range(3))
    assert [len(in_flight(world, run_id)) for run_id in (first, second, third)] == [1, 0, 0]
    for _ in range(8):
        end_first(world, first)
    assert [in_flight(world, run_id)["h"] for run_id in (first, second, third)] == [4, 4, 4]


def test_runs_take_turns_where_only_one_fits() -> None:
    world = World()
    world.host(cores=1)
    runs = [world.submit(many(4)) for _ in range(3)]
    served = []
    for _ in range(12):
        served += [run_id for run_id in runs if world.of(run_id).in_flight]
        end_first(world, served[-1])
    assert served == runs * 4


def test_shares_count_cores() -> None:
    world = World()
    world.host(cores=12)
    narrow, wide = world.submit(many(50)), world.submit(many(50, resources={"cores": 3}))
    while in_flight(world, wide)["h"] < 2:
        end_first(world, narrow, 3)
    assert (in_flight(world, narrow)["h"], in_flight(world, wide)["h"]) == (6, 2)


def test_a_run_alone_gets_everything() -> None:
    world = World()
    world.host(cores=12)
    run_id = world.submit(many(50))
    assert in_flight(world, run_id) == {"h": 12}


def test_short_tasks_that_were_sent_ahead_do_not_keep_a_new_run_out() -> None:
    world = World(checked=False)
    world.host(cores=4, ahead=True)
    big = world.submit(many(5_000))
    known_to_last(world, big, 0.001)
    end_first(world, big, seconds=0.001)
    assert in_flight(world, big)["h"] > 100
    new = world.submit(many(50))
    for _ in range(400):
        end_first(world, big, seconds=0.001)
    check(world.machine)
    # Half of the slots each: the new run's length is unknown, the old one's half is 100 ms deep.
    assert in_flight(world, new) == {"h": 2}
    assert 100 < in_flight(world, big)["h"] < 250


# -- priority ---------------------------------------------------------------------------------------------------------


def test_higher_priority_goes_first_within_a_run() -> None:
    world = World()
    run_id = world.submit({"low": task(priority=-1), "plain": task(), "high": task(priority=7)})
    step = world.host(cores=1)
    assert placed(step) == [(run_id, "h", 1)]
    order = []
    while world.state(run_id) is not State.COMPLETED:
        order += [name for name, phase in world.phases(run_id).items() if phase is Phase.ASSIGNED]
        world.end(run_id, order[-1])
    assert order == ["high", "plain", "low"]


def test_priority_does_not_reach_over_runs() -> None:
    world = World()
    first, second = world.submit({"a": task(priority=9), "b": task(priority=9)}), world.submit({"a": task(), "b": task()})
    world.host(cores=2)
    assert (in_flight(world, first)["h"], in_flight(world, second)["h"]) == (1, 1)


def waiting_for_priority(*, ahead: bool, **fields: Any) -> tuple[World, int]:
    """Return a world and a run: tasks of low priority take the one slot, and `high` becomes ready when `gate` ends."""
    world = World()
    world.host(cores=1, ahead=ahead, resources={"gpu": 1})
    gate = task("high", resources={"cores": 0})
    return world, world.submit({**many(300), "gate": gate, "high": task(priority=1, **fields)})


def recalled(step: Step) -> list[int]:
    return [number for command in step.commands if isinstance(command, RecallAttempts) for _, number, _ in command.keys]


def test_higher_priority_recalls_what_was_sent_ahead() -> None:
    world, run_id = waiting_for_priority(ahead=True)
    known_to_last(world, run_id, 0.01)
    world.end(run_id, "t.N:0", seconds=0.01)
    world.start(run_id, "t.N:1")
    waiting = [number for number, flight in world.of(run_id).in_flight.items() if flight.start_time is None][1:]
    assert len(waiting) > 8
    step = world.end(run_id, "gate", seconds=0.0)
    assert world.phase(run_id, "high") is Phase.READY
    assert recalled(step) == waiting
    step = world.end(run_id, *map(world.of(run_id).graph.task_id, waiting), outcome=Outcome.RETURNED, seconds=None)
    assert isinstance(step.commands[0], StartAttempts) and step.commands[0].numbers == [world.key(run_id, "high")[1]]
    # Those that were returned wait in line again, and nothing is recalled twice.
    assert not recalled(step)


def test_higher_priority_recalls_what_has_not_started_on_a_full_host() -> None:
    world, run_id = waiting_for_priority(ahead=False)
    step = world.end(run_id, "gate", seconds=0.0)
    assert recalled(step) == [world.key(run_id, "t.N:0")[1]]
    world.end(run_id, "t.N:0", outcome=Outcome.RETURNED, seconds=None)
    assert world.phase(run_id, "high") is Phase.ASSIGNED


def test_nothing_is_recalled_for_what_would_not_fit_anyway() -> None:
    world, run_id = waiting_for_priority(ahead=True, resources={"gpu": 2})
    assert not recalled(world.end(run_id, "gate", seconds=0.0))


def test_what_has_started_is_not_recalled() -> None:
    world = World()
    world.host(cores=1)
    run_id = world.submit({"low": task(), "high": task(priority=1, max_retries=1, retry_delay=5)})
    world.end(run_id, "high", outcome=Outcome.FAILED)
    world.start(run_id, "low")
    world.wait(5)
    assert world.phase(run_id, "high") is Phase.READY
    assert not [command for command in world.commands if isinstance(command, RecallAttempts)]
