"""The servicer of `Agents.Session`: one call of one agent, from its hello to the end of the stream.

The listener of the coordinator serves one `AgentSessions` for all agent pools; a local pool serves one on a socket of its own.
A hello is checked, and its pool takes the agent in. Then one task passes on what the agent says, and another writes what the
session holds for it. Nothing is decided here about attempts: that is the pool's, which is an `AgentExecutor` (executor.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

import grpc

from daggyr.bounds import MAX_WORD, status_text
from daggyr.channel import HIGHEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from daggyr.v1.agents_pb2 import AgentMessage, Hello
from daggyr.v1.agents_pb2_grpc import AgentsServicer
from daggyr_server.executors.agents.known_agent import KnownAgent, highest_version
from daggyr_server.executors.agents.pins import AgentPins, PinsClosed
from daggyr_server.executors.agents.session import AgentSession, SessionRefused
from daggyr_server.executors.believable import fault_in
from daggyr_server.refused_callers import RefusedCallers

log = logging.getLogger(__name__)

HELLO_SECONDS = 30.0  # for an agent to say hello
READY_SECONDS = 10.0  # for the coordinator to have restored its runs
WRITE_SECONDS = 10.0  # for the last message of a session to be written
PROBE_SECONDS = 10.0  # for an agent to answer, when another process says that it is this agent

# Statuses that end sessions without anybody being at fault.
_OWN_ENDS = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED})


class AgentPool(Protocol):
    """What the servicer asks of a pool that agents can join; an AgentExecutor is one. None of the calls waits."""

    @property
    def joined_as(self) -> str:
        """The name by which agents join the pool."""

    @property
    def agents(self) -> Mapping[str, KnownAgent]:
        """All agents that the pool knows, by their ids."""

    def connected(self, name: str) -> KnownAgent | None:
        """Return the connected agent of that name."""

    def moved(self, agent_id: str) -> None:
        """Take note that an agent has joined another pool: in this one it is gone."""

    def welcome(self, hello: Hello, session: AgentSession) -> KnownAgent:
        """Take an agent in: agree with it on what it has, and offer it as a host. Raises SessionRefused."""

    def said(self, agent: KnownAgent, session: AgentSession, message: AgentMessage) -> None:
        """Take a message of a session. One of a session that the agent has replaced is passed over."""

    def lost(self, agent: KnownAgent, session: AgentSession) -> None:
        """Take note that a session has ended, for whatever reason."""


class AgentSessions(AgentsServicer):
    """The servicer, for the agent pools of one listener."""

    def __init__(
        self,
        pools: Iterable[AgentPool],
        pins: AgentPins | None = None,
        refused: RefusedCallers | None = None,
        ready: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """`pins` says whose the agents' ids are; without it, what is known of them goes with this object.

        `refused` is the listener's log of callers that it refuses; without it, these sessions have one of their own. `ready`
        returns once the pools know of all attempts that an earlier coordinator placed; agents keep what they have until then.
        """
        self._pools = {pool.joined_as: pool for pool in pools}
        self._pins = pins or AgentPins()
        self._refused = refused or RefusedCallers()
        self._ready = ready

    async def Session(self, request_iterator: AsyncIterator[AgentMessage], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """See agents.proto."""
        try:
            await self._serve(request_iterator, context)
        except SessionRefused as refused:
            if refused.code not in _OWN_ENDS:
                self._refused.note(context.peer(), f"{refused.code.name}: {refused}")
            await context.abort(refused.code, status_text(str(refused)))

    async def _serve(self, requests: AsyncIterator[AgentMessage], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        hello = await _hello(requests)
        pool = self._pools.get(hello.pool)
        if pool is None:
            others = ", ".join(self._pools) or "none"
            message = f"there is no pool {hello.pool!r} that agents can join (there are: {others}): give the agent another --pool"
            raise SessionRefused(grpc.StatusCode.NOT_FOUND, message)
        if self._ready is not None:
            try:
                async with asyncio.timeout(READY_SECONDS):
                    await self._ready()
            except TimeoutError:
                message = "the coordinator has just started and still restores its runs: try again, and keep what there is"
                raise SessionRefused(grpc.StatusCode.UNAVAILABLE, message) from None
        self._check_name(hello)
        await self._check_key(hello)
        await self._check_alone(hello)
        self._check_name(hello)  # another agent may have joined meanwhile
        for other in self._pools.values():
            if other is not pool:
                other.moved(hello.agent_id)
        session = AgentSession(context.peer())
        agent = pool.welcome(hello, session)
        self._pins.called(hello.agent_id, hello.name)
        reader = asyncio.create_task(_read(requests, pool, agent, session), name=f"agent {hello.name}")
        writer = asyncio.create_task(_write(session, context), name=f"to agent {hello.name}")
        # It stands beside the writer, because an agent that takes nothing any more blocks the writer, and must be cut off too.
        over = asyncio.create_task(session.over(), name=f"end of agent {hello.name}")
        tasks = (reader, writer, over)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except grpc.aio.AioRpcError as error:
            log.info("agent %s: the connection broke: %s", hello.name, error.details())
        except grpc.aio.UsageError:
            log.info("agent %s: the connection broke", hello.name)
        finally:
            session.close()
            pool.lost(agent, session)
            reader.cancel()
            over.cancel()
            try:
                await _let_finish(writer)
            finally:
                await asyncio.gather(*tasks, return_exceptions=True)

    def _check_name(self, hello: Hello) -> None:
        for pool in self._pools.values():
            other = pool.connected(hello.name)
            if other is not None and other.agent_id != hello.agent_id:
                message = f"another agent called {hello.name!r} is connected from {other.address}: give this one another --name"
                raise SessionRefused(grpc.StatusCode.ALREADY_EXISTS, message)

    async def _check_key(self, hello: Hello) -> None:
        """Check that the agent is the one that it says it is. From its first hello on, this is known durably."""
        try:
            admitted = await self._pins.admit(hello.agent_id, hello.name, hello.agent_key, self._is_known)
        except PinsClosed as closed:
            raise SessionRefused(grpc.StatusCode.UNAVAILABLE, str(closed)) from None
        if not admitted:
            key = "another key than" if hello.agent_key else "no key, unlike"
            raise SessionRefused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"agent {hello.name!r} (id {hello.agent_id}) shows {key} the agent that is known by that id. If its state folder "
                f"lost its key, or its host was set up anew: `daggyr agent forget {hello.agent_id}`. If the folder is a copy of "
                "another agent's: remove agent-id and agent-key from the copy",
            )

    async def _check_alone(self, hello: Hello) -> None:
        """Check that no other process of this agent is connected.

        Two hosts with copies of one state folder would push each other out without end.
        """
        silent = None
        while (other := self._other_process(hello)) is not None and other[1] is not silent:
            name, silent = other
            if await silent.answers(PROBE_SECONDS):
                raise SessionRefused(
                    grpc.StatusCode.ALREADY_EXISTS,
                    f"another process of agent {name!r} (id {hello.agent_id}) is connected from {silent.address}, and "
                    "answers. If that is another host, one state folder is a copy of the other: remove agent-id and agent-key "
                    "from the copy",
                )

    def _other_process(self, hello: Hello) -> tuple[str, AgentSession] | None:
        """Return the name under which it is connected, which may be another than the hello's, and its session."""
        for pool in self._pools.values():
            agent = pool.agents.get(hello.agent_id)
            if agent is not None and agent.session is not None and agent.incarnation != hello.incarnation:
                return agent.name, agent.session
        return None

    def _is_known(self, agent_id: str) -> bool:
        return any(agent_id in pool.agents for pool in self._pools.values())


