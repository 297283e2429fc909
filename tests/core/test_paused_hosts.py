"""LOST waits and goes elsewhere; a host on which nothing runs is paused; a host that says that it is at fault gets nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from world import World, task

from daggyr_server.core.events import AttemptEnded, HostChanged
from daggyr_server.core.graph.ready import ELSEWHERE_SECONDS
from daggyr_server.core.graph.run import LONGEST_PAUSE_OF_LOST, seconds_before_lost
from daggyr_server.core.placing.doubts import CAREFUL_SECONDS, LONGEST_PAUSE, STREAK
from daggyr_server.core.placing.host import Host
from daggyr_server.core.states import MAX_LOSSES, Outcome, Phase, State


@pytest.fixture
def world() -> World:
    return World()


def host_of(world: World, run_id: int, name: str) -> str:
    return world.sent[world.key(run_id, name)]


def the_host(world: World, name: str = "h") -> Host:
    return world.machine.pools["main"].hosts[name]


def in_flight(world: World, run_id: int, host: str = "", since: float = float("inf")) -> list[str]:
    """The names of the tasks that have attempts in flight (on `host`; assigned before `since`)."""
    run = world.of(run_id)
    attempts = (one for one in run.in_flight.values() if one.host == (host or one.host) and one.sent.since <= since)
    return [run.graph.task_id(one.number) for one in attempts]


# -- LOST -------------------------------------------------------------------------------------------------------------


def test_the_pause_of_what_is_lost_doubles_and_is_bounded() -> None:
    assert [seconds_before_lost(loss) for loss in range(1, 5)] == [1.0, 2.0, 4.0, 8.0]
    assert seconds_before_lost(MAX_LOSSES) == LONGEST_PAUSE_OF_LOST
    assert sum(map(seconds_before_lost, range(1, MAX_LOSSES + 1))) > 600


def test_what_is_lost_waits(world: World) -> None:
    world.host()
    run_id = world.submit({"a": task()})
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    world.wait(0.99)
    assert world.phase(run_id, "a") is Phase.DELAYED
    world.wait(0.02)
    assert world.phase(run_id, "a") is Phase.ASSIGNED
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    world.wait(1.99)
    assert world.phase(run_id, "a") is Phase.DELAYED
    world.wait(0.02)
    assert world.phase(run_id, "a") is Phase.ASSIGNED


@pytest.mark.parametrize("cores", [1, 3])
def test_what_is_lost_goes_to_another_host(world: World, cores: int) -> None:
    """However much more room there is where it was lost."""
    world.host("bad", cores=8)
    run_id = world.submit({"a": task(), "b": task(), "c": task()})
    world.host("good", cores=cores)
    world.end(run_id, "a", "b", "c", outcome=Outcome.LOST, seconds=None)
    world.wait(1)
    for _ in range(3):
        sent = [name for name in "abc" if world.phase(run_id, name) is Phase.ASSIGNED]
        assert {host_of(world, run_id, name) for name in sent} <= {"good"}
        world.end(run_id, *sent)
    assert world.state(run_id) is State.COMPLETED


def test_others_go_where_something_was_lost(world: World) -> None:
    world.host("bad", cores=2)
    run_id = world.submit({"a": task()})
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    world.host("good", cores=1)
    world.wait(1)
    other = world.submit({"b": task()})
    assert (host_of(world, run_id, "a"), host_of(world, other, "b")) == ("good", "bad")


def test_a_host_that_could_not_hold_it_is_no_elsewhere(world: World) -> None:
    world.host("bad", cores=4)
    run_id = world.submit({"a": task(resources={"cores": 2})})
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    world.host("small", cores=1)
    world.wait(1)
    assert host_of(world, run_id, "a") == "bad"
    assert world.phase(run_id, "a") is Phase.ASSIGNED


def test_it_does_not_wait_for_elsewhere_for_ever(world: World) -> None:
    """The other host is busy for hours; meanwhile the first one may be good again."""
    world.host("busy")
    busy = world.submit({"long": task()})
    world.host("bad")
    run_id = world.submit({"a": task()})
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    world.wait(ELSEWHERE_SECONDS)
    assert world.phase(run_id, "a") is Phase.READY
    world.wait(2)
    assert host_of(world, run_id, "a") == "bad"
    world.end(run_id, "a")
    world.end(busy, "long")
    assert world.state(run_id) is world.state(busy) is State.COMPLETED


def test_it_does_not_wait_for_elsewhere_that_went_away(world: World) -> None:
    world.host("busy")
    world.submit({"long": task()})
    world.host("bad")
    run_id = world.submit({"a": task()})
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    world.wait(1)
    assert world.phase(run_id, "a") is Phase.READY
    world.host("busy", open=False)
    assert host_of(world, run_id, "a") == "bad"


def test_what_waits_for_elsewhere_can_be_killed_and_asked_for_again(world: World) -> None:
    world.host("busy")
    world.submit({"long": task()})
    world.host("bad")
    run_id = world.submit({"a": task(), "b": task(resources={"gpu": 1})})
    for _ in range(2):
        world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
        world.wait(1)
        assert world.phase(run_id, "a") is Phase.READY
        world.kill(run_id, "a")
        assert world.phase(run_id, "a") is Phase.KILLED
        world.retry(run_id, "a")
        assert world.phase(run_id, "a") is Phase.ASSIGNED
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    world.kill(run_id, "a")
    assert not world.of(run_id).lost_on
    world.retry(run_id, "a")
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    world.wait(1)
    world.edit(run_id, {"a": task(), "c": task(resources={"gpu": 1})})
    assert world.phase(run_id, "a") is Phase.ASSIGNED


def test_no_object_a_task_is_kept_of_what_was_lost(world: World) -> None:
    world.host("bad", cores=500)
    run_id = world.submit({f"t{number}": task() for number in range(500)})
    world.lose("bad")
    run = world.of(run_id)
    assert len(run.lost_on) == 500
    assert len({id(host) for host in run.lost_on.values()}) == 1
    world.wait(1)
    assert (len(run.lost_on), len(run.elsewhere)) == (0, 1)
    world.host("good", cores=500)
    assert run.counts[Phase.ASSIGNED] == 500


def test_what_came_back_after_it_had_begun_waits_and_has_an_end(world: World) -> None:
    """What fills its host's disk by itself must not run for ever."""
    world.host()
    run_id = world.submit({"a": task()})
    for _ in range(MAX_LOSSES):
        world.start(run_id, "a")
        world.end(run_id, "a", outcome=Outcome.RETURNED, seconds=1.0)
        assert world.phase(run_id, "a") is Phase.DELAYED
        world.wait(2 * LONGEST_PAUSE)
    assert not world.of(run_id).losses
    world.end(run_id, "a", outcome=Outcome.RETURNED, seconds=1.0)
    assert world.phase(run_id, "a") is Phase.ERRORED


