"""A host that takes few or none of a kind of tasks for now: what it takes of others goes on, and its word is kept."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from many_tasks import end_first, in_flight, many
from world import World, task

from daggyr_server.core.graph.ready import TaskKind
from daggyr_server.core.placing.doubts import STREAK
from daggyr_server.core.placing.reservations import RESERVE_AFTER
from daggyr_server.core.states import Outcome, Phase

WIDE = TaskKind((("cores", 2),), 0)
NARROW = TaskKind((("cores", 1),), 0)


@pytest.fixture
def world() -> World:
    return World()


def limit(world: World, limits: Mapping[TaskKind, int], cores: int = 8, name: str = "h", *, ahead: bool = False) -> None:
    """A host comes, or has other limits from now on."""
    world.host(name, cores=cores, ahead=ahead, limits=limits)


def wide(count: int) -> dict[str, dict[str, object]]:
    return {f"wide-{number}": task(resources={"cores": 2}) for number in range(count)}


def test_what_a_host_takes_none_of_keeps_no_others_out(world: World) -> None:
    limit(world, {WIDE: 0})
    first = world.submit(wide(5))
    later = world.submit({"narrow": task()})
    assert in_flight(world, first) == {}
    assert world.phase(later, "narrow") is Phase.ASSIGNED
    limit(world, {})
    assert in_flight(world, first) == {"h": 3}, "as far as it goes beside the other run"


def test_no_more_are_given_than_a_host_takes(world: World) -> None:
    limit(world, {WIDE: 2})
    run_id = world.submit(wide(5))
    assert in_flight(world, run_id) == {"h": 2}
    world.end(run_id, "wide-0")
    assert in_flight(world, run_id) == {"h": 1}, "only the host knows whether an end makes room"
    limit(world, {WIDE: 1})
    assert in_flight(world, run_id) == {"h": 2}


def test_short_tasks_that_are_sent_ahead_are_limited_too(world: World) -> None:
    limit(world, {NARROW: 1}, cores=2, ahead=True)
    run_id = world.submit(many(50))
    end_first(world, run_id, seconds=0.001)
    limit(world, {NARROW: 4}, cores=2, ahead=True)
    assert in_flight(world, run_id) == {"h": 4}
    limit(world, {}, cores=2, ahead=True)
    assert in_flight(world, run_id)["h"] > 4


def test_tasks_of_equal_needs_with_another_timeout_are_another_kind(world: World) -> None:
    limit(world, {TaskKind((("cores", 1),), 90_000_000_000): 0})
    run_id = world.submit({"long": task(details={"timeout": 90}), "short": task(details={"timeout": 5}), "any": task()})
    assert world.phase(run_id, "long") is Phase.READY
    assert {world.phase(run_id, name) for name in ("short", "any")} == {Phase.ASSIGNED}


def test_another_host_takes_them(world: World) -> None:
    limit(world, {WIDE: 0}, name="limited")
    run_id = world.submit(wide(3))
    limit(world, {}, name="other", cores=4)
    assert in_flight(world, run_id) == {"other": 2}


def test_what_is_given_back_for_a_limit_says_nothing_of_the_host(world: World) -> None:
    limit(world, {})
    run_id = world.submit(wide(STREAK + 1))
    limit(world, {WIDE: 0})
    for number in range(STREAK + 1):
        world.end(run_id, f"wide-{number}", outcome=Outcome.RETURNED, seconds=None)
        world.wait(1)
    assert not world.machine.pools["main"].doubts.by_host
    assert in_flight(world, run_id) == {}
    assert not world.of(run_id).losses


def test_no_host_is_kept_for_a_task_that_it_does_not_take(world: World) -> None:
    limit(world, {WIDE: 0}, cores=2)
    small = world.submit(many(100))
    world.submit({"big": task(resources={"cores": 2})})
    for _ in range(int(RESERVE_AFTER) + 5):
        world.wait(1)
        end_first(world, small)
    assert not world.machine.pools["main"].reservations.kept
    assert in_flight(world, small) == {"h": 2}


def test_a_host_is_not_kept_any_longer_once_it_does_not_take_the_task(world: World) -> None:
    limit(world, {}, cores=2)
    small = world.submit(many(100))
    world.submit({"big": task(resources={"cores": 2})})
    for _ in range(int(RESERVE_AFTER) + 5):
        world.wait(1)
        if not world.machine.pools["main"].reservations.kept:
            end_first(world, small)
    assert world.machine.pools["main"].reservations.kept
    limit(world, {WIDE: 0}, cores=2)
    assert not world.machine.pools["main"].reservations.kept
    assert in_flight(world, small) == {"h": 2}


def test_nothing_of_higher_priority_that_is_not_taken_has_others_asked_back(world: World) -> None:
    limit(world, {WIDE: 0}, cores=2)
    world.submit({"low": task(), "high": task(resources={"cores": 2}, priority=1)})
    world.wait(5)
    assert not [command for command in world.commands if hasattr(command, "keys")]
