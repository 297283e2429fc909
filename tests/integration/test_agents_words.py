"""Agents whose words are at the limits of their types: refused or taken, and whatever was taken, every reader goes on to answer.

The fields are found by reflection, so that a field that is added is tried as well.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from support.deployment import PATIENT, Deployment, task
from support.metrics_scrape import address_said, scrape
from support.waiting import DEADLINE
from test_bad_agents import session

from daggyr.channel import PROTOCOL_VERSION
from daggyr.v1.agents_pb2 import AgentMessage, Heartbeat, Hello, UpdateBatch
from daggyr.v1.task_pb2 import FAILED, STDERR, AttemptKey, AttemptStarted, AttemptUpdate, OutputChunk

TASKS = 150
LONG = "x" * (1024 * 1024)
WHOLE = {FieldDescriptor.CPPTYPE_INT32: 2**31, FieldDescriptor.CPPTYPE_ENUM: 2**31, FieldDescriptor.CPPTYPE_INT64: 2**63}
NATURAL = {FieldDescriptor.CPPTYPE_UINT32: 2**32, FieldDescriptor.CPPTYPE_UINT64: 2**64}
REAL = (math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, -1.0, 5e-324)


def limits(field: FieldDescriptor) -> tuple[Any, ...]:
    """Return the ends of a field's type, and the values next to them or to 0."""
    kind = field.cpp_type
    if kind in WHOLE:
        return (-WHOLE[kind], -1, 0, 1, WHOLE[kind] - 1)
    if kind in NATURAL:
        return (0, 1, NATURAL[kind] // 2 - 1, NATURAL[kind] - 1)
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return REAL
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return (True, False)
    assert kind == FieldDescriptor.CPPTYPE_STRING, field.full_name
    if field.type == FieldDescriptor.TYPE_BYTES:
        return (b"", b"\0", LONG.encode())
    return ("", "a\0b\x1b[31m\nc", LONG)


def variants(message: Message) -> Iterator[tuple[str, Message]]:
    """Yield the message with one field, at any depth, at a limit of its type, and what was changed."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and not message.HasField(field.name) and len(field.containing_oneof.fields) > 1:
            continue  # another kind of message
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            for units in limits(entry.fields_by_name["value"]):
                yield f"{field.name}[x]={units}", _with(message, field.name, {**getattr(message, field.name), "x": units})
            for name in limits(entry.fields_by_name["key"]):
                yield f"{field.name}[{name[:9]!r}]", _with(message, field.name, {**getattr(message, field.name), name: 1})
            yield f"{field.name}=many", _with(message, field.name, {"cores": 1, **{f"x{number}": 1 for number in range(50_000)}})
            yield f"{field.name}={{}}", _with(message, field.name, {})
        elif entry is not None and field.is_repeated:
            first = next(iter(getattr(message, field.name)), entry._concrete_class())
            for what, inner in variants(first):
                yield f"{field.name}[].{what}", _with(message, field.name, [inner])
        elif entry is not None:
            for what, inner in variants(getattr(message, field.name)):
                yield f"{field.name}.{what}", _with(message, field.name, inner)
        elif field.is_repeated:
            for value in limits(field):
                yield f"{field.name}=[{str(value)[:9]!r}]", _with(message, field.name, [value])
            yield f"{field.name}=many", _with(message, field.name, ["x"] * 100_000)
        else:
            for value in limits(field):
                yield f"{field.name}={str(value)[:24]!r}", _with(message, field.name, value)


def _with(message: Message, name: str, value: Any) -> Message:
    changed = type(message)()
    changed.CopyFrom(message)
    changed.ClearField(name)
    field = changed.DESCRIPTOR.fields_by_name[name]
    if isinstance(value, Message):
        getattr(changed, name).CopyFrom(value)
    elif isinstance(value, dict):
        getattr(changed, name).update(value)
    elif field.is_repeated:
        getattr(changed, name).extend(value)
    else:
        setattr(changed, name, value)
    return changed


def greeting(name: str, **more: Any) -> Hello:
    given: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "agent_id": f"id of {name}",
        "incarnation": "1",
        "name": name,
        "pool": "farm",
        "resources": {"cores": 1},
        "first_unacknowledged": 1,
        "version": "0",
        "agent_key": bytes(32),
    }
    return Hello(**{**given, **more})


class Speaker:
    """An agent that goes on from session to session, as a real one would, whatever it says."""

    def __init__(self, farm: Deployment) -> None:
        self._farm = farm
        self._sequence = 0
        self._fence: dict[str, Any] = {}
        self.keys: list[AttemptKey] = []  # keys that are held and have not ended
        self._stack = AsyncExitStack()
        self._call: Any = None

    async def begin(self) -> None:
        hello = greeting(
            "raw", resources={"cores": TASKS}, held=self.keys, first_unacknowledged=self._sequence + 1, **self._fence
        )
        self._call = await self._stack.enter_async_context(session(self._farm, AgentMessage(hello=hello)))
        welcome = (await self._read()).welcome
        self._sequence = welcome.next_sequence - 1
        self._fence = {"tracker_id": welcome.tracker_id, "epoch": welcome.epoch}

    async def end(self) -> None:
        await self._stack.aclose()
        self._call = None

    async def assigned(self, count: int) -> None:
        while len(self.keys) < count:
            await self._read()

    async def says(self, message: AgentMessage) -> bool:
        """Say a message; returns whether it is taken. After a refusal, which must be INVALID_ARGUMENT, a new session begins."""
        if self._call is None:
            await self.begin()
        mine = message.HasField("updates")
        try:
            await self._call.write(message)
            await self._call.write(AgentMessage(updates=UpdateBatch(sequence=self._sequence + 1 + mine)))
            told = asyncio.Event()
            beating = asyncio.create_task(self._beat(told))
            try:
                while (await self._read()).acknowledge.sequence != self._sequence + 1 + mine:
                    pass
            finally:
                told.set()  # cancelling a write would end the call
                await asyncio.gather(beating, return_exceptions=True)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            code, details = await self._call.code(), await self._call.details()
            await self.end()
            if (code, details) == (grpc.StatusCode.INTERNAL, "Internal error from Core"):
                # gRPC's own: a write met the end of the call, whose status is lost by that. Again, until it is seen.
                return await self.says(message)
            assert code is grpc.StatusCode.INVALID_ARGUMENT, (code, details)
            assert len(details) < 1_000, details
            return False
        self._sequence += 1 + mine
        return True

    async def _beat(self, told: asyncio.Event) -> None:
        """As an agent does all the time; with each, it is told what is durable by now."""
        while not told.is_set():
            await self._call.write(AgentMessage(heartbeat=Heartbeat()))
            await asyncio.sleep(0.02)

    def updates(self, **update: Any) -> AgentMessage:
        key = self.keys[0]
        return AgentMessage(updates=UpdateBatch(sequence=self._sequence + 1, updates=[AttemptUpdate(key=key, **update)]))

    async def _read(self) -> Any:
        async with asyncio.timeout(DEADLINE):
            message = await self._call.read()
        assert message is not grpc.aio.EOF
        self.keys.extend(assignment.key for assignment in message.assign.assignments)
        return message


def strict(text: str) -> Any:
    """Read JSON as RFC 8259 has it, without NaN and infinities."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


async def test_every_field_of_every_message_at_its_limits(deployment: Deployment) -> None:
    config = f'[server]\nmetrics = "127.0.0.1:0"\n{PATIENT}\n[pools.farm]\nexecutor = "agent"\n'
    server = await asyncio.to_thread(lambda: deployment.start_server(config=config))
    refused, taken = await _hellos(deployment)
    assert len(taken) > 10 and len(refused) > 40
    run_id = await asyncio.to_thread(deployment.submit, {f"t{number:03}": task("true") for number in range(TASKS)})
    speaker = Speaker(deployment)
    await speaker.begin()
    await speaker.assigned(TASKS // 2)
    odd = await _words(speaker)
    await speaker.end()
    # Whatever was taken of all that: who asks is answered.
    async with deployment.client() as client:
        for number in range(TASKS):
            await client.task(run_id, f"t{number:03}")
            await client.explain(run_id, f"t{number:03}")
    names = [f"t{key.task_number:03}" for key in odd[:: max(1, len(odd) // 5)]]
    commands: list[tuple[str, ...]] = [("pools",), ("agents",), ("runs",), ("show", "1"), ("tasks", "1"), ("logs", "1")]
    for command in (*commands, *(("task", "1", name) for name in names)):
        told = await asyncio.to_thread(deployment.daggyr, *command)
        assert told.code == 0, (command, told.err)
        if command[0] != "logs":
            strict((await asyncio.to_thread(deployment.daggyr, *command, "--output", "json")).out)
    for name in names:
        assert await asyncio.to_thread(deployment.why, 1, name)
    assert (await asyncio.to_thread(scrape, address_said(server.said()), deployment.token())).status == 200
    assert "Traceback" not in deployment.logs()


async def _hellos(deployment: Deployment) -> tuple[list[str], list[str]]:
    """Every hello on a session of its own; those that are taken are listed while they are connected."""
    refused, taken = [], []
    async with deployment.client() as client:
        for number, (what, _) in enumerate(variants(greeting("any"))):
            name = f"agent {number}"
            hello = next(changed for other, changed in variants(greeting(name)) if other == what)
            async with session(deployment, AgentMessage(hello=hello)) as call:
                try:
                    async with asyncio.timeout(DEADLINE):
                        await call.read()
                except grpc.aio.AioRpcError as error:
                    refused.append(what)
                    codes = {"INVALID_ARGUMENT"} | ({"NOT_FOUND"} if what.startswith("pool") else set())
                    codes |= {"FAILED_PRECONDITION"} if what.startswith("protocol_version") else set()
                    assert error.code().name in codes, (what, error.code(), error.details())
                    assert len(error.details() or "") < 1_000, what
                else:
                    taken.append(what)
                    await client.pools()
                    await client.agents()
    return refused, taken


async def _words(speaker: Speaker) -> list[AttemptKey]:
    """Everything else that an agent says; returns the attempts of which odd results were taken."""
    now = {"seconds": 1_700_000_000, "nanos": 5}
    heartbeat = AgentMessage(heartbeat=Heartbeat(load_average=1, cpu_percent=1, memory_available_bytes=1))
    followed = AgentMessage(followed={"follow_id": 7, "chunk": {"stream": STDERR, "data": b"x"}})
    for what, message in (*variants(heartbeat), *variants(followed)):
        if "draining" not in what:
            await speaker.says(message)  # type: ignore[arg-type]
    result = {"outcome": FAILED, "exit_code": 1, "start_time": now, "stop_time": now, "cpu_seconds": 1, "max_rss_bytes": 1}
    odd = []
    kinds: tuple[dict[str, Any], ...] = (
        {"started": AttemptStarted(start_time=now)},
        {"output": OutputChunk(stream=STDERR, data=b"x")},
        {"finished": result},
    )
    for update in kinds:
        cases = [what for what, _ in variants(speaker.updates(**update))]
        for case in cases:
            # Made now: the sequence and the key are those that are due.
            message = next(changed for what, changed in variants(speaker.updates(**update)) if what == case)
            key = speaker.keys[0]
            its_own = message.updates.updates[0].key == key  # type: ignore[attr-defined]
            if await speaker.says(message) and "finished" in update and its_own:  # type: ignore[arg-type]
                odd.append(speaker.keys.pop(0))
                assert key == odd[-1]
    assert len(odd) > 20
    return odd
