"""`Wire`: two pools of agents behind one listener, for agents that a test plays by hand.

The tests of `Agents.Session` get it by the fixtures `wire` and `bare_wire`, which conftest.py hands on. The listener is real and
has a unix socket in the test's folder. No process is started.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from agent_by_hand import Hand, hand
from executor_harness import Harness, executor_context
from executor_kinds import opened, serving
from support.task_specs import spec

from daggyr_server.executors.agents.executor import AgentExecutor

TASK = spec("/bin/true")


class Wire:
    """Two pools of agents, `pool` and `other`, behind one listener."""

    def __init__(self, socket: Path, stack: AsyncExitStack) -> None:
        self.socket = socket
        self._stack = stack
        self.pool: Harness
        self.other: Harness

    async def open(self, **context: object) -> None:
        """Open the pools and the listener; `context` changes the executors' context."""
        self.pool = await self._stack.enter_async_context(opened(AgentExecutor, executor_context(**context)))
        self.other = await self._stack.enter_async_context(opened(AgentExecutor, executor_context(**context), pool="other"))
        executors = [harness.executor for harness in (self.pool, self.other) if isinstance(harness.executor, AgentExecutor)]
        await self._stack.enter_async_context(serving(self.socket, *executors))

    async def hand(self) -> Hand:
        """A new session that has said nothing yet."""
        return await self._stack.enter_async_context(hand(self.socket))

    async def joined(self, **changes: object) -> Hand:
        """A new session that has been welcomed; `changes` are those of its hello."""
        made = await self.hand()
        await made.joins(**changes)
        return made

    async def state(self, state: int, agent_id: str = "agent-1") -> None:
        """Wait until the host is in this state."""
        hosts = self.pool.reports.hosts
        await self.pool.reports.until(lambda: agent_id in hosts and hosts[agent_id].state == state)


@pytest.fixture
async def bare_wire(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Wire]:
    """A wire that the test has to open. It fails if a log record has a traceback, because no agent's message may cause one."""
    async with AsyncExitStack() as stack:
        (tmp_path / "wire").mkdir(mode=0o700)
        wire = Wire(tmp_path / "wire/socket", stack)
        yield wire
        assert wire.pool.reports.faults == []
    assert [record.getMessage() for record in caplog.records if record.exc_info or record.levelname == "ERROR"] == []


@pytest.fixture
async def wire(bare_wire: Wire) -> Wire:
    """A wire that is open, with the usual context."""
    await bare_wire.open()
    return bare_wire
