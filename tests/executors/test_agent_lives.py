"""Agents and the lives of attempts: of two copies of a tracker, and of programs that know no lives.

The agents are played by hand. AFTER_THE_COPY is the context of a coordinator whose tracker had the start of OF_THE_COPY.
"""

from __future__ import annotations

from agent_by_hand import finished
from agent_wire import TASK, Wire
from support.task_specs import ident, idents

from daggyr.attempts.keys import Ident
from daggyr.v1.task_pb2 import AttemptKey, Placement

OLD = {"highest_protocol_version": 0}  # of an agent of version 1, which tells no lives
OF_THE_COPY = {"tracker_id": "tracker-1", "epoch": 1, "life": 77}
AFTER_THE_COPY = {"epoch": 2, "lives": {1: 77, 2: 1}}


def lifeless(key: AttemptKey) -> AttemptKey:
    """A key as an agent of version 1 tells it."""
    return AttemptKey(run_id=key.run_id, task_number=key.task_number, attempt=key.attempt)


def of_another_life(key: AttemptKey) -> AttemptKey:
    """The key that another copy of the tracker has given to an attempt of the same numbers."""
    return AttemptKey(run_id=key.run_id, task_number=key.task_number, attempt=key.attempt, life=77)


async def test_a_result_of_another_life_is_nobodys(wire: Wire) -> None:
    """It is acknowledged, so that the agent forgets it, and changes nothing."""
    agent = await wire.joined()
    (key,) = await wire.pool.give(TASK)
    assert idents([each.key for each in (await agent.hears("assign")).assignments]) == {ident(key)}
    await agent.tells(1, finished(of_another_life(key)))
    await agent.acknowledged(1)
    assert wire.pool.reports.of(key).results == []
    await agent.tells(2, finished(key))
    await wire.pool.ended([key])


async def test_what_runs_of_another_life_is_ended_and_what_both_know_goes_on(bare_wire: Wire) -> None:
    wire = bare_wire
    await wire.open(**AFTER_THE_COPY)
    known = AttemptKey(run_id=7, task_number=0, attempt=1, life=5)
    wire.pool.executor.recover([(known, Placement(host="agent-1"))])
    wire.pool.reports.of(known).host = "agent-1"
    agent = await wire.hand()
    others = [of_another_life(known), AttemptKey(run_id=8, task_number=0, attempt=1, life=5)]
    welcome = await agent.joins(held=[known, *others], **OF_THE_COPY)
    assert idents(welcome.end) == idents(others)
    await agent.tells(1, finished(known))
    await wire.pool.ended([known])


async def test_the_welcome_tells_the_life_and_the_version(wire: Wire) -> None:
    first, second = await wire.hand(), await wire.hand()
    welcome = await first.joins()
    assert (welcome.life, welcome.protocol_version) == (1, 2)
    welcome = await second.joins(agent_id="agent-2", name="old", **OLD)
    assert (welcome.life, welcome.protocol_version) == (1, 1)


async def test_an_agent_that_was_elsewhere_meanwhile_is_not_sent_what_it_lacks(bare_wire: Wire) -> None:
    """Another copy's coordinator has ended what the agent ran, so that it would run twice without being LOST."""
    wire = bare_wire
    await wire.open(**AFTER_THE_COPY)
    agent = await wire.joined()
    (key,) = await wire.pool.give(TASK)
    await agent.hears("assign")
    agent.cut()
    await wire.state(2)  # HOST_PAUSED
    again = await wire.hand()
    await again.joins(**OF_THE_COPY)
    told = await wire.pool.ends(key)
    assert "its agent was started again" in told.notes


async def test_an_agent_of_version_1_works_as_before(wire: Wire) -> None:
    """It tells no lives. What it says is of the attempts of these numbers that it was given."""
    agent = await wire.joined(**OLD)
    first, second = await wire.pool.give(TASK, TASK)
    await agent.hears("assign")
    agent.cut()
    await wire.state(2)  # HOST_PAUSED
    again = await wire.hand()
    welcome = await again.joins(tracker_id="tracker-1", epoch=1, held=[lifeless(first)], ended=[lifeless(second)], **OLD)
    assert list(welcome.end) == []
    await again.tells(1, finished(lifeless(first)), finished(lifeless(second)))
    await wire.pool.ended([first, second])


async def test_an_agent_of_version_1_that_comes_with_what_is_not_its_own(wire: Wire) -> None:
    """It could not tell its attempt from one of the same numbers, so it is not given that one, and its result is nobody's."""
    batch = wire.pool.batch(TASK, TASK)
    clashes, fits = (assignment.key for assignment in batch.assignments)
    agent = await wire.hand()
    await agent.joins(tracker_id="tracker-1", epoch=1, ended=[lifeless(clashes)], **OLD)
    wire.pool.start("agent-1", batch)
    told = await wire.pool.ends(clashes)
    assert told.result.outcome == 8, "RETURNED: it is given again with another number"
    assert idents([each.key for each in (await agent.hears("assign")).assignments]) == {ident(fits)}
    await agent.tells(1, finished(lifeless(clashes)), finished(lifeless(fits)))
    await wire.pool.ended([fits])
    assert len(wire.pool.reports.of(clashes).results) == 1


def test_idents_have_lives() -> None:
    """Two copies' attempts of the same numbers are two."""
    key = AttemptKey(run_id=1, attempt=1, life=1)
    found: set[Ident] = idents([key, of_another_life(key), lifeless(key)])
    assert len(found) == 3
