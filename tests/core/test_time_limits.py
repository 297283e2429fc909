"""A host that goes away by itself at a known time is given only what can be done before."""

from __future__ import annotations

import pytest
from world import World, task

from daggyr_server.core.events import HostChanged
from daggyr_server.core.placing.host import Host
from daggyr_server.core.states import Phase


@pytest.fixture
def world() -> World:
    return World()


def limited(seconds: float | None, name: str = "h", cores: int = 8) -> HostChanged:
    return HostChanged(pool="main", host=name, name=name, resources={"cores": cores}, open=True, ahead=True, ends=seconds)


def placed(world: World, *run_ids: int) -> list[bool]:
    return [world.phase(run_id, "a") is not Phase.READY for run_id in run_ids]


def timed(seconds: float) -> object:
    return task(details={"command": ["x"], "timeout": seconds})


def test_a_timeout_says_how_long_an_attempt_may_take(world: World) -> None:
    world.tell(limited(60.0))
    short, long, unknown = (world.submit({"a": each}) for each in (timed(59), timed(61), task()))
    assert placed(world, short, long, unknown) == [True, False, True]
    assert world.machine.pools["main"].wanted() == [((("cores", 1),), 61.0, 1)]
    world.tell(limited(None, "for ever"))
    assert placed(world, long) == [True]
    assert world.sent[world.key(long, "a")] == "for ever"


def test_what_is_left_counts(world: World) -> None:
    world.tell(limited(60.0))
    world.wait(30.0)
    late, in_time = (world.submit({"a": timed(seconds)}) for seconds in (31, 29))
    assert placed(world, late, in_time) == [False, True]
    world.wait(30.0)
    assert placed(world, world.submit({"a": task()})) == [False], "its time is over"


def test_without_a_timeout_the_mean_of_its_kind_says_it(world: World) -> None:
    world.host("first")
    run_id = world.submit({"a": task(), "b": task()})
    world.end(run_id, "a", seconds=100.0)
    world.lose("first")
    world.wait(1000.0)
    world.tell(limited(90.0))
    assert world.phase(run_id, "b") is Phase.READY
    world.tell(limited(110.0))
    assert world.phase(run_id, "b") is not Phase.READY


def test_hosts_last_for_ever_unless_they_say_otherwise() -> None:
    assert Host("h", "h", {}, ahead=False).until is None
