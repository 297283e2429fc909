"""The wall clock is set, forwards and back: that changes what is written down, and nothing else.

Hypothesis plays as in `test_recovery`, and sets the clock between any two steps. A second machine is told the same with a clock
that nobody sets, and must say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from committed import restored
from durable_world import DurableWorld
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from test_recovery import AnythingAndCrashes
from world import World, task

from daggyr_server.core.commands import StartAttempts
from daggyr_server.core.events import AttemptStarted, Event, Rehearsed, RunRestored
from daggyr_server.core.machine import Machine
from daggyr_server.core.moment import Moment
from daggyr_server.core.records import AttemptRecorded, AttemptsAssigned, Record, RunMoved, TasksStopped
from daggyr_server.core.states import Outcome, Phase, State
from daggyr_server.core.step import Step

HOUR = 3_600.0
JUMPS = (-1e9, -HOUR, -0.001, 0.001, HOUR, 1e9)


class Twins(DurableWorld):
    """A world whose wall clock may be set, beside a machine that is told the same by a clock that nobody sets."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_of_twin = self.ahead
        self.known = self.machine
        self.twin = Machine(self.machine.pools)
        self.twins_records: list[Record] = []
        self.as_many = {0: 0}  # how many records the machine had made durable -> how many its twin; see `timeless`
        self.restarted = False

    def tell(self, *events: Event) -> Step:
        moment = Moment(self.now, self.now + self.ahead_of_twin)
        # What one machine does to a copy of a run, the other does by itself: that must come to the same as well.
        told: list[Event] = [
            event.asked if isinstance(event, Rehearsed) else event for event in events if not isinstance(event, RunRestored)
        ]
        wanted = {event.run.run_id: event for event in events if isinstance(event, RunRestored)}
        if self.machine is not self.known:  # A coordinator has started again, from what was committed.
            self.known, self.twin, self.restarted = self.machine, Machine(self.machine.pools), True
            del self.twins_records[self.as_many[len(self.records)] :]
        if wanted:
            again = restored(self.twins_records, self.grown, moment)
            told += [replace(event, ticket=wanted[event.run.run_id].ticket) for event in again if event.run.run_id in wanted]
        step = super().tell(*events)
        still = self.twin.handle(moment, told)
        self.twins_records += still.records
        self.as_many[len(self.records)] = len(self.twins_records)
        assert self.timeless(step) == self.timeless(still)
        return step

    def timeless(self, step: Step) -> dict[str, Any]:
        """All that a step says, without wall times. What a run itself becomes is told last, or before its tasks are placed. In
        how many pieces a host is given tasks of a run, one after another, says nothing."""
        said = {name: getattr(step, name) for name in Step.__slots__}
        records = sorted(step.records, key=lambda record: isinstance(record, RunMoved | TasksStopped))
        return said | {"commands": joined(step.commands), "records": joined([self.scrubbed(record) for record in records])}

    def scrubbed(self, record: Record) -> Record:
        if isinstance(record, AttemptRecorded):
            return record._replace(assign_time=0.0)
        if isinstance(record, RunMoved) and self.restarted:
            return replace(record, time=0.0, ran_seconds=0.0)  # Over a restart, no other clock tells for how long a run ran.
        names = [name for name in ("time", "submit_time") if hasattr(record, name)]
        return replace(record, **dict.fromkeys(names, 0.0))  # type: ignore[type-var]


def joined(told: Sequence[Any]) -> list[Any]:
    """Commands or records, with those that give tasks of a run to a host, one after another, as one."""
    found: list[Any] = []
    for each in told:
        last = found[-1] if found else None
        if isinstance(each, StartAttempts | AttemptsAssigned) and type(last) is type(each):
            added = {"numbers": [*last.numbers, *each.numbers], "attempts": [*last.attempts, *each.attempts]}
            if replace(each, **added) == replace(last, **added):
                found[-1] = replace(last, **added)
                continue
        found.append(each)
    return found


class AnythingAndJumps(AnythingAndCrashes):
    def __init__(self) -> None:
        super().__init__()
        self.world = Twins()

    @rule(seconds=st.sampled_from(JUMPS))
    def set_the_clock(self, seconds: float) -> None:
        self.world.ahead += seconds


TestAnythingAndJumps = AnythingAndJumps.TestCase
TestAnythingAndJumps.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_retry_waits_as_long_as_it_says(world: World, jump: float) -> None:
    run_id = world.submit({"a": task(max_retries=1, retry_delay=3)})
    world.end(run_id, "a", outcome=Outcome.FAILED)
    world.ahead += jump
    world.wait(2.9)
    assert world.phase(run_id, "a") is Phase.DELAYED
    world.wait(0.1)
    assert world.phase(run_id, "a") is Phase.ASSIGNED


def ran(world: World, run_id: int) -> float:
    """For how long the run was RUNNING, as it was recorded last."""
    return [record.ran_seconds for record in world.records if isinstance(record, RunMoved) and record.run_id == run_id][-1]


@pytest.mark.parametrize("jump", JUMPS)
def test_a_run_took_the_time_in_which_it_was_running(world: World, jump: float) -> None:
    """The night before it was retried is left out, and a clock that is set meanwhile changes nothing."""
    run_id = world.submit({"a": task()})
    world.now += 7  # QUEUED
    world.start(run_id, "a")
    world.ahead += jump
    world.now += 20
    assert world.of(run_id).ran_until(world.now) == 20
    world.end(run_id, "a", outcome=Outcome.FAILED, seconds=20.0)
    assert world.state(run_id) is State.ERRORED
    assert ran(world, run_id) == 20
    world.now += 8 * HOUR
    assert world.of(run_id).ran_until(world.now) == 20
    world.retry(run_id)
    world.now += 7
    world.ahead += jump
    world.start(run_id, "a")
    assert ran(world, run_id) == 20
    world.now += 5
    world.end(run_id, "a", seconds=5.0)
    assert world.state(run_id) is State.COMPLETED
    assert ran(world, run_id) == 25


def test_a_run_took_what_its_first_attempt_took_even_if_nobody_told_that_it_began(world: World) -> None:
    """A host may tell of a start together with the end, or not at all. It measures by a clock that nobody sets."""
    run_id = world.submit({"a": task("b"), "b": task()})
    world.now += 30
    world.tell(AttemptStarted(*world.key(run_id, "a"), world.wall - 4))
    world.end(run_id, "a", seconds=4.0)
    assert world.of(run_id).ran_until(world.now) == 4
    world.now += 2
    world.end(run_id, "b", seconds=1.0)
    assert ran(world, run_id) == 6


def test_a_run_took_no_longer_than_it_was_there(world: World) -> None:
    """Whatever a host says of an attempt."""
    run_id = world.submit({"a": task()})
    world.now += 3
    world.end(run_id, "a", seconds=1e6)
    assert ran(world, run_id) == 3


@pytest.mark.parametrize(("jump", "took"), [(0.0, 110.0), (-HOUR, 10.0), (HOUR, 110.0 + HOUR)])
def test_over_a_restart_only_the_wall_clock_tells_how_long_a_run_ran(jump: float, took: float) -> None:
    """It counts what ran while no coordinator was there, and is never negative."""
    world = DurableWorld()
    world.host()
    run_id = world.submit({"a": task()})
    world.start(run_id, "a")
    world.now += 100
    world.ahead += jump
    world.start_again(committed=True)
    world.now += 10
    world.host()
    world.end(run_id, "a", seconds=1.0)
    assert ran(world, run_id) == took
