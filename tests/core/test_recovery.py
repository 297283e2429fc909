"""A coordinator that dies at any moment: what the next one makes of the committed records is what the last one had.

Hypothesis plays executors, people and the clock as in `test_properties`, and lets the coordinator die between any two steps,
after or before the last one was committed. What follows from the last step is then carried out by nobody.
"""

from __future__ import annotations

import gc
import weakref

import pytest
from committed import assert_as_before, restored
from durable_world import DurableWorld
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from test_properties import Anything
from world import task

from daggyr_server.core.commands import StopAttempts
from daggyr_server.core.events import AttemptEnded, KillAsked, MarkAsked, RunsForgotten
from daggyr_server.core.records import RunMoved
from daggyr_server.core.states import Outcome, Phase, State
from daggyr_server.core.step import Refusal


class AnythingAndCrashes(Anything):
    world: DurableWorld

    def __init__(self) -> None:
        super().__init__()
        self.world = DurableWorld()

    @rule()
    def crash(self) -> None:
        """The coordinator dies after the commit, before anything that follows was done."""
        before = self.world.start_again(committed=True)
        assert self.world.machine.runs.keys() == before.runs.keys()
        for run_id, run in self.world.machine.runs.items():
            assert_as_before(run, before.runs[run_id])
        self.assert_rebuilt()

    @precondition(lambda self: len(self.world.machine.runs) > 1 or not self.world.just_submitted)
    @rule()
    def crash_before_the_commit(self) -> None:
        """The coordinator dies before the commit, so that neither hosts nor people have heard of the last step."""
        self.world.start_again(committed=False)
        self.assert_rebuilt()

    @precondition(lambda self: any(run.has_ended for run in self.world.machine.runs.values()))
    @rule(data=st.data())
    def forget_and_find(self, data: st.DataObject) -> None:
        """Ended runs may leave memory, and come back when somebody asks for them."""
        run_id = self.run_id(data, ended=True)
        run = self.world.of(run_id)
        self.world.tell(RunsForgotten(run_ids=(run_id,)))
        assert run_id not in self.world.machine.runs
        (event,) = [
            event for event in restored(self.world.records, self.world.grown, self.world.moment) if event.run.run_id == run_id
        ]
        self.world.tell(event)
        assert_as_before(self.world.of(run_id), run)

    @rule(data=st.data(), completed=st.booleans(), anything=st.sampled_from([False, False, True]))
    def mark(self, data: st.DataObject, completed: bool, anything: bool) -> None:
        """A person says that tasks are COMPLETED, or QUEUED."""
        run_id = self.run_id(data, ended=data.draw(st.booleans()))
        numbers = self.world.numbers(run_id, self.names(data, run_id, ended=not completed, anything=anything))
        assert numbers is not None
        tasks = tuple(number for number in numbers if not self.world.of(run_id).graph.kind(number))
        if tasks:
            self.world.ask(lambda ticket: MarkAsked(ticket=ticket, run_id=run_id, numbers=tasks, completed=completed))


TestAnythingAndCrashes = AnythingAndCrashes.TestCase
TestAnythingAndCrashes.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_forgetting_a_run_takes_it_off_its_pools() -> None:
    """Nothing of a forgotten run stands in line, because what comes back later is another object."""
    world = DurableWorld()
    run_id = world.submit({"a": task(), "b": task()})
    world.kill(run_id, "a", "b")
    world.tell(RunsForgotten(run_ids=(run_id,)))
    assert not world.machine.pools["main"].shares.by_run
    world.tell(*restored(world.records, world.grown, world.moment))
    world.host(cores=2)
    assert world.retry(run_id) is None
    world.end(run_id, "a", "b")
    assert world.state(run_id) is State.COMPLETED


def test_what_a_forgotten_run_holds_goes_at_once() -> None:
    """No circle of references keeps it, its file of specifications for instance, until the garbage collector runs."""
    world = DurableWorld()
    run_id = world.submit({"a": task(), "b": task(children=["a"])})
    world.kill(run_id)
    gc.collect()
    gc.disable()
    try:
        run = weakref.ref(world.machine.runs[run_id])
        world.tell(RunsForgotten(run_ids=(run_id,)))
        assert run() is None
    finally:
        gc.enable()


