"""The local executor: an agent of the coordinator's own, as a child process on a private socket.

Forking lives in the agent only; as a process of its own it uses a second core, and a crash of it is a lost agent and no more.
It and all its processes die with the coordinator: it holds the other end of a pipe and ends everything when that closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import grpc
import msgspec
import psutil

from daggyr.channel import CHANNEL_OPTIONS
from daggyr.v1.agents_pb2_grpc import add_AgentsServicer_to_server
from daggyr_server.executors.agent import AgentExecutor
from daggyr_server.executors.agent_session import AgentSessions
from daggyr_server.executors.base import ExecutorError, Reports, Surroundings

log = logging.getLogger(__name__)

MAX_CRASHES = 5  # in a row, without having joined in between
END_SECONDS = 10.0  # for the child to end what it runs


class LocalSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`workers`: how many cores tasks may use at once; the configuration fills it in where it is not given."""

    workers: Annotated[int, msgspec.Meta(ge=1, le=65_536)]


class LocalExecutor(AgentExecutor):
    """One pool on this host."""

    Settings = LocalSettings

    def __init__(self, pool: str, settings: Any, reports: Reports, surroundings: Surroundings) -> None:
        super().__init__(pool, settings, reports, surroundings)
        memory_mb = psutil.virtual_memory().total // (1024 * 1024)
        self._resources = {"cores": settings.workers, "memory_mb": memory_mb}
        self._folder: Path | None = None
        self._server: grpc.aio.Server | None = None
        self._child: asyncio.Task[None] | None = None
        self._lifeline: int | None = None

    def largest(self) -> Mapping[str, int]:
        return self._resources

    async def open(self) -> None:
        await super().open()
        self._folder = Path(tempfile.mkdtemp(prefix="daggyr-local-"))
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS)
        add_AgentsServicer_to_server(AgentSessions([self]), self._server)
        self._server.add_insecure_port(f"unix:{self._folder}/agent.sock")
        await self._server.start()
        self._child = asyncio.create_task(self._keep_running(self._folder), name=f"local agent of {self.pool}")

    async def _keep_running(self, folder: Path) -> None:
        crashes = 0
        while crashes < MAX_CRASHES:
            inherited, self._lifeline = os.pipe()
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command(folder, inherited), stdin=asyncio.subprocess.DEVNULL, pass_fds=(inherited,)
                )
            except OSError as error:
                raise ExecutorError(f"cannot start the local agent: {error}") from error
            finally:
                os.close(inherited)
            joined = False
            try:
                code = await process.wait()
                joined = bool(self.agents)
            finally:
                self._cut()
                if process.returncode is None:
                    await _end(process)
            for agent_id in list(self.agents):
                self.moved(agent_id)
            crashes = 1 if joined else crashes + 1
            log.error("the local agent of pool %s ended with %d; it is started again", self.pool, code)
        log.critical("the local agent of pool %s does not start: nothing runs in this pool", self.pool)

    def _command(self, folder: Path, lifeline: int) -> list[str]:
        command = [sys.executable, "-m", "daggyr_agent", "--coordinator", f"unix:{folder}/agent.sock"]
        command += ["--name", f"local-{self.pool}", "--pool", self.pool, "--state-dir", str(folder / "agent")]
        for name, units in self._resources.items():
            command += ["--resource", f"{name}={units}"]
        return [*command, "--lifeline", str(lifeline), "--log-level", self.surroundings.log_level]

    def _cut(self) -> None:
        """Let the child, and all it runs, die."""
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            os.close(lifeline)

    async def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.cancel()
            await asyncio.gather(child, return_exceptions=True)
        await super().close()
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0)
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Wait for a child whose lifeline is cut; kill it if it does not end."""
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
