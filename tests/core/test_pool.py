"""Which host a task goes to: resources, an even spread, and hosts that come, go, pause or drain. `World` plays the hosts.

The order of runs and tasks is in test_shares.py, how much is sent in test_sending_ahead.py, and hosts that are kept free are in
test_reservations.py.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from many_tasks import end_first, in_flight, many
from world import World, task

from daggyr_server.core.commands import RecallAttempts
from daggyr_server.core.placing.host import Host
from daggyr_server.core.states import Phase, State

# -- resources --------------------------------------------------------------------------------------------------------


def test_resources_of_any_name_are_never_oversubscribed() -> None:
    world = World()
    world.host("a", cores=8, resources={"gpu": 2, "licence": 1, "memory_mb": 1_000})
    world.host("b", cores=2, resources={"memory_mb": 500})
    run_id = world.submit(
        {
            **{f"gpu{index}": task(resources={"gpu": 1}) for index in range(4)},
            **{f"big{index}": task(resources={"memory_mb": 400}) for index in range(5)},
            **{f"licensed{index}": task(resources={"licence": 1, "cores": 0}) for index in range(3)},
        }
    )
    hosts = {name: set[str]() for name in "ab"}
    while world.state(run_id) is not State.COMPLETED:
        for number, flight in world.of(run_id).in_flight.items():
            hosts[flight.host].add(world.of(run_id).graph.task_id(number).rstrip("0123456789"))
        end_first(world, run_id)  # check looks at every load after every step
    assert hosts == {"a": {"gpu", "big", "licensed"}, "b": {"big"}}


def test_what_fits_nowhere_waits_and_lets_others_pass() -> None:
    world = World()
    world.host(cores=2)
    run_id = world.submit({"huge": task(resources={"cores": 64}), "small": task()})
    assert world.phases(run_id) == {"huge": Phase.READY, "small": Phase.ASSIGNED}
    world.end(run_id, "small")
    assert world.state(run_id) is State.RUNNING
    world.host("huge", cores=64)
    assert world.phase(run_id, "huge") is Phase.ASSIGNED


def test_a_host_may_lose_resources_while_it_is_loaded() -> None:
    world = World()
    world.host(cores=4)
    run_id = world.submit(many(20))
    world.host(cores=2)
    for left in (3, 2):
        end_first(world, run_id)
        assert in_flight(world, run_id) == {"h": left}
    end_first(world, run_id)
    assert in_flight(world, run_id) == {"h": 2}
    world.host(cores=3)
    assert in_flight(world, run_id) == {"h": 3}


# -- spreading, and hosts that come and go ----------------------------------------------------------------------------


def test_tasks_spread_over_hosts() -> None:
    world = World()
    for index in range(5):
        world.host(f"h{index}", cores=8)
    run_id = world.submit(many(20))
    assert in_flight(world, run_id) == {f"h{index}": 4 for index in range(5)}


def test_the_emptiest_host_is_taken() -> None:
    world = World()
    world.host("busy", cores=8)
    world.submit(many(6))
    world.host("free", cores=4)
    run_id = world.submit({"a": task()})
    assert in_flight(world, run_id) == {"free": 1}


@pytest.mark.parametrize("state", [{"open": False}, {"draining": True}])
def test_a_paused_or_draining_host_takes_nothing_new(state: dict[str, bool]) -> None:
    world = World()
    world.host(cores=2)
    run_id = world.submit(many(5))
    world.start(run_id, *(name for name, phase in world.phases(run_id).items() if phase is Phase.ASSIGNED))
    world.host(cores=2, **state)
    end_first(world, run_id)
    assert in_flight(world, run_id) == {"h": 1}
    world.host(cores=2)
    assert in_flight(world, run_id) == {"h": 2}


def test_draining_recalls_what_has_not_started() -> None:
    world = World()
    world.host(cores=2)
    run_id = world.submit({"a": task(), "b": task()})
    world.start(run_id, "a")
    step = world.host(cores=2, draining=True)
    assert step.commands == [RecallAttempts("main", "h", [world.key(run_id, "b")])]
    assert not world.host(cores=2, draining=True).commands  # once


def test_a_pool_without_hosts_waits_for_one() -> None:
    world = World("main", "other")
    world.host()
    run_id = world.submit({"a": task(pool="other")})
    assert world.phase(run_id, "a") is Phase.READY
    world.host("o", pool="other")
    assert world.phase(run_id, "a") is Phase.ASSIGNED


def test_full_hosts_are_not_searched_for_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(checked=False)
    for index in range(500):
        world.host(f"h{index}", cores=2)
    runs = [world.submit(many(2_000)) for _ in range(3)]
    looked = Counter[str]()
    free = Host.free

    def counted(host: Host, *args: Any) -> tuple[int, int]:
        looked[host.host] += 1
        return free(host, *args)

    monkeypatch.setattr(Host, "free", counted)
    for _ in range(100):
        end_first(world, runs[0])
    assert sum(looked.values()) < 1_000