def test_the_end_of_a_run_that_is_forgotten_in_the_same_step_is_durable() -> None:
    """A person who asks in between has the run ended before the step is over; then another has it forgotten."""
    world = DurableWorld()
    world.host(cores=1)
    run_id = world.submit({"a": task()})
    ended = AttemptEnded(*world.key(run_id, "a"), Outcome.SUCCEEDED, 1.0, None)
    step = world.tell(ended, KillAsked(ticket="kill", run_id=run_id), RunsForgotten(run_ids=(run_id,)))
    assert not world.machine.runs
    assert [record.state for record in step.records if isinstance(record, RunMoved)] == [State.RUNNING, State.COMPLETED]
    assert world.machine.tally.runs == [0] * len(world.machine.tally.runs)


def test_a_run_that_goes_on_is_not_forgotten() -> None:
    world = DurableWorld()
    run_id = world.submit({"a": task()})
    refused = world.ask(lambda ticket: RunsForgotten(ticket=ticket, run_ids=(run_id,)))
    assert isinstance(refused, Refusal)
    assert "has not ended" in refused.message
    world.kill(run_id)
    assert world.ask(lambda ticket: RunsForgotten(ticket=ticket, run_ids=(run_id,))) is None
    assert not world.machine.runs


def test_the_end_of_an_attempt_that_was_asked_for_is_durable() -> None:
    """The next coordinator asks the host again; what the attempt then comes to counts, and nothing after a later retry."""
    world = DurableWorld()
    world.host(cores=2)
    run_id = world.submit({"a": task("c", max_retries=3), "b": task("c"), "c": task()})
    world.start(run_id, "a")
    world.kill(run_id, "a", "b")
    world.start_again(committed=True)
    (stop,) = world.commands
    assert isinstance(stop, StopAttempts)
    assert sorted(stop.keys) == [world.key(run_id, "a"), world.key(run_id, "b")]
    world.end(run_id, "a", outcome=Outcome.FAILED)
    world.end(run_id, "b")
    assert world.phases(run_id) == {"a": Phase.KILLED, "b": Phase.COMPLETED, "c": Phase.BLOCKED}
    world.host(cores=2)
    world.retry(run_id, "a")
    world.start_again(committed=True)
    assert not world.commands
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    assert world.phase(run_id, "a") is Phase.DELAYED


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.KILLED])
def test_an_attempt_of_before_two_edits_ends_after_a_restart_between_them(killed: bool, outcome: Outcome) -> None:
    """The first edit renumbers its task, and the second, made by the next coordinator, takes the task away."""
    world = DurableWorld()
    world.host(cores=1)
    run_id = world.submit({"a": task()})
    key = world.key(run_id, "a")
    world.start(run_id, "a")
    world.edit(run_id, {"a": task(), "b": task(resources={"gpu": 1})})
    if killed:
        world.kill(run_id, "a")
    world.start_again(committed=True)
    world.edit(run_id, {"b": task(resources={"gpu": 1})})
    assert Phase(world.of(run_id).phases[0]) is Phase.ASSIGNED
    world.tell(AttemptEnded(*key, outcome, 1.0, None))
    assert Phase(world.of(run_id).phases[0]) is (Phase.COMPLETED if outcome is Outcome.SUCCEEDED else Phase.KILLED)
    assert not world.of(run_id).in_flight


def test_fresh_budgets_are_durable() -> None:
    """This holds of tasks too that were QUEUED when a person asked for the run, or for them, again."""
    world = DurableWorld()
    world.host(cores=1)
    run_id = world.submit({"a": task(max_retries=1), "b": task(priority=-1, resources={"gpu": 1})})
    world.end(run_id, "a", outcome=Outcome.FAILED)
    world.end(run_id, "a", outcome=Outcome.LOST, seconds=None)
    world.wait(1)
    world.lose("h")
    world.wait(2)
    world.kill(run_id)
    assert world.phase(run_id, "a") is Phase.READY
    assert (world.of(run_id).failures, world.of(run_id).losses) == ({0: 1}, {0: 2})
    world.retry(run_id)
    world.start_again(committed=True)
    assert (world.of(run_id).failures, world.of(run_id).losses) == ({}, {})


def test_the_delay_before_a_retry_begins_again() -> None:
    """No record tells when a delay began, and waiting too long is better than not waiting at all."""
    world = DurableWorld()
    world.host(cores=1)
    run_id = world.submit({"a": task("b", max_retries=5, retry_delay=10), "b": task()})
    world.end(run_id, "a", outcome=Outcome.FAILED)
    world.wait(10)
    world.end(run_id, "a", outcome=Outcome.FAILED)
    world.wait(19)
    world.start_again(committed=True)
    assert world.phase(run_id, "a") is Phase.DELAYED
    world.host(cores=1)
    world.wait(19)
    assert world.phase(run_id, "a") is Phase.DELAYED
    world.wait(1)
    assert world.phase(run_id, "a") is Phase.ASSIGNED
