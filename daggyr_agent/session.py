"""One session with the coordinator: the stream from hello to its end, and what each message on it does.

`connection` opens sessions one after another. A session has three asyncio tasks, which end with it. One reads, and passes the
coordinator's messages to the work, the outbox and the follows; one writes what they have to tell; one makes heartbeats. What
outlives a session (the membership, the work, the outbox) is given to it. A session decides nothing about attempts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc

from daggyr.attempts.times import seconds_of
from daggyr.channel import HIGHEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from daggyr.v1.agents_pb2 import AgentMessage, CoordinatorMessage, Goodbye, Heartbeat, Hello, Welcome

from . import __version__
from .execution_context import DEFAULT_GRACE
from .follow import Follows
from .outbox import Outbox
from .usage import HostUsage
from .work import Work

_WELCOME_SECONDS = 30.0
_DEFAULT_HEARTBEAT = 5.0  # seconds, where a welcome names none
_SHORTEST_HEARTBEAT = 0.05
_LEAVE_SECONDS = 1.0
_MAX_HELLO_KEYS = 120_000  # 33 bytes each at most, which is below a message's 4 MiB

_log = logging.getLogger(__name__)


class SessionError(Exception):
    """A session that ended, and not because the agent left; `code` is the call's status, None where the agent ended it."""

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True, kw_only=True)
class Membership:
    """Who the agent is for the coordinator, across sessions. The last five fields change."""

    agent_id: str
    agent_key: bytes = field(repr=False)
    incarnation: str
    name: str
    pool: str
    resources: Mapping[str, int]
    tracker_id: str  # of the last welcome, and empty before the first; the journal keeps it and the next two for the next process
    epoch: int
    life: int
    welcomed: bool = False
    draining: bool = False


