"""An agent that the test plays itself, so that an attempt ends when and how a case says, and no process is started.

`Hand` has a thread for its session. It tells that each assignment has started, answers a request to end an attempt at once, as
`how_it_ends` says, and otherwise does what `end` is told. After a start of the server it is dialled again with what the hand
still has, as a real agent does. `played.py` uses it.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc

from daggyr.channel import CHANNEL_OPTIONS, token_metadata
from daggyr.v1.agents_pb2 import AgentMessage, FollowedOutput, Heartbeat, Hello, UpdateBatch
from daggyr.v1.agents_pb2_grpc import AgentsStub
from daggyr.v1.task_pb2 import (
    STDOUT,
    AttemptKey,
    AttemptOutcome,
    AttemptResult,
    AttemptStarted,
    AttemptUpdate,
    OutputChunk,
    OutputSummary,
)

Name = tuple[int, str, int]  # the run's id, the task's name when the attempt began, the attempt's number
HEARTBEAT = 5.0  # seconds
CORES = 1_000_000  # so that nothing ever waits for room


class Hand:
    """Life: made, `dial` (again after each start of the server), any calls, `close`."""

    def __init__(self, how_it_ends: Callable[[Name], str]) -> None:
        self._how_it_ends = how_it_ends
        self._lock = threading.Condition()
        self._held: dict[Name, AttemptKey] = {}
        self._names: dict[bytes, Name] = {}  # by the key's bytes
        self._unacknowledged: dict[int, UpdateBatch] = {}
        self._sequence = 0
        self._known = ("", 0)  # tracker and epoch of the last welcome
        self._identity = (secrets.token_hex(8), secrets.token_hex(8), secrets.token_bytes(32))
        self._outgoing: queue.Queue[AgentMessage | None] = queue.Queue()
        self._channel: grpc.Channel | None = None
        self._thread: threading.Thread | None = None
        self.cancelled: dict[Name, str] = {}  # attempts whose end was asked for, and how each ended

    # -- what a case does ---------------------------------------------------------------------------------------------

    def held(self) -> set[Name]:
        """The attempts that were assigned and have not ended."""
        with self._lock:
            return set(self._held)

    def end(self, name: Name, outcome: str, printed: bytes = b"") -> None:
        """An attempt ends."""
        with self._lock:
            self._finish(name, outcome, printed)

    def is_acknowledged(self) -> bool:
        with self._lock:
            return not self._unacknowledged

    # -- the session ----------------------------------------------------------------------------------------------------

    def dial(self, address: str, token: str) -> None:
        self.hang_up()
        self._outgoing = queue.Queue()
        self._channel = grpc.insecure_channel(address, options=list(CHANNEL_OPTIONS))
        agent_id, incarnation, key = self._identity
        with self._lock:
            first = min(self._unacknowledged, default=self._sequence + 1)
            hello = Hello(
                protocol_version=1,
                agent_id=agent_id,
                incarnation=incarnation,
                name="hand",
                pool="hand",
                resources={"cores": CORES},
                tracker_id=self._known[0],
                epoch=self._known[1],
                held=self._held.values(),
                first_unacknowledged=first,
                agent_key=key,
                version="model",
            )
        call = AgentsStub(self._channel).Session(self._messages(hello), metadata=token_metadata(token))
        self._thread = threading.Thread(target=self._listen, args=(call,))
        self._thread.start()

    def hang_up(self) -> None:
        self._outgoing.put(None)
        if self._channel is not None:
            self._channel.close()
        if self._thread is not None:
            self._thread.join()
        self._channel = self._thread = None

    def _messages(self, hello: Hello) -> Iterator[AgentMessage]:
        outgoing = self._outgoing
        yield AgentMessage(hello=hello)
        while True:
            try:
                message = outgoing.get(timeout=HEARTBEAT)
            except queue.Empty:
                message = AgentMessage(heartbeat=Heartbeat())
            if message is None:
                return
            yield message

    def _listen(self, call: Any) -> None:
        with contextlib.suppress(grpc.RpcError, ValueError):
            for message in call:
                kind = message.WhichOneof("message")
                with self._lock:
                    getattr(self, f"_{kind}", lambda _: None)(getattr(message, kind))

    def _welcome(self, welcome: Any) -> None:
        self._known = (welcome.tracker_id, welcome.epoch)
        for key in welcome.end:
            name = self._names.get(key.SerializeToString(deterministic=True))
            if name is not None:
                self._held.pop(name, None)
        for sequence in sorted(self._unacknowledged):
            if sequence >= welcome.next_sequence:
                self._outgoing.put(AgentMessage(updates=self._unacknowledged[sequence]))
            else:
                del self._unacknowledged[sequence]
        if self._held:
            self._tell(*(AttemptUpdate(key=key, started=_now()) for key in self._held.values()))

    def _assign(self, batch: Any) -> None:
        started = []
        for assignment in batch.assignments:
            name = (assignment.key.run_id, assignment.task_id, assignment.key.attempt)
            self._names[assignment.key.SerializeToString(deterministic=True)] = name
            self._held[name] = assignment.key
            started.append(AttemptUpdate(key=assignment.key, started=_now()))
        self._tell(*started)

    def _cancel(self, cancel: Any) -> None:
        for key in cancel.keys:
            name = self._names.get(key.SerializeToString(deterministic=True))
            if name in self._held:
                outcome = self._how_it_ends(name)
                self.cancelled[name] = outcome
                self._finish(name, outcome, b"")

    def _follow(self, follow: Any) -> None:
        if not follow.stop:
            self._outgoing.put(AgentMessage(followed=FollowedOutput(follow_id=follow.follow_id, end=True)))

    def _acknowledge(self, acknowledge: Any) -> None:
        for sequence in [sequence for sequence in self._unacknowledged if sequence <= acknowledge.sequence]:
            del self._unacknowledged[sequence]

    def _finish(self, name: Name, outcome: str, printed: bytes) -> None:
        key = self._held.pop(name)
        result = AttemptResult(outcome=AttemptOutcome.Value(outcome), stop_time=_now().start_time)
        if outcome in ("SUCCEEDED", "FAILED"):
            result.exit_code = int(outcome == "FAILED")
        updates = []
        if printed:
            updates.append(AttemptUpdate(key=key, output=OutputChunk(stream=STDOUT, offset=0, data=printed)))
        result.stdout.CopyFrom(OutputSummary(size_bytes=len(printed)))
        self._tell(*updates, AttemptUpdate(key=key, finished=result))

    def _tell(self, *updates: AttemptUpdate) -> None:
        self._sequence += 1
        batch = UpdateBatch(sequence=self._sequence, updates=updates)
        self._unacknowledged[self._sequence] = batch
        self._outgoing.put(AgentMessage(updates=batch))

    def close(self) -> None:
        self.hang_up()


def document(tasks: Mapping[str, Any]) -> bytes:
    """What a generator prints."""
    return json.dumps(tasks).encode()


def _now() -> AttemptStarted:
    started = AttemptStarted()
    started.start_time.FromNanoseconds(time.time_ns())
    return started
