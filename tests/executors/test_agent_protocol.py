"""What is said in one session of `Agents.Session`: assignments, updates and their acknowledgement, drain, following output.

The agents are played by hand, so that each message is seen. Who is let in is in test_agent_hello.py; what holds over several
sessions of an agent is in test_agent_breaks.py.
"""

from __future__ import annotations

import asyncio

import grpc
import pytest
from agent_by_hand import finished
from agent_wire import TASK, Wire
from support.task_specs import ident, idents, spec

from daggyr.v1.agents_pb2 import FollowedOutput
from daggyr.v1.task_pb2 import (
    HOST_DRAINING,
    HOST_GONE,
    HOST_PAUSED,
    STDOUT,
    AttemptKey,
    AttemptStarted,
    AttemptUpdate,
    OutputChunk,
)
from daggyr_server.executors.agents.executor import AgentExecutor
from daggyr_server.executors.agents.following import MAX_FOLLOWED
from daggyr_server.executors.agents.session import MAX_UNDURABLE


class TestUpdates:
    async def test_TheyAreAcknowledgedOnceDurable(self, wire: Wire) -> None:
        agent = await wire.joined()
        first, second = wire.pool.start("agent-1", wire.pool.batch(TASK, TASK))
        assignments = (await agent.hears("assign")).assignments
        assert idents([assignment.key for assignment in assignments]) == {ident(first), ident(second)}
        wire.pool.reports.holding = True
        await agent.tells(1, finished(first))
        await agent.tells(2, finished(second))
        await wire.pool.ended([first, second])
        await agent.say(heartbeat={})
        wire.pool.recall(AttemptKey(run_id=2**40))
        agent.cut()
        await wire.state(HOST_PAUSED)
        again = await wire.hand()
        welcome = await again.joins(tracker_id="tracker-1", epoch=1, ended=[first, second])
        assert welcome.next_sequence == 1, "nothing is durable yet"
        wire.pool.reports.release()
        await again.acknowledged(2)

    async def test_OneThatTakesLongerIsNotAcknowledgedByThoseBehindIt(self, wire: Wire) -> None:
        """An acknowledgement is cumulative, and batches may become durable in another order."""
        agent = await wire.joined()
        keys = wire.pool.start("agent-1", wire.pool.batch(*[TASK] * 4))
        await agent.hears("assign")
        wire.pool.reports.holding = True
        for sequence, key in enumerate(keys, 1):
            await agent.tells(sequence, finished(key))
        await wire.pool.ended(keys)
        first, second, third, fourth = wire.pool.reports.held
        first()
        for durable in (fourth, third):
            durable()
            await agent.acknowledged(1)
        agent.cut()
        await wire.state(HOST_PAUSED)
        again = await wire.hand()
        assert (await again.joins(tracker_id="tracker-1", epoch=1, ended=keys[1:])).next_sequence == 2
        second()
        await again.acknowledged(4)

    async def test_ABatchThatCameTwiceCountsOnce(self, wire: Wire) -> None:
        agent = await wire.joined()
        first, second, third = wire.pool.start("agent-1", wire.pool.batch(TASK, TASK, TASK))
        await agent.hears("assign")
        for sequence, key in ((1, first), (1, first), (2, second), (1, first), (2, second), (3, third)):
            await agent.tells(sequence, finished(key))
        await agent.acknowledged(3)
        assert [len(wire.pool.reports.of(key).results) for key in (first, second, third)] == [1, 1, 1]

    @pytest.mark.parametrize("sequence", [2, 7])
    async def test_AGapEndsTheSessionAndChangesNothing(self, wire: Wire, sequence: int) -> None:
        agent = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await agent.hears("assign")
        await agent.tells(sequence, finished(key))
        code, words = await agent.status()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"batch {sequence} came where 1 was due" in words
        assert wire.pool.reports.of(key).results == []

    async def test_AnothersAttemptsAreNotItsToTell(self, wire: Wire) -> None:
        theirs = await wire.joined(agent_id="agent-2", name="two")
        (key,) = wire.pool.start("agent-2", wire.pool.batch(TASK))
        await theirs.hears("assign")
        agent = await wire.joined()
        await agent.tells(1, finished(key), finished(AttemptKey(run_id=99, task_number=1, attempt=1)))
        await agent.acknowledged(1)
        assert wire.pool.reports.of(key).results == []
        await theirs.tells(1, finished(key))
        assert (await wire.pool.ends(key)).outcome == "SUCCEEDED"

    async def test_NothingFollowsAResult(self, wire: Wire) -> None:
        agent = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await agent.hears("assign")
        late = AttemptUpdate(key=key, output=OutputChunk(stream=STDOUT, data=b"late"))
        await agent.tells(1, finished(key), late, finished(key))
        await agent.tells(2, late)
        await agent.acknowledged(2)
        assert wire.pool.reports.of(key).output() == b""  # the fixture fails if the reports found a fault

    async def test_MoreThanTheTrackerKeepsUpWithWaitsInTheConnection(self, wire: Wire) -> None:
        agent = await wire.joined()
        count = MAX_UNDURABLE + 8
        keys = wire.pool.start("agent-1", wire.pool.batch(*[TASK] * count))
        await agent.hears("assign")
        wire.pool.reports.holding = True
        for number, key in enumerate(keys, 1):
            await agent.tells(number, finished(key))
        await wire.pool.reports.until(lambda: len(wire.pool.reports.held) == MAX_UNDURABLE)
        await (await wire.joined(agent_id="agent-2", name="two")).say(heartbeat={})  # other agents are not held up
        assert len(wire.pool.reports.held) == MAX_UNDURABLE
        wire.pool.reports.release()
        assert {told.outcome for told in await wire.pool.ended(keys)} == {"SUCCEEDED"}
        await agent.acknowledged(count)