# -- hosts that fail everything ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.RETURNED])
@pytest.mark.parametrize("crash", [False, True], ids=["stays", "goes and comes back"])
def test_a_run_survives_a_host_that_fails_everything(world: World, outcome: Outcome, crash: bool) -> None:
    """Beside one that works, however much more room the one has that fails, and however slow the other one is."""
    world.host("bad", cores=50)
    world.host("good", cores=1)
    run_id = world.submit({f"t{number}": task() for number in range(40)})
    run = world.of(run_id)
    begun = world.now
    while world.state(run_id) is not State.COMPLETED:
        assert not run.counts[Phase.ERRORED]
        assert world.now < begun + 4_000
        bad = in_flight(world, run_id, "bad")
        if bad and crash:
            world.lose("bad")
            world.host("bad", cores=50)
        elif bad:
            world.end(run_id, *bad, outcome=outcome, seconds=None)
        world.wait(1)
        if good := in_flight(world, run_id, "good", since=world.now - 10):
            world.end(run_id, *good, seconds=10.0)
    assert max(run.losses.values(), default=0) <= MAX_LOSSES // 2


def test_a_host_that_fails_everything_is_paused_for_longer_each_time(world: World) -> None:
    world.host(cores=4)
    run_id = world.submit({f"t{number}": task() for number in range(4)})
    pauses = []
    for _ in range(40):
        names = in_flight(world, run_id)
        assert len(names) <= (4 if len(pauses) == 0 else 1)
        step = world.end(run_id, *names, outcome=Outcome.RETURNED, seconds=None)
        world.now += 0.001
        for paused in step.paused:
            pauses.append(paused.seconds)
            assert (paused.host, the_host(world).open) == ("h", False)
            assert f"{STREAK - 1 + len(pauses)} in a row" in paused.reason
            world.wait(paused.seconds - 0.01)
            assert not world.of(run_id).in_flight
        world.wait(0.02)
    assert pauses[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert max(pauses) == LONGEST_PAUSE
    names = in_flight(world, run_id)
    world.end(run_id, *names)
    assert not world.machine.pools["main"].doubts.by_host
    assert (the_host(world).open, the_host(world).pause) == (True, None)
    assert len(world.of(run_id).in_flight) == 3


def test_a_host_is_trusted_again_after_a_while(world: World) -> None:
    """Its one attempt may run for hours, and the rest of the host must not stand still for so long."""
    world.host(cores=4)
    run_id = world.submit({f"t{number}": task() for number in range(4)})
    for _ in range(STREAK):
        names = in_flight(world, run_id)
        world.end(run_id, *names, outcome=Outcome.RETURNED, seconds=None)
        world.wait(0.01)
    world.wait(2)
    assert len(world.of(run_id).in_flight) == 1
    world.wait(CAREFUL_SECONDS)
    assert len(world.of(run_id).in_flight) == 4


def test_what_is_lost_together_counts_once(world: World) -> None:
    world.host(cores=100)
    run_id = world.submit({f"t{number}": task() for number in range(100)})
    for number in range(100):
        world.wait(0.001)
        step = world.end(run_id, f"t{number}", outcome=Outcome.LOST, seconds=None)
        assert not step.paused
    assert world.machine.pools["main"].doubts.by_host["h"].in_vain == 1


def test_what_is_asked_back_says_nothing_of_its_host(world: World) -> None:
    world.host(cores=1)
    for _ in range(2 * STREAK):
        run_id = world.submit({"a": task()})
        world.kill(run_id)
        world.end(run_id, "a", outcome=Outcome.RETURNED, seconds=None)
        world.wait(1)
    assert not world.machine.pools["main"].doubts.by_host


# -- hosts that say that they are at fault -----------------------------------------------------------------------------


def at_fault(pause: float | None = 2.0) -> HostChanged:
    return HostChanged(
        pool="main", host="h", name="h", resources={"cores": 2}, open=False, fault="its disk is full", pause=pause, ahead=True
    )


def test_a_host_at_fault_gets_nothing_and_is_asked_for_what_waits(world: World) -> None:
    world.host(cores=2, ahead=True)
    run_id = world.submit({"a": task(), "b": task()})
    world.start(run_id, "a")
    world.commands.clear()
    world.tell(at_fault())
    (recall,) = world.commands
    assert recall.keys == [world.key(run_id, "b")]
    assert the_host(world).pause == ("its disk is full", world.now + 2)
    world.end(run_id, "b", outcome=Outcome.RETURNED, seconds=None)
    assert world.phase(run_id, "b") is Phase.READY
    world.wait(100)  # It says by itself when it can be used again.
    assert world.phase(run_id, "b") is Phase.READY
    world.end(run_id, "a")
    world.host(cores=2, ahead=True)
    assert the_host(world).pause is None
    assert world.phase(run_id, "b") is Phase.ASSIGNED
    assert not world.of(run_id).losses


def test_a_host_at_fault_that_keeps_places_in_a_queue_is_not_asked_for_what_waits(world: World) -> None:
    world.host(cores=2, ahead=True)
    run_id = world.submit({"a": task(), "b": task()})
    world.commands.clear()
    world.tell(replace(at_fault(), keeps=True))
    assert not world.commands
    assert world.phase(run_id, "b") is Phase.ASSIGNED
    assert the_host(world).pause == ("its disk is full", world.now + 2)


def test_a_pause_of_which_nobody_knows_the_end(world: World) -> None:
    world.host(cores=2)
    world.tell(at_fault(None))
    assert the_host(world).pause == ("its disk is full", None)


def test_a_fault_that_is_told_before_the_ends_raises_no_doubt(world: World) -> None:
    world.host(cores=2)
    run_id = world.submit({"a": task()})
    for _ in range(3 * STREAK):
        key = world.key(run_id, "a")
        world.tell(at_fault(), AttemptEnded(*key, Outcome.RETURNED, None, None))
        assert world.phase(run_id, "a") is Phase.READY
        world.wait(1)
        world.host(cores=2)
        assert world.phase(run_id, "a") is Phase.ASSIGNED
