"""When the pool keeps a host free for a task that others have passed over, and when it lets go. `World` plays the hosts."""

from __future__ import annotations

from collections.abc import Iterable

from many_tasks import end_first, in_flight, many
from world import World, expanded, task

from daggyr_server.core.placing.reservations import RESERVE_AFTER
from daggyr_server.core.states import Phase


def passed_over(hosts: int = 2) -> tuple[World, int, int]:
    """Return a world, a run whose small tasks fill all hosts, and a run whose one task needs a whole host."""
    world = World()
    for index in range(hosts):
        world.host(f"h{index}", cores=4)
    small = world.submit(many(200))
    big = world.submit({"big": task(resources={"cores": 4})})
    return world, small, big


def work(world: World, run_id: int, seconds: float) -> Iterable[float]:
    """Let one attempt of the run end each second; yields the time after each end."""
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