class TestAssignments:
    async def test_WhatItHasIsNotSentAgain(self, wire: Wire) -> None:
        agent = await wire.joined()
        batch = wire.pool.batch(TASK, TASK)
        known = wire.pool.start("agent-1", batch)
        await agent.hears("assign")
        wire.pool.start("agent-1", batch)
        more = wire.pool.batch(spec("/bin/false"))
        template = len(batch.templates)
        batch.templates.extend(more.templates)
        batch.assignments.add(key=more.assignments[0].key, task_id="more", template=template)
        wire.pool.start("agent-1", batch)
        sent = await agent.hears("assign")
        (assignment,) = sent.assignments
        assert ident(assignment.key) == ident(more.assignments[0].key)
        assert list(sent.templates[assignment.template].spec.command) == ["/bin/false"]
        await agent.tells(1, *(finished(key) for key in known))
        assert {told.outcome for told in await wire.pool.ended(known)} == {"SUCCEEDED"}


class TestDrain:
    async def test_DrainIsSaidAndTheHostTakesNothingNew(self, wire: Wire) -> None:
        executor = wire.pool.executor
        assert isinstance(executor, AgentExecutor)
        agent = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await agent.hears("assign")
        assert executor.drain("by-hand")
        assert not executor.drain("nobody")
        await agent.hears("drain")
        await wire.state(HOST_DRAINING)
        await agent.tells(1, finished(key))
        await wire.pool.ends(key)
        await agent.done()
        await wire.state(HOST_GONE)

    async def test_DrainAskedWhileItIsAwayIsSaidWhenItIsBack(self, wire: Wire) -> None:
        executor = wire.pool.executor
        assert isinstance(executor, AgentExecutor)
        agent = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        agent.cut()
        await wire.state(HOST_PAUSED)
        assert executor.drain("by-hand")
        again = await wire.joined(tracker_id="tracker-1", epoch=1, held=[key])
        await again.hears("drain")
        await wire.state(HOST_DRAINING)

    async def test_OfTwoOfOneNameTheConnectedOneIsDrained(self, wire: Wire) -> None:
        executor = wire.pool.executor
        assert isinstance(executor, AgentExecutor)
        away = await wire.joined()
        away.cut()
        await wire.state(HOST_PAUSED)
        here = await wire.joined(agent_id="agent-2")
        assert executor.drain("by-hand")
        await here.hears("drain")
        await wire.state(HOST_DRAINING, "agent-2")

    async def test_AnAgentThatDrainsByItselfTakesNothing(self, wire: Wire) -> None:
        await wire.joined(draining=True)
        assert wire.pool.reports.hosts["agent-1"].state == HOST_DRAINING


class TestFollow:
    async def test_AReaderThatIsTooSlowAsksAgainAndMissesNothing(self, wire: Wire) -> None:
        agent = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await agent.hears("assign")
        offsets = [10 * number for number in range(3 * MAX_FOLLOWED)]
        asked: list[int] = []

        async def answer() -> None:
            """Whenever the output is asked for, send all of it from the offset on, without waiting for the reader."""
            while True:
                follow = await agent.hears("follow")
                if follow.stop:
                    continue
                asked.append(follow.offset)
                for offset in offsets[follow.offset // 10 :]:
                    chunk = OutputChunk(stream=STDOUT, offset=offset, data=b"0123456789")
                    await agent.say(followed=FollowedOutput(follow_id=follow.follow_id, chunk=chunk))
                await agent.say(followed=FollowedOutput(follow_id=follow.follow_id, end=True))
                if asked == [0]:
                    await agent.tells(1, AttemptUpdate(key=key, started=AttemptStarted(start_time={"seconds": 1})))

        answering = asyncio.create_task(answer())
        try:
            chunks = wire.pool.executor.follow("agent-1", key, STDOUT, 0)
            got = [(await anext(chunks)).offset]
            await wire.pool.started(key)  # everything has come by now, and the reader has taken one chunk
            got += [chunk.offset async for chunk in chunks]
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        assert got == offsets
        assert len(asked) > 1 and asked == sorted(set(asked))

    async def test_ABreakEndsIt(self, wire: Wire) -> None:
        agent = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await agent.hears("assign")
        following = asyncio.create_task(wire.pool.followed(key))
        await agent.hears("follow")
        agent.cut()
        assert await following == []

    async def test_AnotherAgentsWordsDoNotGetIn(self, wire: Wire) -> None:
        agent, other = await wire.joined(), await wire.joined(agent_id="agent-2", name="two")
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await agent.hears("assign")
        following = asyncio.create_task(wire.pool.followed(key))
        follow = await agent.hears("follow")
        forged = FollowedOutput(follow_id=follow.follow_id, chunk=OutputChunk(stream=STDOUT, data=b"forged"), end=True)
        await other.say(followed=forged)
        await other.tells(1)
        await other.acknowledged(1)
        real = FollowedOutput(follow_id=follow.follow_id, chunk=OutputChunk(stream=STDOUT, data=b"real"), end=True)
        await agent.say(followed=real)
        assert await following == [(0, b"real")]


async def test_ClosingSaysSoToAgents(wire: Wire) -> None:
    agent = await wire.joined()
    await wire.pool.executor.close()
    assert await agent.status() == (grpc.StatusCode.UNAVAILABLE, "the coordinator is going away")
    await wire.pool.executor.close()
