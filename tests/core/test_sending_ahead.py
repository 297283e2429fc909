"""How far the pool sends tasks ahead to a host, and when it takes some back for a host that idles. `World` plays the hosts."""

from __future__ import annotations

from typing import Any

import pytest
from many_tasks import end_first, in_flight, known_to_last, many
from world import World

from daggyr_server.core.commands import RecallAttempts
from daggyr_server.core.placing.host import AHEAD_SECONDS
from daggyr_server.core.states import Outcome, Phase

# -- sending ahead ----------------------------------------------------------------------------------------------------


def sent_to_one_host(seconds: float | None, *, ahead: bool = True, cores: int = 4, **fields: Any) -> int:
    world = World()
    world.host(cores=cores, ahead=ahead, resources={"gpu": 4})
    run_id = world.submit(many(20_000, **fields))
    if seconds is not None:
        known_to_last(world, run_id, seconds)
        end_first(world, run_id, len(world.of(run_id).in_flight), seconds)
    return in_flight(world, run_id)["h"]


def test_one_a_slot_is_sent_while_it_is_unknown_how_long_they_last() -> None:
    assert sent_to_one_host(None) == 4


@pytest.mark.parametrize("seconds", [0.001, 0.005, 0.02, 0.1, 0.5])
def test_short_tasks_are_sent_ahead_for_a_tenth_of_a_second(seconds: float) -> None:
    running = 4
    work_behind = (sent_to_one_host(seconds) - running) * seconds / 4
    assert 0.8 * AHEAD_SECONDS <= work_behind <= AHEAD_SECONDS + seconds


def test_long_tasks_are_not_sent_ahead() -> None:
    assert sent_to_one_host(1.0) == sent_to_one_host(3_600.0) == 4


def test_nothing_is_sent_ahead_to_a_host_that_does_not_queue() -> None:
    assert sent_to_one_host(0.001, ahead=False) == 4


def test_sending_ahead_is_bounded_however_short_tasks_are() -> None:
    assert sent_to_one_host(0.0, cores=64) == 6_000
    assert sent_to_one_host(0.0, resources={"cores": 0, "gpu": 1}) == 6_000


def test_scarce_resources_are_sent_ahead_for_as_well() -> None:
    assert sent_to_one_host(0.1, resources={"gpu": 2}) == 4


def test_nothing_is_sent_to_wait_behind_long_attempts() -> None:
    world = World()
    world.host(cores=4, ahead=True)
    long = world.submit(many(4))
    short = world.submit(many(1_000))
    known_to_last(world, long, 600.0)
    known_to_last(world, short, 0.001)
    world.host(cores=4, ahead=True)  # nothing new, but the pool looks again
    assert in_flight(world, long) == {"h": 4} and not world.of(short).in_flight


def test_short_tasks_are_not_sent_where_long_attempts_leave_no_room_for_them() -> None:
    world = World()
    world.host(cores=4, ahead=True)
    long = world.submit(many(2))
    short = world.submit(many(1_000, resources={"cores": 3}))
    known_to_last(world, short, 0.001)
    world.host(cores=4, ahead=True)  # nothing new, but the pool looks again
    assert in_flight(world, long) == {"h": 2} and not world.of(short).in_flight
    end_first(world, long)
    assert in_flight(world, short)["h"] > 10


# -- hosts that idle --------------------------------------------------------------------------------------------------


def test_an_idle_host_gets_what_waits_on_another() -> None:
    world = World()
    world.host("busy", cores=1, ahead=True)
    run_id = world.submit(many(10))
    known_to_last(world, run_id, 0.01)
    end_first(world, run_id, seconds=0.01)
    assert in_flight(world, run_id) == {"busy": 9}
    running, *waiting = list(world.of(run_id).in_flight)
    world.start(run_id, world.of(run_id).graph.task_id(running))
    world.commands.clear()
    world.host("idle", cores=2, ahead=True)  # and the attempt that runs does not end
    world.wait(2 * AHEAD_SECONDS)
    (recall,) = world.commands
    assert isinstance(recall, RecallAttempts) and recall.host == "busy"
    assert [number for _, number, _ in recall.keys] == waiting[:2]
    world.commands.clear()
    world.wait(10 * AHEAD_SECONDS)
    told = [key for command in world.commands for key in command.keys if isinstance(command, RecallAttempts)]
    assert len(told) == len(set(told)) and not {key[1] for key in told} & set(waiting[:2])
    world.end(run_id, *(world.of(run_id).graph.task_id(number) for number in waiting[:2]), outcome=Outcome.RETURNED, seconds=None)
    assert in_flight(world, run_id)["idle"] == 2


def test_what_was_recalled_for_an_idle_host_goes_there() -> None:
    """This holds however much the busy host seems to have left, because its attempts take longer than those before them."""
    world = World()
    world.host("busy", cores=8, ahead=True)
    run_id = world.submit(many(60))
    known_to_last(world, run_id, 0.01)
    end_first(world, run_id, 8, seconds=0.01)
    graph = world.of(run_id).graph
    world.start(run_id, *map(graph.task_id, list(world.of(run_id).in_flight)[:8]))
    world.host("idle", cores=2, ahead=True)
    for _ in range(20):
        world.commands.clear()
        world.wait(2 * AHEAD_SECONDS)
        keys = [key for command in world.commands if isinstance(command, RecallAttempts) for key in command.keys]
        names = [graph.task_id(number) for _, number, _ in keys]
        world.end(run_id, *names, outcome=Outcome.RETURNED, seconds=None)
        assert {world.of(run_id).in_flight[number].host for _, number, _ in keys} <= {"idle"}
        world.start(run_id, *names)
    assert max(world.of(run_id).attempts) == 2


def test_nothing_is_recalled_for_an_idle_host_before_its_time_or_from_one_that_idles_itself() -> None:
    world = World()
    world.host("one", cores=4, ahead=True)
    world.host("two", cores=4, ahead=True)
    run_id = world.submit(many(4))
    assert in_flight(world, run_id) == {"one": 2, "two": 2}
    world.wait(60)  # nothing has started yet; both have slots for it
    assert not [command for command in world.commands if isinstance(command, RecallAttempts)]
    assert world.due is not None  # as long as something waits, the machine looks again
    world.start(run_id, *(name for name, phase in world.phases(run_id).items() if phase is Phase.ASSIGNED))
    world.wait(1)
    assert world.due is None
