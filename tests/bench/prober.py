"""A process that asks small things of a server all the time, and is the agent of a run: it tells how long it had to wait.

waits.py starts the one `Prober`. It is a process of its own, so that no other client is in its way.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import deque
from multiprocessing.connection import Connection
from typing import NamedTuple

from daggyr.channel import open_channel
from daggyr.v1.agents_pb2 import AgentMessage, Heartbeat, Hello, UpdateBatch
from daggyr.v1.agents_pb2_grpc import AgentsStub
from daggyr.v1.run_pb2 import STATE_COMPLETED
from daggyr.v1.runs_pb2 import GetTaskRequest, ListPoolsRequest, MarkTasksRequest
from daggyr.v1.runs_pb2_grpc import RunsStub
from daggyr.v1.task_pb2 import SUCCEEDED, AttemptKey, AttemptResult, AttemptStarted, AttemptUpdate

SMALL = 1  # the id of the run that the prober asks about, unless told otherwise; its task `t` is COMPLETED
POOL = "ticks"  # where the prober is an agent
PAUSE = 0.003  # seconds between two rounds


class Longest(NamedTuple):
    """Seconds of the longest wait: for an answer to what only reads, to what may change something, and to an attempt's end."""

    read: float = 0.0
    change: float = 0.0
    report: float = 0.0


class Prober:
    """See the head of this file."""

    def __init__(self, address: str, run_id: int = SMALL) -> None:
        self._pipe, other = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_probe, args=(address, run_id, other), daemon=True)
        self._process.start()
        self.longest()

    def longest(self) -> Longest:
        """Of all waits since the last call."""
        self._pipe.send("tell")
        found: Longest = self._pipe.recv()
        return found

    def end(self) -> None:
        self._pipe.send("end")
        self._process.join()


class _Waits:
    def __init__(self) -> None:
        self.longest = Longest()

    def note(self, **seconds: float) -> None:
        self.longest = self.longest._replace(**{kind: max(getattr(self.longest, kind), one) for kind, one in seconds.items()})


def _probe(address: str, run_id: int, pipe: Connection) -> None:
    asyncio.run(_work(address, run_id, pipe))


async def _work(address: str, run_id: int, pipe: Connection) -> None:
    waits = _Waits()
    async with open_channel(address) as channel, open_channel(address) as other:
        agent = asyncio.create_task(_report(AgentsStub(other), waits))
        await _ask(RunsStub(channel), run_id, waits, pipe)
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)


async def _ask(stub: RunsStub, run_id: int, waits: _Waits, pipe: Connection) -> None:
    mark = MarkTasksRequest(run_id=run_id, tasks=["t"], state=STATE_COMPLETED)
    while True:
        for kind, call in (
            ("read", lambda: stub.ListPools(ListPoolsRequest())),
            ("read", lambda: stub.GetTask(GetTaskRequest(run_id=run_id, task_id="t"))),
            ("change", lambda: stub.MarkTasks(mark)),
        ):
            begun = time.perf_counter()
            await call()  # type: ignore[no-untyped-call]  # grpc.aio has no types for it
            waits.note(**{kind: time.perf_counter() - begun})
        await asyncio.sleep(PAUSE)
        while pipe.poll():
            if pipe.recv() == "end":
                return
            pipe.send(waits.longest)
            waits.longest = Longest()


async def _report(stub: AgentsStub, waits: _Waits) -> None:
    """Be an agent with one core, which tells the end of an attempt once that of the one before is acknowledged."""
    call = stub.Session()
    hello = Hello(protocol_version=1, highest_protocol_version=2, agent_id=POOL, incarnation="1", name=POOL, pool=POOL)
    hello.resources["cores"], hello.first_unacknowledged, hello.version = 1, 1, "0"
    await call.write(AgentMessage(hello=hello))
    given: deque[AttemptKey] = deque()
    acknowledged, sequence, told = 0, 0, 0.0
    while True:
        message = await call.read()
        kind = message.WhichOneof("message")
        if kind == "assign":
            given += (assignment.key for assignment in message.assign.assignments)
        elif kind == "acknowledge":
            acknowledged = max(acknowledged, message.acknowledge.sequence)
        if acknowledged == sequence:
            if told:
                waits.note(report=time.perf_counter() - told)
            told = 0.0
            if not given:
                continue
            await asyncio.sleep(PAUSE)
            key = given.popleft()
            sequence += 1
            updates = [
                AttemptUpdate(key=key, started=AttemptStarted()),
                AttemptUpdate(key=key, finished=AttemptResult(outcome=SUCCEEDED)),
            ]
            told = time.perf_counter()
            await call.write(AgentMessage(updates=UpdateBatch(sequence=sequence, updates=updates)))
        else:
            await asyncio.sleep(PAUSE)
        await call.write(AgentMessage(heartbeat=Heartbeat()))  # it asks for an acknowledgement
