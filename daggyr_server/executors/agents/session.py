"""One session of an agent, as the coordinator holds it: what is on its way to the agent, and how the session ends.

The servicer makes one for each call of `Agents.Session` and writes what it holds; the agent executor puts messages in and may
end it. It knows nothing of attempts, and does not read or write anything itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import grpc

from daggyr.v1.agents_pb2 import Acknowledge, CoordinatorMessage, Follow
from daggyr.v1.task_pb2 import STDOUT, AttemptKey

PROBE = 2**63  # the follow_id by which an agent is asked whether it is there; no follow has it
MAX_UNDURABLE = 32  # batches of updates taken from one agent and not yet durable; more wait in its connection


class SessionRefused(Exception):
    """An agent is not taken in: the status with which its call ends, and the words."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class AgentIsAhead(SessionRefused):
    """The agent has seen a start that this coordinator's tracker lacks. Its pool has told that."""

    def __init__(self, message: str) -> None:
        super().__init__(grpc.StatusCode.FAILED_PRECONDITION, message)


class AgentSession:
    """A session. What it holds is bounded by the attempts that the machine lets a host have."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._outgoing: deque[CoordinatorMessage] = deque()
        self._acknowledge = 0
        self._acknowledged = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._undurable = 0
        self._probes: list[asyncio.Future[bool]] = []
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open = True

    def send(self, message: CoordinatorMessage) -> None:
        """Queue a message behind those before. After the end of the session, nothing happens."""
        if self.open:
            self._outgoing.append(message)
            self._wake.set()

    def acknowledge(self, sequence: int) -> None:
        """Tell the agent that batches up to `sequence` are durable. Only the newest of these words is sent."""
        self._acknowledge = max(self._acknowledge, sequence)
        self._wake.set()

    def unacknowledged(self, sequence: int) -> int:
        """Return how many batches up to `sequence` the agent was not told of."""
        return sequence - self._acknowledge

    def took(self) -> None:
        """Count a batch of updates that came."""
        self._undurable += 1

    def durable(self) -> None:
        """Count a batch that came and has been committed."""
        self._undurable -= 1
        self._room.set()

    def close(self) -> None:
        """Take nothing more. The writer stops after the message that it writes."""
        self.open = False
        self.answered(False)
        self._wake.set()

    def end(self, code: grpc.StatusCode, message: str) -> None:
        """End the call with a status; messages that wait are not written. The first end counts."""
        if not self._ended.done():
            self._ended.set_exception(SessionRefused(code, message))
            self._ended.exception()  # marks it as seen, because the call may have ended by itself

    async def over(self) -> None:
        """Raise SessionRefused once `end` was called. Never returns."""
        await asyncio.shield(self._ended)

    async def answers(self, seconds: float) -> bool:
        """Ask the agent whether it is there, and return whether it answers within `seconds`."""
        if not self.open:
            return False
        probe: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._probes.append(probe)
        # An agent of any version says at once that nothing comes of an attempt that it does not have.
        self.send(CoordinatorMessage(follow=Follow(follow_id=PROBE, key=AttemptKey(), stream=STDOUT)))
        try:
            async with asyncio.timeout(seconds):
                return await probe
        except TimeoutError:
            return False
        finally:
            self._probes.remove(probe)

    def answered(self, alive: bool) -> None:
        """Pass the agent's answer on to `answers`, or that none will come."""
        for probe in self._probes:
            if not probe.done():
                probe.set_result(alive)

    @property
    def is_full(self) -> bool:
        """Whether nothing is read from the agent for now, so that its silence says nothing."""
        return self._undurable >= MAX_UNDURABLE

    async def room(self) -> None:
        """Return once another batch of updates may be taken."""
        while self.is_full:
            self._room.clear()
            await self._room.wait()

    async def messages(self) -> AsyncIterator[CoordinatorMessage]:
        """Yield what is to be written, as it comes, until `close`."""
        while self.open:
            if self._outgoing:
                yield self._outgoing.popleft()
            elif self._acknowledge > self._acknowledged:
                self._acknowledged = self._acknowledge
                yield CoordinatorMessage(acknowledge=Acknowledge(sequence=self._acknowledge))
            else:
                self._wake.clear()
                await self._wake.wait()
