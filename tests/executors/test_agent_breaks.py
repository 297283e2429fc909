"""What holds when an agent's session breaks: what a new session sends again, what is lost, and when the lease of an agent ends.

The agents are played by hand, so that they can stay away, fall silent or come back with another memory. test_agent_reconnect.py
has real agents that come back.
"""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from agent_by_hand import finished
from agent_wire import TASK, Wire
from executor_harness import eventually
from support.task_specs import ident, idents, spec

from daggyr.channel import MAX_MESSAGE_BYTES
from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    HOST_GONE,
    HOST_PAUSED,
    AttemptKey,
)
from daggyr_server.executors.agents.executor import AgentExecutor


class TestAfterABreak:
    """An agent comes back and says which attempts it has; the coordinator compares them with its own."""

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
        again = await wire.joined()  # its hello names no tracker, as the first one did
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
        """Attempts of two trackers are not the same where their numbers are equal by chance."""
        agent = await wire.joined()
        keys = wire.pool.start("agent-1", wire.pool.batch(TASK, TASK))
        await agent.hears("assign")
        agent.cut()
        await wire.state(HOST_PAUSED)
        again = await wire.hand()
        # Meanwhile the agent was with another coordinator, whose run has the same number, and told it three batches.
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
        await again.acknowledged(2)  # nothing else was heard


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
        # The other agent's lease begins after this agent's, so this agent's would have ended by the time the other's ends.
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
        """A coordinator that stood still for longer than agents may be silent keeps its agents, because it could hear nobody."""
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
        """The coordinator's writer waits meanwhile, because what it sends has filled the connection."""
        wire = bare_wire
        await wire.open(heartbeat=0.2)
        await wire.joined()
        for _ in range(20):
            wire.pool.start("agent-1", wire.pool.batch(spec("/bin/true", stdin="x" * (MAX_MESSAGE_BYTES // 2))))
        await wire.state(HOST_PAUSED)
