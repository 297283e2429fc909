"""The coordinator's end of `Agents.Session`: one call of one agent, from hello to the end of the stream.

The servicer checks a hello, finds the pool's executor and lets it take the agent in; then one task reads what the agent says and
this call writes what the executor has for it. It decides nothing about attempts: that is `agent.py`. The local executor serves
the same servicer on a socket of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

import grpc

from daggyr.bounds import MAX_WORD, status_text
from daggyr.channel import PROTOCOL_VERSION
from daggyr.v1.agents_pb2 import Acknowledge, AgentMessage, CoordinatorMessage, Follow, Hello
from daggyr.v1.agents_pb2_grpc import AgentsServicer
from daggyr.v1.task_pb2 import STDOUT, AttemptKey
from daggyr_server.executors.agents.pins import AgentPins, PinsClosed
from daggyr_server.executors.believable import fault_in
from daggyr_server.refused_callers import RefusedCallers

if TYPE_CHECKING:
    from daggyr_server.executors.agents.executor import AgentExecutor

log = logging.getLogger(__name__)

HELLO_SECONDS = 30.0
WRITE_SECONDS = 10.0  # for the last message of a session to be written
PROBE_SECONDS = 10.0  # for an agent to answer, when another process says that it is this agent
PROBE = 2**63  # the follow_id of that question, which no follow has
MAX_UNDURABLE = 32  # batches of updates taken from one agent and not yet durable; more wait in its connection


# What ends sessions without anybody being at fault.
_OWN_ENDS = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED})


class SessionRefused(Exception):
    """An agent that is not taken in: the status to end its call with, and the words."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Session:
    """What is on its way to one connected agent. Bounded by the attempts that the machine lets a host have."""

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
        """Queue a message; in order. Nothing happens after the end of the session."""
        if self.open:
            self._outgoing.append(message)
            self._wake.set()

    def acknowledge(self, sequence: int) -> None:
        """Tell the agent that batches up to `sequence` are durable; only the newest of these is sent."""
        self._acknowledge = max(self._acknowledge, sequence)
        self._wake.set()

    def unacknowledged(self, sequence: int) -> int:
        """How many batches up to `sequence` the agent was not told of."""
        return sequence - self._acknowledge

    def took(self) -> None:
        """A batch of updates came."""
        self._undurable += 1

    def durable(self) -> None:
        """A batch that came has been committed."""
        self._undurable -= 1
        self._room.set()

    def close(self) -> None:
        """The call ends: nothing more is taken, and the writer stops after the message that it writes."""
        self.open = False
        self.answered(False)
        self._wake.set()

    def end(self, code: grpc.StatusCode, message: str) -> None:
        """End the call with a status, without what waits to be written. The first end counts."""
        if not self._ended.done():
            self._ended.set_exception(SessionRefused(code, message))
            self._ended.exception()  # seen: the call may have ended by itself

    async def over(self) -> None:
        """Raises SessionRefused once `end` was called; returns never."""
        await asyncio.shield(self._ended)

    async def answers(self, seconds: float) -> bool:
        """Whether there is still an agent at the other end: it is asked, and has this long to answer."""
        if not self.open:
            return False
        probe: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._probes.append(probe)
        # Of an attempt that there is not, an agent of any version says at once that nothing comes.
        self.send(CoordinatorMessage(follow=Follow(follow_id=PROBE, key=AttemptKey(), stream=STDOUT)))
        try:
            async with asyncio.timeout(seconds):
                return await probe
        except TimeoutError:
            return False
        finally:
            self._probes.remove(probe)

    def answered(self, alive: bool) -> None:
        """The answer to `answers` came, or none will."""
        for probe in self._probes:
            if not probe.done():
                probe.set_result(alive)

    @property
    def is_full(self) -> bool:
        """Whether nothing is read from it for now: its silence says nothing then."""
        return self._undurable >= MAX_UNDURABLE

    async def room(self) -> None:
        """Return once another batch of updates may be taken."""
        while self.is_full:
            self._room.clear()
            await self._room.wait()

    async def messages(self) -> AsyncIterator[CoordinatorMessage]:
        """What to write, as it comes, until `close`."""
        while self.open:
            if self._outgoing:
                yield self._outgoing.popleft()
            elif self._acknowledge > self._acknowledged:
                self._acknowledged = self._acknowledge
                yield CoordinatorMessage(acknowledge=Acknowledge(sequence=self._acknowledge))
            else:
                self._wake.clear()
                await self._wake.wait()


_Session = Session  # which AgentSessions has a method of the same name as