async def _hello(requests: AsyncIterator[AgentMessage]) -> Hello:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            first = await anext(requests)
    except TimeoutError:  # a slow host is no fault: its agent tries again
        message = f"no hello came within {HELLO_SECONDS:g} s"
        raise SessionRefused(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
    except StopAsyncIteration:
        raise SessionRefused(invalid, "an agent says hello first") from None
    if first.WhichOneof("message") != "hello":
        raise SessionRefused(invalid, "an agent says hello first")
    hello = first.hello
    lowest, highest = hello.protocol_version, highest_version(hello)
    if not 0 < lowest <= HIGHEST_PROTOCOL_VERSION or highest < PROTOCOL_VERSION:
        spoken = f"version {lowest}" if highest == lowest else f"versions {lowest} to {highest}"
        message = (
            f"agent {hello.name[:MAX_WORD]!r} speaks protocol {spoken}, this coordinator {PROTOCOL_VERSION} to "
            f"{HIGHEST_PROTOCOL_VERSION}: install the same version of daggyr on both"
        )
        raise SessionRefused(grpc.StatusCode.FAILED_PRECONDITION, message)
    fault = fault_in(first)
    if fault is not None:
        raise SessionRefused(invalid, fault)
    return hello


async def _read(requests: AsyncIterator[AgentMessage], pool: AgentPool, agent: KnownAgent, session: AgentSession) -> None:
    async for message in requests:
        fault = fault_in(message)
        if fault is not None:
            raise SessionRefused(grpc.StatusCode.INVALID_ARGUMENT, f"agent {agent.name!r}: {fault}")
        pool.said(agent, session, message)
        await session.room()


async def _write(session: AgentSession, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    messages = session.messages()
    async with contextlib.aclosing(messages):  # type: ignore[type-var]
        async for message in messages:
            await context.write(message)


async def _let_finish(writer: asyncio.Task[None]) -> None:
    """Let the writer of a closed session come to the end of its message, or cancel it and the call.

    A call cannot be given a status while a message is being written: gRPC fails, and the agent waits in vain. An agent that takes
    nothing any more is not waited for either: the handler is cancelled, and so the call is reset without a status.
    """
    try:
        await asyncio.wait((writer,), timeout=WRITE_SECONDS)
    finally:  # this also runs where the server ends meanwhile
        cancelled = writer.cancel()
    if cancelled:
        raise asyncio.CancelledError
