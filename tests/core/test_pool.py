"""Which task goes to which host, and when: shares, priority, sending ahead, reservations, hosts that come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from world import World, expanded, task

from daggyr_server.core.check import check
from daggyr_server.core.commands import RecallAttempts, StartAttempts
from daggyr_server.core.placing.host import AHEAD_SECONDS, Host
from daggyr_server.core.placing.reservations import RESERVE_AFTER
from daggyr_server.core.states import Outcome, Phase, State
from daggyr_server.core.step import Step


def many(count: int, **fields: Any) -> dict[str, dict[str, Any]]:
    """One task with this many expansions."""
    return {"t": expanded("N", parameters={"N": [str(number) for number in range(count)]}, **fields)}


def placed(step: Step) -> list[tuple[int, str, int]]:
    """(run id, host, how many) of each order to start, in their order."""
    return [(c.run_id, c.host, len(c.numbers)) for c in step.commands if isinstance(c, StartAttempts)]


def in_flight(world: World, run_id: int) -> Counter[str]:
    return Counter(flight.host for flight in world.of(run_id).in_flight.values())


def known_to_last(world: World, run_id: int, seconds: float) -> None:
    """The run's tasks have lasted so long up to now."""
    for queue in world.of(run_id).queues:
        queue.lasted(seconds)


def end_first(world: World, run_id: int, count: int = 1, seconds: float = 1.0) -> Step:
    """The attempts of the run that are longest in flight succeed."""
    names = [world.of(run_id).graph.task_id(number) for number in list(world.of(run_id).in_flight)[:count]]
    return world.end(run_id, *names, seconds=seconds)


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
    # It had to wait for what was sent already, not for its turn.
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
    """One slot, taken by tasks of low priority, and `high`, which becomes ready when `gate` ends."""
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


# -- reservations -----------------------------------------------------------------------------------------------------


def passed_over(hosts: int = 2) -> tuple[World, int, int]:
    """A run of long small tasks that fill all hosts, and one of a task that needs a whole host."""
    world = World()
    for index in range(hosts):
        world.host(f"h{index}", cores=4)
    small = world.submit(many(200))
    big = world.submit({"big": task(resources={"cores": 4})})
    return world, small, big


def work(world: World, run_id: int, seconds: float) -> Iterable[float]:
    """One attempt of the run ends each second."""
    for _ in range(int(seconds)):
        world.wait(1)
        end_first(world, run_id)
        yield world.now


def test_a_task_that_was_passed_over_gets_one_host() -> None:
    world, small, big = passed_over()
    began = world.now
    for now in work(world, small, RESERVE_AFTER):
        assert world.phase(big, "big") is Phase.READY
        assert sum(in_flight(world, small).values()) == 8 or now - began >= RESERVE_AFTER
    for _ in work(world, small, 20):
        if world.phase(big, "big") is not Phase.READY:
            break
    assert world.phase(big, "big") is Phase.ASSIGNED
    host = world.of(big).in_flight[0].host
    # The other host went on, and this one is nobody's when the task has run.
    assert in_flight(world, small) == {({"h0", "h1"} - {host}).pop(): 4}
    world.end(big, "big")
    assert in_flight(world, small) == {"h0": 4, "h1": 4}
    assert world.due is None


def test_the_reservation_is_made_in_time_without_any_event() -> None:
    world, small, _ = passed_over(hosts=1)
    world.wait(1)
    end_first(world, small)
    assert world.due == world.now + RESERVE_AFTER
    world.wait(RESERVE_AFTER)
    for left in (3, 2, 1, 0):
        assert world.machine.pools["main"].hosts["h0"].reserved is not None
        end_first(world, small)
        assert in_flight(world, small)["h0"] == left


def test_a_reservation_does_not_outlive_its_task() -> None:
    for way in ("kill the task", "kill the run", "lose the host", "close the host", "shrink the host"):
        world, small, big = passed_over()
        for _ in work(world, small, RESERVE_AFTER + 1):
            pass
        (kept,) = world.machine.pools["main"].reservations.kept.values()
        while in_flight(world, small)[kept.host] == 4:
            end_first(world, small)
        if way == "kill the task":
            world.kill(big, "big")
        elif way == "kill the run":
            world.kill(big)
        elif way == "lose the host":
            world.lose(kept.host)
        elif way == "close the host":
            world.host(kept.host, cores=4, open=False)
        else:
            world.host(kept.host, cores=3)
        kept_now = world.machine.pools["main"].reservations.kept
        if way.startswith("kill"):
            assert not kept_now and in_flight(world, small)[kept.host] == 4
        else:
            assert [host.host for host in kept_now.values()] in ([], [({"h0", "h1"} - {kept.host}).pop()])


def test_what_a_reservation_held_is_taken_in_the_step_in_which_its_task_finds_another_host() -> None:
    world = World()
    world.host("kept", cores=4, resources={"x": 9})
    world.host("gpus", cores=0, resources={"gpu": 9})
    small = world.submit(many(200, resources={"x": 1}))
    hog = expanded("N", parameters={"N": list("123456789")}, resources={"cores": 0, "gpu": 1})
    big = world.submit({"big": task(resources={"cores": 4}), "gate": task("hog", resources={"cores": 0}), "hog": hog})
    for _ in work(world, small, RESERVE_AFTER + 2):
        pass
    assert in_flight(world, small) == {"kept": 2}
    world.end(big, "gate")  # from here on its run has more than the other, whose turn is first
    world.host("other", cores=4)
    assert world.of(big).in_flight[world.key(big, "big")[1]].host == "other"
    assert in_flight(world, small) == {"kept": 4}


def test_small_tasks_go_on_where_they_do_not_disturb_a_reservation() -> None:
    world = World()
    world.host(cores=6)
    small = world.submit(many(200))
    big = world.submit({"big": task(resources={"cores": 4})})
    for _ in work(world, small, RESERVE_AFTER + 10):
        pass
    assert world.phase(big, "big") is Phase.ASSIGNED
    assert in_flight(world, small) == {"h": 2}


def test_no_host_is_kept_for_what_others_do_not_contend_for() -> None:
    world = World()
    world.host(cores=4, resources={"gpu": 1})
    holder = world.submit({"holder": task(resources={"gpu": 1})})
    small = world.submit(many(200))
    waits = world.submit({"waits": task(resources={"gpu": 1, "cores": 2})})
    for _ in work(world, small, 2 * RESERVE_AFTER):
        pass
    # The GPU is taken: an empty slot would help nobody.
    assert in_flight(world, small) == {"h": 3}
    world.end(holder, "holder")
    for _ in work(world, small, 3):
        pass
    assert world.phase(waits, "waits") is Phase.ASSIGNED


def test_a_lower_priority_is_not_passed_over_by_a_higher_one_of_its_run() -> None:
    world = World()
    world.host(cores=4)
    run_id = world.submit({**many(200, priority=1), "big": task(resources={"cores": 4})})
    for _ in work(world, run_id, 2 * RESERVE_AFTER):
        pass
    assert world.due is None
    assert in_flight(world, run_id) == {"h": 4}


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
