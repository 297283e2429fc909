"""A server answers from its first moment, whatever its tracker holds: tests of what it says and does while runs come back.

Each test has a coordinator in its own process. Its tracker gives a run back only when the test lets it, so that nothing depends
on how long that takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.waiting import DEADLINE

from daggyr.client import Client, ServerError
from daggyr.v1 import agents_pb2_grpc
from daggyr.v1.agents_pb2 import AgentMessage, Hello
from daggyr.v1.run_pb2 import RunSummary, State
from daggyr_server import coordinator as wiring
from daggyr_server.config import load
from daggyr_server.core.stored import StoredRun
from daggyr_server.driver import restoring
from daggyr_server.executors.agents import servicer
from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

POOLS = '[server]\nlisten = "unix:{folder}/server.sock"\ntracker = "sqlite:{folder}/state.db"\n[pools.farm]\nexecutor = "agent"\n'
RUNS = "daggyr.v1.Runs"
AGENTS = "daggyr.v1.Agents"


class Slow(SqliteTracker):
    """Gives back no run that has not ended before `gate` is set; before that, it fails as often as `failures` says."""

    gate: asyncio.Event
    asked: asyncio.Event
    failures = 0

    async def load(self, run_id: int) -> StoredRun | None:
        if run_id in await self.unfinished():
            type(self).asked.set()
            if type(self).failures:
                type(self).failures -= 1
                raise TrackerError("the disk is on fire")
            await type(self).gate.wait()
        return await super().load(run_id)


class Server:
    """A coordinator that serves, and a client of it."""

    def __init__(self, address: str, client: Client) -> None:
        self.client = client
        self.address = address

    async def submit(self, **tasks: Any) -> int:
        """Submit a run of tasks, each of which is a command unless it says otherwise."""
        given = {name: {"details": {"command": ["true"]}, **fields} for name, fields in tasks.items()}
        return await self.client.submit_document(io.BytesIO(msgspec.json.encode({"tasks": given})))

    async def health(self, service: str) -> str:
        """What the health check says of a service."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    async def until_healthy(self) -> None:
        """Return once both services serve."""
        async with asyncio.timeout(DEADLINE):
            while [await self.health(name) for name in (RUNS, AGENTS)] != ["SERVING"] * 2:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Server]:
    (folder / "server.toml").write_text(POOLS.format(folder=folder))
    async with (
        wiring.coordinator(load(folder / "server.toml")) as running,
        Client(running.address) as client,
    ):
        yield Server(running.address, client)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """The folder of a coordinator that has ended: runs 1 and 3 had not ended, run 2 had."""
    await asyncio.to_thread(tmp_path.chmod, 0o700)
    async with served(tmp_path) as server:
        for _ in range(3):
            await server.submit(a={}, b={})
        await server.client.kill(2)
    return tmp_path


@pytest.fixture
async def slow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """The next coordinator, whose tracker gives back no run so far."""
    Slow.gate, Slow.asked, Slow.failures = asyncio.Event(), asyncio.Event(), 0
    monkeypatch.setattr(wiring, "make_tracker", Slow)
    async with served(folder) as server:
        yield server


async def test_what_is_being_restored_is_said(slow: Server) -> None:
    """A list, a run and the health check tell it; the server as a whole serves, so that nobody ends it or cuts it off."""
    for summary in [await slow.client.run(1), *[run async for page in slow.client.runs() for run in page if run.run_id != 2]]:
        assert summary.state == State.STATE_QUEUED
        assert list(summary.notes) == ["it is being restored, because the server has just started: 0 of 2 runs are back"]
    assert [await slow.health(name) for name in ("", RUNS, AGENTS)] == ["SERVING", "NOT_SERVING", "NOT_SERVING"]
    Slow.gate.set()
    await slow.until_healthy()
    assert "restored" not in str((await slow.client.run(1)).notes)


async def test_ended_runs_can_be_read_and_new_ones_taken_meanwhile(slow: Server) -> None:
    assert [task.task_id for task in await slow.client.first_tasks(2, 10)] == ["a", "b"]
    run_id = await slow.submit(c={})
    assert [task.task_id for task in await slow.client.first_tasks(run_id, 10)] == ["c"]
    assert (await slow.client.kill(run_id)).state == State.STATE_KILLED
    Slow.gate.set()
    await slow.until_healthy()
    assert [(await slow.client.run(number)).state for number in (1, 2, 3, run_id)] == [
        *(State.STATE_QUEUED, State.STATE_KILLED, State.STATE_QUEUED, State.STATE_KILLED)
    ]


async def test_what_needs_a_run_waits_for_it(slow: Server) -> None:
    """Nothing is told as gone because it is not back so far, and what is asked of a run is done once it is."""
    asked: list[asyncio.Task[RunSummary]] = [asyncio.create_task(slow.client.kill(number)) for number in (1, 3)]
    looking = asyncio.create_task(slow.client.first_tasks(3, 10))
    await Slow.asked.wait()
    assert (await slow.client.run(3)).state == State.STATE_QUEUED
    assert not [task for task in (*asked, looking) if task.done()]
    Slow.gate.set()
    assert [task.task_id for task in await looking] == ["a", "b"]
    assert [run.state for run in await asyncio.gather(*asked)] == [State.STATE_KILLED] * 2


async def test_who_would_wait_too_long_is_told_so(slow: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "PATIENCE", 0.0)
    with pytest.raises(ServerError, match=r"ask for run 3 again in a moment: .*: 0 of 2 runs are back") as told:
        await slow.client.first_tasks(3, 10)
    assert told.value.code is grpc.StatusCode.UNAVAILABLE


async def test_agents_keep_what_they_have_until_all_is_known(slow: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent is welcomed only by a server that knows its attempts; until then it is told to try again."""
    monkeypatch.setattr(servicer, "READY_SECONDS", 0.0)
    hello = Hello(protocol_version=1, agent_id="agent-1", incarnation="i", name="one", pool="farm", resources={"cores": 1})

    async def session() -> AsyncIterator[AgentMessage]:
        yield AgentMessage(hello=hello)
        await asyncio.Event().wait()

    async with grpc.aio.insecure_channel(slow.address) as channel:
        stub: Any = agents_pb2_grpc.AgentsStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="still restores its runs") as told:
            await stub.Session(session()).read()
        assert told.value.code() is grpc.StatusCode.UNAVAILABLE
        Slow.gate.set()
        await slow.until_healthy()
        assert (await stub.Session(session()).read()).HasField("welcome")


async def test_a_tracker_that_cannot_be_read_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Slow.gate, Slow.asked, Slow.failures = asyncio.Event(), asyncio.Event(), 2
    Slow.gate.set()
    monkeypatch.setattr(wiring, "make_tracker", Slow)
    async with served(folder) as server:
        await server.until_healthy()
        assert Slow.failures == 0
        assert [task.task_id for task in await server.client.first_tasks(3, 10)] == ["a", "b"]
        assert not [note for note in (await server.client.run(3)).notes if "on fire" in note]