class CoordinatorSession:
    """A session on a call that was just opened. `run` is called once."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[AgentMessage, CoordinatorMessage],
        *,
        membership: Membership,
        work: Work,
        outbox: Outbox,
        usage: HostUsage,
        news: asyncio.Event,
        drain: Callable[[], None],
        on_welcome: Callable[[], None],
    ) -> None:
        """Whoever has something new to send sets `news`. `drain` is called when the coordinator asks the agent to drain."""
        self.welcomed = False
        self._on_welcome = on_welcome
        self._call = call
        self._membership = membership
        self._work = work
        self._outbox = outbox
        self._usage = usage
        self._news = news
        self._drain = drain
        self._follows = Follows(asyncio.get_running_loop(), work, outbox, news.set)
        self._heartbeat: Heartbeat | None = None
        self._follows_turn = False
        self._leaving = False

    def beat(self) -> None:
        """Send a heartbeat before anything else."""
        self._heartbeat = self._usage.heartbeat()
        self._heartbeat.draining = self._membership.draining
        self._outbox.hurry()

    def leave(self) -> None:
        """Send what is due, then end the session; `run` returns soon after."""
        self._leaving = True
        self._news.set()

    async def run(self) -> None:
        """Go from hello to the end. Returns after `leave`, and raises SessionError if the session ends in another way."""
        try:
            interval = await self._open()
            await self._converse(interval)
        except grpc.aio.AioRpcError as error:
            raise SessionError(error.details() or error.code().name, error.code()) from None
        except asyncio.InvalidStateError:  # There was a write after the end, and the status says why it ended.
            raise SessionError(await self._call.details() or "the session ended", await self._call.code()) from None
        finally:
            self._follows.close()
            self._call.cancel()

    async def _open(self) -> float:
        """Say hello and hear the welcome; returns the heartbeat's interval in seconds."""
        membership, work = self._membership, self._work
        held, ended = work.held_keys(), self._outbox.ended_keys()
        await self._call.write(
            AgentMessage(
                hello=Hello(
                    protocol_version=PROTOCOL_VERSION,
                    highest_protocol_version=HIGHEST_PROTOCOL_VERSION,
                    agent_id=membership.agent_id,
                    agent_key=membership.agent_key,
                    incarnation=membership.incarnation,
                    name=membership.name,
                    pool=membership.pool,
                    resources=membership.resources,
                    tracker_id=membership.tracker_id,
                    epoch=membership.epoch,
                    life=membership.life,
                    held=held,
                    first_unacknowledged=self._outbox.first_unacknowledged,
                    version=__version__,
                    draining=membership.draining,
                    # Of more, the coordinator sends the assignments again, and hears that they have ended.
                    ended=ended[: max(0, _MAX_HELLO_KEYS - len(held))],
                )
            )
        )
        try:
            async with asyncio.timeout(_WELCOME_SECONDS):
                message = await self._read()
        except TimeoutError:
            raise SessionError(f"the coordinator did not answer within {_WELCOME_SECONDS:g} s") from None
        if message.WhichOneof("message") != "welcome":
            raise SessionError("the coordinator did not begin with a welcome")
        self._welcomed(message.welcome)
        return max(_SHORTEST_HEARTBEAT, seconds_of(message.welcome.heartbeat_interval) or _DEFAULT_HEARTBEAT)

    def _welcomed(self, welcome: Welcome) -> None:
        """Check the coordinator's tracker and epoch, then take up where the last session ended."""
        membership = self._membership
        if not welcome.tracker_id:
            raise SessionError("the coordinator's welcome names no tracker")
        if membership.tracker_id and welcome.tracker_id != membership.tracker_id:
            _log.warning(
                "the coordinator keeps its state elsewhere than before: %d attempts and %d results of the other one are dropped",
                self._work.waiting + self._work.running,
                len(self._outbox.ended_keys()),
            )
            self._work.end_silently(None)
        elif welcome.epoch < membership.epoch:
            raise SessionError(
                f"this coordinator is older (epoch {welcome.epoch}) than one that was here before (epoch {membership.epoch})"
            )
        another = (welcome.epoch, welcome.life) != (membership.epoch, membership.life)
        membership.tracker_id, membership.epoch, membership.life = welcome.tracker_id, welcome.epoch, welcome.life
        membership.welcomed = True
        self.welcomed = True
        self._on_welcome()
        self._work.welcomed(seconds_of(welcome.kill_grace) if welcome.HasField("kill_grace") else DEFAULT_GRACE)
        self._outbox.belong_to(welcome.tracker_id, welcome.epoch, welcome.life)
        self._outbox.resume(welcome.next_sequence)
        self._work.end_silently(welcome.end)
        if another:  # A coordinator does not keep what has started, so another one learns it anew.
            self._work.tell_running()

    async def _converse(self, interval: float) -> None:
        """Read, write and beat until one of them ends."""
        reading = asyncio.create_task(self._read_all())
        writing = asyncio.create_task(self._write_all())
        beating = asyncio.create_task(self._beat(interval))
        tasks = (reading, writing, beating)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and not writing.cancelled() and writing.exception() is None:
                await asyncio.wait((reading,), timeout=_LEAVE_SECONDS)
                return
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        # The reader's error is the call's status, and a writer that fails knows less.
        for result in results:
            if isinstance(result, Exception):
                raise result
        raise SessionError("the session was cancelled")

    async def _read(self) -> CoordinatorMessage:
        message = await self._call.read()
        if isinstance(message, CoordinatorMessage):
            return message
        if message is None:  # gRPC says so of bytes that cannot be decoded.
            raise SessionError("the coordinator sent what is no message of this protocol")
        raise SessionError("the coordinator ended the session")

    async def _read_all(self) -> None:
        while True:
            self._obey(await self._read())

    def _obey(self, message: CoordinatorMessage) -> None:
        match message.WhichOneof("message"):
            case "assign":
                self._work.assign(message.assign)
            case "acknowledge":
                self._outbox.acknowledge(message.acknowledge.sequence)
            case "cancel":
                cancel = message.cancel
                grace = seconds_of(cancel.grace) if cancel.HasField("grace") else DEFAULT_GRACE
                self._work.cancel(cancel.keys, grace)
            case "recall":
                self._work.recall(message.recall.keys)
            case "follow":
                self._follows.command(message.follow)
            case "drain":
                self._drain()
            case other:
                _log.warning("the coordinator sent a message that is unknown or out of place: %s", other)

    async def _write_all(self) -> None:
        """Write the batches of earlier sessions, then what is due. Returns once the agent has left."""
        for batch in self._outbox.under_way():
            if batch.sequence >= self._outbox.first_unacknowledged:
                await self._call.write(batch.message())
        while True:
            self._news.clear()
            message = self._next_message()
            if message is not None:
                await self._call.write(message)
            elif self._leaving:
                await self._call.write(AgentMessage(goodbye=Goodbye()))
                await self._call.done_writing()
                return
            else:
                await self._news.wait()

    def _next_message(self) -> AgentMessage | None:
        beat, self._heartbeat = self._heartbeat, None
        if beat is not None:
            return AgentMessage(heartbeat=beat)
        self._follows_turn = not self._follows_turn  # Updates and follows take turns, so that neither shuts the other out.
        if self._follows_turn and (followed := self._follows.take()) is not None:
            return followed
        if (batch := self._outbox.take(self._work.ahead)) is not None:
            return batch.message()
        return None if self._follows_turn else self._follows.take()

    async def _beat(self, interval: float) -> None:
        while True:
            self.beat()
            await asyncio.sleep(interval)
