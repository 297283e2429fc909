"""Which agents a coordinator lets in by `Agents.Session`, and which of two agents, or of two sessions of an agent, it keeps.

The agents are played by hand, so that they can say what a real agent never says.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc
import pytest
from agent_by_hand import finished, hello
from agent_wire import TASK, Wire
from support.task_specs import ident, idents
from support.waiting import DEADLINE

from daggyr.bounds import MAX_WORD
from daggyr.channel import open_channel
from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    HOST_PAUSED,
)


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
            (
                {"protocol_version": 3, "highest_protocol_version": 4},
                grpc.StatusCode.FAILED_PRECONDITION,
                "versions 3 to 4, this coordinator 1 to 2: install",
            ),
            ({"protocol_version": 0, "highest_protocol_version": 0}, grpc.StatusCode.FAILED_PRECONDITION, "version 0"),
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
            ({"tracker_id": "tracker-1", "epoch": 2}, grpc.StatusCode.FAILED_PRECONDITION, "older copy"),
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
        await wire.joined()  # the next agent is let in

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