class AgentSessions(AgentsServicer):
    """The servicer, for the agent pools of one listener."""

    def __init__(
        self, executors: Iterable[AgentExecutor], pins: AgentPins | None = None, refused: RefusedCallers | None = None
    ) -> None:
        """`pins`: whose the agents' ids are; without, what is known of them goes with this object.

        `refused` is the listener's log of those whom it refuses; without, these sessions have one of their own.
        """
        self._executors = {executor.joined_as: executor for executor in executors}
        self._pins = pins or AgentPins()
        self._refused = refused or RefusedCallers()

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
        executor = self._executors.get(hello.pool)
        if executor is None:
            pools = ", ".join(self._executors) or "none"
            message = f"there is no pool {hello.pool!r} that agents can join (there are: {pools}): give the agent another --pool"
            raise SessionRefused(grpc.StatusCode.NOT_FOUND, message)
        self._check_name(hello)
        await self._check_key(hello)
        await self._check_alone(hello)
        self._check_name(hello)  # somebody else may have joined meanwhile
        for other in self._executors.values():
            if other is not executor:
                other.moved(hello.agent_id)
        session = Session(context.peer())
        agent = executor.welcome(hello, session)
        self._pins.called(hello.agent_id, hello.name)
        reader = asyncio.create_task(_read(requests, executor, agent, session), name=f"agent {hello.name}")
        writer = asyncio.create_task(_write(session, context), name=f"to agent {hello.name}")
        # Beside the writer, not in it: whoever is to be cut off because it takes nothing any more blocks the writer.
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
            executor.lost(agent, session)
            reader.cancel()
            over.cancel()
            try:
                await _let_finish(writer)
            finally:
                await asyncio.gather(*tasks, return_exceptions=True)

    def _check_name(self, hello: Hello) -> None:
        for executor in self._executors.values():
            other = executor.connected(hello.name)
            if other is not None and other.agent_id != hello.agent_id:
                message = f"another agent called {hello.name!r} is connected from {other.address}: give this one another --name"
                raise SessionRefused(grpc.StatusCode.ALREADY_EXISTS, message)

    async def _check_key(self, hello: Hello) -> None:
        """The agent is who it says; from its first hello on, this is known durably."""
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
        """No other process of this agent is connected: two hosts with copies of one state folder would push each other out."""
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

    def _other_process(self, hello: Hello) -> tuple[str, _Session] | None:
        """The name that it is connected under, which may be another than the hello's, and its session."""
        for executor in self._executors.values():
            agent = executor.agents.get(hello.agent_id)
            if agent is not None and agent.session is not None and agent.incarnation != hello.incarnation:
                return agent.name, agent.session
        return None

    def _is_known(self, agent_id: str) -> bool:
        return any(agent_id in executor.agents for executor in self._executors.values())


async def _hello(requests: AsyncIterator[AgentMessage]) -> Hello:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            first = await anext(requests)
    except TimeoutError:  # an agent on a slow host is not refused for good
        message = f"no hello came within {HELLO_SECONDS:g} s"
        raise SessionRefused(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
    except StopAsyncIteration:
        raise SessionRefused(invalid, "an agent says hello first") from None
    if first.WhichOneof("message") != "hello":
        raise SessionRefused(invalid, "an agent says hello first")
    hello = first.hello
    if hello.protocol_version != PROTOCOL_VERSION:
        message = (
            f"agent {hello.name[:MAX_WORD]!r} speaks protocol version {hello.protocol_version}, this coordinator "
            f"{PROTOCOL_VERSION}: install the same version of daggyr on both"
        )
        raise SessionRefused(grpc.StatusCode.FAILED_PRECONDITION, message)
    fault = fault_in(first)
    if fault is not None:
        raise SessionRefused(invalid, fault)
    return hello


async def _read(requests: AsyncIterator[AgentMessage], executor: AgentExecutor, agent: Any, session: Session) -> None:
    async for message in requests:
        fault = fault_in(message)
        if fault is not None:
            raise SessionRefused(grpc.StatusCode.INVALID_ARGUMENT, f"agent {agent.name!r}: {fault}")
        executor.said(agent, session, message)
        await session.room()


async def _write(session: Session, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    messages = session.messages()
    async with contextlib.aclosing(messages):  # type: ignore[type-var]
        async for message in messages:
            await context.write(message)


async def _let_finish(writer: asyncio.Task[None]) -> None:
    """Let the writer of a closed session come to the end of its message, or cancel it and the call.

    A call cannot be given a status while a message is being written: gRPC fails, and the agent waits in vain. If it takes
    nothing any more, it is not waited for either: a call whose handler is cancelled is reset without a status.
    """
    try:
        await asyncio.wait((writer,), timeout=WRITE_SECONDS)
    finally:  # also where the server ends meanwhile
        cancelled = writer.cancel()
    if cancelled:
        raise asyncio.CancelledError
