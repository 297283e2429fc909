"""An agent that a test plays itself: a raw client of `Agents.Session` that says exactly what it is told to say.

Tests use it for what a real agent would never do (a wrong version, batches out of order, silence) and for what they must see
message by message (acknowledgements, welcomes). It starts no process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from support.waiting import DEADLINE

from daggyr.channel import open_channel
from daggyr.v1.agents_pb2 import AgentMessage, CoordinatorMessage, Hello, UpdateBatch, Welcome
from daggyr.v1.agents_pb2_grpc import AgentsStub
from daggyr.v1.task_pb2 import AttemptKey, AttemptOutcome, AttemptResult, AttemptUpdate


def hello(**changes: Any) -> Hello:
    """Return the hello of a first session, in which nothing is wrong but what `changes` makes wrong."""
    given: dict[str, Any] = {
        "protocol_version": 1,
        "highest_protocol_version": 2,
        "agent_id": "agent-1",
        "incarnation": "incarnation-1",
        "name": "by-hand",
        "pool": "pool",
        "resources": {"cores": 2},
        "first_unacknowledged": 1,
        "version": "0",
    }
    return Hello(**{**given, **changes})


class Hand:
    """One session from the agent's end."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = AgentsStub(channel).Session()
        self._acknowledged = 0

    async def say(self, **message: Any) -> None:
        """Write an AgentMessage with this one field."""
        async with asyncio.timeout(DEADLINE):
            await self._call.write(AgentMessage(**message))

    async def hears(self, kind: str) -> Any:
        """Return the next message, which has to be of this kind. Acknowledgements before it are noted."""
        while True:
            async with asyncio.timeout(DEADLINE):
                message = await self._call.read()
            assert isinstance(message, CoordinatorMessage), await self.status()
            self._acknowledged = max(self._acknowledged, message.acknowledge.sequence)
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)
            assert message.WhichOneof("message") == "acknowledge", message

    async def joins(self, **changes: Any) -> Welcome:
        """Say hello and return the welcome."""
        await self.say(hello=hello(**changes))
        welcome = await self.hears("welcome")
        assert isinstance(welcome, Welcome)
        return welcome

    async def tells(self, sequence: int, *updates: AttemptUpdate) -> None:
        await self.say(updates=UpdateBatch(sequence=sequence, updates=updates))

    async def acknowledged(self, sequence: int) -> None:
        """Return once this batch is acknowledged, and no later one. Heartbeats ask for that, as those of a real agent do."""
        while self._acknowledged < sequence:
            await self.say(heartbeat={})
            await self.hears("acknowledge")
        assert self._acknowledged == sequence

    def done(self) -> Any:
        """Half-close the call, so that the coordinator knows that nothing more will be said."""
        return self._call.done_writing()

    def cut(self) -> None:
        """End the call as a broken connection would."""
        self._call.cancel()

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """Return how the call ended, once it has ended. Messages that come before are passed over."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async with asyncio.timeout(DEADLINE):
                while await self._call.read() is not grpc.aio.EOF:
                    pass
        return await self._call.code(), await self._call.details() or ""


@contextlib.asynccontextmanager
async def hand(socket: Path) -> AsyncIterator[Hand]:
    """A session on a connection of its own, which is cut in the end."""
    channel = open_channel(f"unix:{socket}")
    made = Hand(channel)
    try:
        yield made
    finally:
        made.cut()
        await channel.close()


def finished(key: AttemptKey, outcome: AttemptOutcome = AttemptOutcome.SUCCEEDED) -> AttemptUpdate:
    return AttemptUpdate(key=key, finished=AttemptResult(outcome=outcome))
