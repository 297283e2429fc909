"""`Agents.Session` word by word, against an agent that is played by hand: whom it lets in, what it counts, whom it cuts off."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from agent_by_hand import Hand, finished, hand, hello, idents
from executor_harness import Harness, eventually, executor_context, ident, spec
from executor_kinds import opened, serving
from support.waiting import DEADLINE

from daggyr.bounds import MAX_WORD
from daggyr.channel import MAX_MESSAGE_BYTES, open_channel
from daggyr.v1.agents_pb2 import FollowedOutput
from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
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

TASK = spec("/bin/true")


class Wire:
    """Two pools of agents, `pool` and `other`, behind one listener."""

    def __init__(self, socket: Path, stack: AsyncExitStack) -> None:
        self.socket = socket
        self._stack = stack
        self.pool: Harness
        self.other: Harness

    async def open(self, **context: object) -> None:
        self.pool = await self._stack.enter_async_context(opened(AgentExecutor, executor_context(**context)))
        self.other = await self._stack.enter_async_context(opened(AgentExecutor, executor_context(**context), pool="other"))
        executors = [harness.executor for harness in (self.pool, self.other) if isinstance(harness.executor, AgentExecutor)]
        await self._stack.enter_async_context(serving(self.socket, *executors))

    async def hand(self) -> Hand:
        return await self._stack.enter_async_context(hand(self.socket))

    async def joined(self, **changes: object) -> Hand:
        made = await self.hand()
        await made.joins(**changes)
        return made

    async def state(self, state: int, agent_id: str = "agent-1") -> None:
        """Wait until the host is in this state."""
        hosts = self.pool.reports.hosts
        await self.pool.reports.until(lambda: agent_id in hosts and hosts[agent_id].state == state)


@pytest.fixture
async def bare_wire(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Wire]:
    """To be opened by the test. Nothing that an agent does may end in a traceback."""
    async with AsyncExitStack() as stack:
        (tmp_path / "wire").mkdir(mode=0o700)
        wire = Wire(tmp_path / "wire/socket", stack)
        yield wire
        assert wire.pool.reports.faults == []
    assert [record.getMessage() for record in caplog.records if record.exc_info or record.levelname == "ERROR"] == []


@pytest.fixture
async def wire(bare_wire: Wire) -> Wire:
    await bare_wire.open()
    return bare_wire


class TestHello:
    async def test_TheWelcomeCarriesTheFence(self, wire: Wire) -> None:
        welcome = await (await wire.hand()).joins()
        assert (welcome.tracker_id, welcome.epoch, welcome.next_sequence) == ("tracker-1", 1, 1)
        assert welcome.heartbeat_interval.ToMilliseconds() == 300_000
        assert welcome.kill_grace.ToMilliseconds() == 60_000
        assert list(welcome.end) == []

    async def test_TheHostIsOfferedWithItsResources(self, wire: Wire) -> None:
        await wire.joined(resources={"cores": 4, "gpus": 1})
        host = wire.pool.reports.hosts["agent-1"]
        assert (host.state, host.name, dict(host.resources), host.takes_ahead) == (
            HOST_AVAILABLE,
            "by-hand",
            {"cores": 4, "gpus": 1},
            True,
        )
        assert wire.other.reports.hosts == {}

    @pytest.mark.parametrize(
        ("changes", "code", "words"),
        [
            ({"protocol_version": 2}, grpc.StatusCode.FAILED_PRECONDITION, "version 2, this coordinator 1: install"),
            ({"protocol_version": 0}, grpc.StatusCode.FAILED_PRECONDITION, "version 0"),
            ({"agent_id": ""}, grpc.StatusCode.INVALID_ARGUMENT, "no agent_id"),
            ({"incarnation": ""}, grpc.StatusCode.INVALID_ARGUMENT, "no incarnation"),
            ({"name": "", "pool": ""}, grpc.StatusCode.INVALID_ARGUMENT, "no name, pool"),
            ({"resources": {}}, grpc.StatusCode.INVALID_ARGUMENT, "no resources"),
            ({"resources": {"gpus": 1}}, grpc.StatusCode.INVALID_ARGUMENT, "no cores"),
            ({"resources": {"cores": 0}}, grpc.StatusCode.INVALID_ARGUMENT, "no cores"),
            ({"resources": {"cores": 1, "gpus": -1}}, grpc.StatusCode.INVALID_ARGUMENT, "less than none"),
            ({"name": "two\nlines"}, grpc.StatusCode.INVALID_ARGUMENT, "printable"),
            ({"agent_id": "x" * (MAX_WORD + 1)}, grpc.StatusCode.INVALID_ARGUMENT, f"at most {MAX_WORD}"),
            ({"pool": "nowhere"}, grpc.StatusCode.NOT_FOUND, "no pool 'nowhere'.*there are: pool, other.*--pool"),
            ({"tracker_id": "tracker-1", "epoch": 2}, grpc.StatusCode.FAILED_PRECONDITION, "newer start"),
        ],
        ids=str,
    )
    async def test_AFaultyHelloIsRefused(self, wire: Wire, changes: dict[str, object], code: grpc.StatusCode, words: str) -> None:
        agent = await wire.hand()
        await agent.say(hello=hello(**changes))
        found, said = await agent.status()
        assert found is code
        assert re.search(words, said), said
        assert wire.pool.reports.hosts == {}
        await wire.joined()  # and the next one is let in

    async def test_AnotherTrackersEpochIsNothingToCompare(self, wire: Wire) -> None:
        await wire.joined(tracker_id="tracker-2", epoch=9)

    async def test_SomethingElseThanHelloFirstIsRefused(self, wire: Wire) -> None:
        agent = await wire.hand()
        await agent.say(heartbeat={})
        assert (await agent.status())[0] is grpc.StatusCode.INVALID_ARGUMENT

    async def test_NothingAtAllIsRefused(self, wire: Wire) -> None:
        agent = await wire.hand()
        await agent.done()
        assert (await agent.status())[0] is grpc.StatusCode.INVALID_ARGUMENT

    @pytest.mark.parametrize("before", [[], [hello().SerializeToString()]], ids=["first", "later"])
    async def test_WhatIsNoMessageIsRefused(self, wire: Wire, before: list[bytes]) -> None:
        before = [b"\x0a" + bytes([len(data)]) + data for data in before]  # AgentMessage.hello, field 1
        channel = open_channel(f"unix:{wire.socket}")
        try:
            method: Any = channel.stream_stream("/daggyr.v1.Agents/Session")
            call = method(iter([*before, b"\xff\xff no protobuf"]))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async with asyncio.timeout(DEADLINE):
                    async for _ in call:
                        pass
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "could not be read" in str(raised.value.details())
        finally:
            await channel.close()
        await wire.joined(incarnation="incarnation-2")

    async def test_ASecondHelloEndsTheSession(self, wire: Wire) -> None:
        agent = await wire.joined()
        await agent.say(hello=hello())
        assert (await agent.status())[0] is grpc.StatusCode.INVALID_ARGUMENT


class TestTwoAgents:
    async def test_AnotherAgentOfTheSameNameIsRefused(self, wire: Wire) -> None:
        first = await wire.joined()
        for pool in ("pool", "other"):
            second = await wire.hand()
            await second.say(hello=hello(agent_id="agent-2", pool=pool))
            code, words = await second.status()
            assert code is grpc.StatusCode.ALREADY_EXISTS
            assert "'by-hand' is connected" in words and "--name" in words
        await first.say(heartbeat={})
        first.cut()
        await wire.state(HOST_PAUSED)
        await wire.joined(agent_id="agent-2")

    async def test_TheSameAgentReplacesItsOlderSession(self, wire: Wire) -> None:
        older = await wire.joined()
        newer = await wire.joined()
        assert (await older.status())[0] is grpc.StatusCode.ABORTED
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await newer.hears("assign")
        await newer.tells(1, finished(key))
        assert (await wire.pool.ends(key)).outcome == "SUCCEEDED"
        assert wire.pool.reports.states == [("agent-1", HOST_AVAILABLE)] * 2

    async def test_AnAgentThatMovesToAnotherPoolIsGoneHere(self, wire: Wire) -> None:
        older = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await older.hears("assign")
        welcome = await (await wire.hand()).joins(pool="other", tracker_id="tracker-1", epoch=1, held=[key])
        assert idents(welcome.end) == {ident(key)}
        assert (await older.status())[0] is grpc.StatusCode.ABORTED
        assert wire.pool.is_gone("agent-1")
        assert wire.other.available() == ["agent-1"]


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
        assert wire.pool.reports.of(key).output() == b""  # the fixture looks for what the reports found

    async def test_MoreThanTheTrackerKeepsUpWithWaitsInTheConnection(self, wire: Wire) -> None:
        agent = await wire.joined()
        count = MAX_UNDURABLE + 8
        keys = wire.pool.start("agent-1", wire.pool.batch(*[TASK] * count))
        await agent.hears("assign")
        wire.pool.reports.holding = True
        for number, key in enumerate(keys, 1):
            await agent.tells(number, finished(key))
        await wire.pool.reports.until(lambda: len(wire.pool.reports.held) == MAX_UNDURABLE)
        await (await wire.joined(agent_id="agent-2", name="two")).say(heartbeat={})  # others are not held up
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


class TestAfterABreak:
    """What an agent says that it has, and what the coordinator makes of it."""

    async def test_WhatItNeverGotIsSentAgainOnce(self, wire: Wire) -> None:
        agent = await wire.joined()
        batch = wire.pool.batch(TASK, TASK, TASK)
        held, never_got, ended = wire.pool.start("agent-1", batch)
        agent.cut()
        await wire.state(HOST_PAUSED)
        while_cut = wire.pool.start("agent-1", wire.pool.batch(spec("/bin/false")))
        again = await wire.hand()
        welcome = await again.joins(tracker_id="tracker-1", epoch=1, held=[held], ended=[ended])
        assert list(welcome.end) == []
        sent = [await again.hears("assign"), await again.hears("assign")]
        assert [idents([a.key for a in one.assignments]) for one in sent] == [{ident(never_got)}, {ident(while_cut[0])}]
        (assignment,) = sent[0].assignments
        assert list(sent[0].templates[assignment.template].spec.command) == ["/bin/true"]
        (assignment,) = sent[1].assignments
        assert list(sent[1].templates[assignment.template].spec.command) == ["/bin/false"]

    async def test_BeforeItHeardTheWelcomeNothingIsLost(self, wire: Wire) -> None:
        agent = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        agent.cut()
        await wire.state(HOST_PAUSED)
        again = await wire.joined()  # its hello names no tracker, as at the first time
        assert idents([a.key for a in (await again.hears("assign")).assignments]) == {ident(key)}

    async def test_AfterItsOwnRestartAllIsLost(self, wire: Wire) -> None:
        agent = await wire.joined()
        keys = wire.pool.start("agent-1", wire.pool.batch(TASK, TASK))
        await agent.hears("assign")
        agent.cut()
        again = await wire.hand()
        welcome = await again.joins(incarnation="incarnation-2")
        assert welcome.next_sequence == 1
        assert {(told.outcome, told.notes) for told in await wire.pool.ended(keys)} == {("LOST", "its agent was started again")}
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        assert idents([a.key for a in (await again.hears("assign")).assignments]) == {ident(key)}

    async def test_WhatIsNotItsOwnIsEnded(self, wire: Wire) -> None:
        stranger = AttemptKey(run_id=77, task_number=0, attempt=3)
        welcome = await (await wire.hand()).joins(tracker_id="tracker-1", epoch=1, held=[stranger], first_unacknowledged=5)
        assert idents(welcome.end) == {ident(stranger)}
        assert welcome.next_sequence == 5

    async def test_AnotherTrackersAttemptsAreNobodysHere(self, wire: Wire) -> None:
        """An agent that comes from another tracker: numbers that are equal by chance are not the same attempts."""
        agent = await wire.joined()
        keys = wire.pool.start("agent-1", wire.pool.batch(TASK, TASK))
        await agent.hears("assign")
        agent.cut()
        await wire.state(HOST_PAUSED)
        again = await wire.hand()
        # Meanwhile it was with another coordinator, whose run has the same number, and its batches went on from there.
        await again.joins(tracker_id="tracker-2", epoch=1, held=[keys[0]], ended=[keys[1]], first_unacknowledged=4)
        assert {told.outcome for told in await wire.pool.ended(keys)} == {"LOST"}
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await again.hears("assign")
        await again.tells(4, finished(key))
        assert (await wire.pool.ends(key)).outcome == "SUCCEEDED"

    @pytest.mark.parametrize(("asks", "heard"), [("s", "cancel"), ("r", "recall"), ("sr", "cancel"), ("rs", "cancel")])
    async def test_WhatWasAskedMeanwhileIsSaidAgain(self, wire: Wire, asks: str, heard: str) -> None:
        agent = await wire.joined()
        asked, other = wire.pool.start("agent-1", wire.pool.batch(TASK, TASK))
        await agent.hears("assign")
        agent.cut()
        await wire.state(HOST_PAUSED)
        for ask in asks:
            (wire.pool.stop if ask == "s" else wire.pool.recall)(asked)
        again = await wire.hand()
        await again.joins(tracker_id="tracker-1", epoch=1, held=[asked, other])
        message = await again.hears(heard)
        assert idents(message.keys) == {ident(asked)}
        if heard == "cancel":
            assert message.grace.ToMilliseconds() == 60_000

    @pytest.mark.parametrize(("ask", "outcome"), [("stop", "KILLED"), ("recall", "RETURNED")])
    async def test_WhatItNeverGotAndWasAskedBackNeverStarts(self, wire: Wire, ask: str, outcome: str) -> None:
        agent = await wire.joined()
        agent.cut()
        await wire.state(HOST_PAUSED)
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        getattr(wire.pool, ask)(key)
        again = await wire.joined(tracker_id="tracker-1", epoch=1)
        assert (await wire.pool.ends(key)).outcome == outcome
        (new,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        assert idents([a.key for a in (await again.hears("assign")).assignments]) == {ident(new)}

    async def test_WhatHasEndedIsNotAskedFor(self, wire: Wire) -> None:
        agent = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        await agent.hears("assign")
        wire.pool.stop(key)
        await agent.hears("cancel")
        await agent.tells(1, finished(key))
        await wire.pool.ends(key)
        again = await wire.hand()
        await again.joins(tracker_id="tracker-1", epoch=1)
        wire.pool.stop(key)
        await again.tells(2)
        await again.acknowledged(2)  # and nothing else was heard


class TestLease:
    async def test_AnAgentThatStaysAwayIsGoneAndItsWordChangesNothing(self, bare_wire: Wire) -> None:
        wire = bare_wire
        await wire.open(lease=0.2)
        agent = await wire.joined()
        running, ended = wire.pool.start("agent-1", wire.pool.batch(TASK, TASK))
        await agent.hears("assign")
        agent.cut()
        await wire.state(HOST_GONE)
        assert [state for _, state in wire.pool.reports.states] == [HOST_AVAILABLE, HOST_PAUSED, HOST_GONE]
        again = await wire.hand()
        welcome = await again.joins(tracker_id="tracker-1", epoch=1, held=[running], ended=[ended], first_unacknowledged=3)
        assert idents(welcome.end) == {ident(running)}
        await again.tells(3, finished(ended))
        await again.acknowledged(3)
        assert wire.pool.reports.of(ended).results == []
        assert wire.pool.available() == ["agent-1"]

    async def test_WhatIsStartedOnAHostThatIsGoneIsLost(self, wire: Wire) -> None:
        keys = wire.pool.start("nobody", wire.pool.batch(TASK, TASK))
        assert {told.outcome for told in await wire.pool.ended(keys)} == {"LOST"}

    async def test_AnAgentThatComesBackInTimeKeepsWhatItHas(self, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        agent = await wire.joined()
        (key,) = wire.pool.start("agent-1", wire.pool.batch(TASK))
        agent.cut()
        await wire.state(HOST_PAUSED)
        again = await wire.joined(tracker_id="tracker-1", epoch=1, held=[key])
        # Another's lease begins after this one's: once that has ended, so would this one.
        (await wire.joined(agent_id="agent-2", name="two")).cut()
        await wire.state(HOST_PAUSED, "agent-2")
        loop = asyncio.get_running_loop()
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + 2 * 3600)
        await wire.state(HOST_GONE, "agent-2")
        await again.tells(1, finished(key))
        assert (await wire.pool.ends(key)).outcome == "SUCCEEDED"
        assert wire.pool.available() == ["agent-1"]

    async def test_AnAgentThatFallsSilentIsCutOff(self, bare_wire: Wire) -> None:
        wire = bare_wire
        await wire.open(heartbeat=0.05)
        agent = await wire.joined()
        await wire.state(HOST_PAUSED)
        code, words = await agent.status()
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, "no heartbeat came")

    async def test_WhoStoodStillDoesNotBlameItsAgents(self, bare_wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        """A coordinator that was stopped for longer than silence is borne has heard nobody meanwhile."""
        wire = bare_wire
        await wire.open(heartbeat=5.0)
        executor = wire.pool.executor
        assert isinstance(executor, AgentExecutor)
        await wire.joined()
        agent = executor.agents["agent-1"]
        session, heard, clock = agent.session, agent.heard, time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 100)
        await eventually(lambda: agent.heard != heard or agent.session is None)
        assert agent.session is session
        assert wire.pool.available() == ["agent-1"]

    async def test_AnAgentThatReadsNothingIsCutOffToo(self, bare_wire: Wire) -> None:
        """Though what it is sent fills the connection, so that the coordinator's writer waits."""
        wire = bare_wire
        await wire.open(heartbeat=0.2)
        await wire.joined()
        for _ in range(20):
            wire.pool.start("agent-1", wire.pool.batch(spec("/bin/true", stdin="x" * (MAX_MESSAGE_BYTES // 2))))
        await wire.state(HOST_PAUSED)


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
            """All there is from the offset on, at once, whenever it is asked for."""
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
            await wire.pool.started(key)  # so everything came, and the reader has taken one chunk
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
