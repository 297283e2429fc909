"""The other side of an agent's session, for tests: a real gRPC server that does what a test tells it, and writes down what
the agent says.

It keeps to the contract by itself where a test does not care (welcome, acknowledge at once) and leaves it where a test
does: refuse, welcome as somebody else, drop the stream, acknowledge nothing. It decides nothing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc
from support.task_specs import Ident, duration
from support.waiting import DEADLINE

from daggyr.channel import MAX_MESSAGE_BYTES
from daggyr.v1.agents_pb2 import (
    Acknowledge,
    AgentMessage,
    Cancel,
    CoordinatorMessage,
    Drain,
    Follow,
    FollowedOutput,
    Heartbeat,
    Hello,
    Recall,
    UpdateBatch,
    Welcome,
)
from daggyr.v1.task_pb2 import (
    STDERR,
    STDOUT,
    Assignment,
    AssignmentBatch,
    AttemptKey,
    AttemptResult,
    OutputStream,
    TaskSpec,
    TaskTemplate,
)

LIFE = 0x5EED  # of the coordinator's start, in the keys of its attempts


@dataclass
class Told:
    """What the agent told of one attempt."""

    started: int = 0
    results: list[AttemptResult] = field(default_factory=list)
    written: dict[OutputStream, dict[int, bytes]] = field(default_factory=lambda: {STDOUT: {}, STDERR: {}})

    @property
    def result(self) -> AttemptResult:
        assert len(self.results) == 1, self.results
        return self.results[0]

    def output(self, stream: OutputStream = STDOUT) -> bytes:
        """What came of a stream, put together in the order of the offsets; a gap is left out."""
        return b"".join(data for _, data in sorted(self.written[stream].items()))


class Session:
    """One session as the coordinator sees it."""

    def __init__(self, hello: Hello, context: grpc.aio.ServicerContext[AgentMessage, CoordinatorMessage]) -> None:
        self.hello = hello
        self.metadata = dict(context.invocation_metadata() or ())
        self.batches: list[UpdateBatch] = []
        self.heartbeats = 0
        self.heartbeat: Heartbeat | None = None  # the last
        self.ended = asyncio.Event()
        self.dropped = asyncio.Event()
        self._context = context
        self._writing = asyncio.Lock()

    async def send(self, **message: object) -> None:
        """Send a CoordinatorMessage with this one field."""
        await self._write(CoordinatorMessage(**message))  # type: ignore[arg-type]

    async def send_bytes(self, content: bytes) -> None:
        """Send what need not be a message."""
        await self._write(content)

    async def assign(self, *attempts: tuple[AttemptKey, TaskSpec], task_id: str = "task") -> None:
        """Each with a template of its own."""
        await self.send(
            assign=AssignmentBatch(
                templates=[TaskTemplate(spec=spec) for _, spec in attempts],
                assignments=[Assignment(key=key, task_id=task_id, template=index) for index, (key, _) in enumerate(attempts)],
            )
        )

    async def cancel(self, *keys: AttemptKey, grace: float | None = None) -> None:
        await self.send(cancel=Cancel(keys=keys, grace=None if grace is None else duration(grace)))

    async def recall(self, *keys: AttemptKey) -> None:
        await self.send(recall=Recall(keys=keys))

    async def follow(self, follow_id: int, key: AttemptKey, stream: OutputStream = STDOUT, offset: int = 0) -> None:
        await self.send(follow=Follow(follow_id=follow_id, key=key, stream=stream, offset=offset))

    async def drain(self) -> None:
        await self.send(drain=Drain())

    async def acknowledge(self, sequence: int) -> None:
        await self.send(acknowledge=Acknowledge(sequence=sequence))

    def drop(self) -> None:
        """End the stream from this side."""
        self.dropped.set()

    async def _write(self, message: CoordinatorMessage | bytes) -> None:
        async with self._writing:
            await self._context.write(message)  # type: ignore[arg-type]


class Coordinator:
    """The server; `settings` below may be changed at any time and count from the next session, or message, on."""

    def __init__(self) -> None:
        self.tracker_id = "tracker-1"
        self.epoch = 1
        self.end: Sequence[AttemptKey] = ()
        self.next_sequence = 0
        self.assigned_at_once: Sequence[tuple[AttemptKey, TaskSpec]] = ()  # with the welcome
        self.heartbeat_interval = 1.0
        self.kill_grace: float | None = None  # seconds; None: a coordinator that names none
        self.acknowledging = True
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.token: str | None = None
        self.sessions: list[Session] = []
        self.refused: list[Hello] = []
        self.told: dict[Ident, Told] = {}
        self.followed: dict[int, list[FollowedOutput]] = {}
        self.reading = (
            asyncio.Event()
        )  # while it is not set, nothing is read, so that an agent cannot write any more (flow control)
        self.reading.set()
        self._obeyed = itertools.count(1 << 32)
        self._waiting: set[asyncio.Event] = set()  # by who waits for something; set when anything has changed
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
        """Listen on `address`; returns it, with the port that was chosen for port 0."""
        limits = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)]
        server = self._server = grpc.aio.server(options=limits)
        handler = grpc.stream_stream_rpc_method_handler(self.serve, AgentMessage.FromString, _serialized)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("daggyr.v1.Agents", {"Session": handler}),))
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        await server.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """End all sessions and close the port."""
        if self._server is not None:
            for session in self.sessions:
                session.drop()
            await self._server.stop(0.5)
            self._server = None

    async def until(self, condition: Callable[[], object], seconds: float = DEADLINE) -> None:
        """Wait until something the agent said makes `condition` true."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await changed.wait()
                    changed.clear()
        finally:
            self._waiting.discard(changed)

    async def session(self, number: int = 1, name: str = "agent") -> Session:
        """The first, second, ... session of the agent of that name, as soon as it is welcomed."""

        def sessions() -> list[Session]:
            return [session for session in self.sessions if session.hello.name == name]

        await self.until(lambda: len(sessions()) >= number)
        return sessions()[number - 1]

    async def results(self, *keys: AttemptKey) -> list[AttemptResult]:
        """The results of these attempts, as soon as all have come."""
        await self.until(lambda: all(self.of(key).results for key in keys))
        return [self.of(key).result for key in keys]

    async def result(self, key: AttemptKey) -> AttemptResult:
        return (await self.results(key))[0]

    async def start_of(self, key: AttemptKey) -> None:
        """Wait until the agent told that the attempt has started."""
        await self.until(lambda: self.of(key).started)

    def of(self, key: AttemptKey) -> Told:
        return self.told.setdefault((key.run_id, key.task_number, key.attempt), Told())

    def followed_bytes(self, follow_id: int) -> bytes:
        """What came for a follow so far."""
        return b"".join(message.chunk.data for message in self.followed.get(follow_id, ()))

    async def end_of_follow(self, follow_id: int) -> None:
        """Wait until the agent says that nothing more comes."""
        await self.until(lambda: self.followed.get(follow_id) and self.followed[follow_id][-1].end)

    async def obeyed(self, session: Session) -> None:
        """Wait until the agent has obeyed all that this session was sent so far."""
        follow_id = next(self._obeyed)
        await session.follow(follow_id, AttemptKey(run_id=follow_id))  # of what is not there, and so ends at once
        await self.end_of_follow(follow_id)

    async def serve(self, request_iterator: object, context: grpc.aio.ServicerContext[AgentMessage, CoordinatorMessage]) -> None:
        first = await context.read()
        assert first.WhichOneof("message") == "hello"
        if self.token is not None and dict(context.invocation_metadata() or ()).get("authorization") != f"Bearer {self.token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this token opens nothing here")
        if self.refusal is not None:
            self.refused.append(first.hello)
            self._notify()
            await context.abort(*self.refusal)
        session = Session(first.hello, context)
        await session.send(
            welcome=Welcome(
                tracker_id=self.tracker_id,
                epoch=self.epoch,
                heartbeat_interval=duration(self.heartbeat_interval),
                end=self.end,
                next_sequence=self.next_sequence,
                protocol_version=2,
                life=LIFE,
                kill_grace=None if self.kill_grace is None else duration(self.kill_grace),
            )
        )
        if self.assigned_at_once:
            await session.assign(*self.assigned_at_once)
        self.sessions.append(session)
        self._notify()
        reading = asyncio.create_task(self._read(session, context))
        dropping = asyncio.create_task(session.dropped.wait())
        try:
            await asyncio.wait((reading, dropping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, dropping):
                task.cancel()
            try:
                await asyncio.gather(reading, dropping, return_exceptions=True)
            finally:  # gRPC cancels this when the agent is gone, and that may be while it is here
                session.ended.set()
                self._notify()

    async def _read(self, session: Session, context: grpc.aio.ServicerContext[AgentMessage, CoordinatorMessage]) -> None:
        while await self.reading.wait() and isinstance(message := await context.read(), AgentMessage):
            match message.WhichOneof("message"):
                case "updates":
                    session.batches.append(message.updates)
                    self._write_down(message.updates)
                    if self.acknowledging:
                        await session.acknowledge(message.updates.sequence)
                case "heartbeat":
                    session.heartbeats += 1
                    session.heartbeat = message.heartbeat
                case "followed":
                    self.followed.setdefault(message.followed.follow_id, []).append(message.followed)
            self._notify()

    def _write_down(self, batch: UpdateBatch) -> None:
        for update in batch.updates:
            told = self.of(update.key)
            match update.WhichOneof("update"):
                case "started":
                    told.started += 1
                case "output":
                    told.written[update.output.stream][update.output.offset] = update.output.data
                case "finished":
                    told.results.append(update.finished)

    def _notify(self) -> None:
        for changed in self._waiting:
            changed.set()


def _serialized(message: CoordinatorMessage | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def key(task_number: int = 0, *, run_id: int = 1, attempt: int = 1, life: int = LIFE) -> AttemptKey:
    return AttemptKey(run_id=run_id, task_number=task_number, attempt=attempt, life=life)
