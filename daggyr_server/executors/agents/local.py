"""The local executor: an agent of the coordinator's own, as a child process on a private socket.

The driver calls it as any executor. Only agents start tasks, so that this is written once; as a process of its own the agent
uses a second core, and its crash is a lost agent and no more. It and all its processes end with the coordinator: it holds one
end of a pipe, and ends everything when the other end closes. If the agent is killed, the next one, which has the same state
folder, first ends what was left running; if there will be none, one is started for that alone. Somebody who kills both at once
leaves processes behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import grpc
import msgspec

from daggyr.backoff import Backoff
from daggyr.channel import CHANNEL_OPTIONS
from daggyr.host_resources import usable_memory_mb
from daggyr.private_folder import PrivateFolder, abandoned
from daggyr.v1.agents_pb2_grpc import add_AgentsServicer_to_server
from daggyr.v1.task_pb2 import LOST, AttemptKey, Placement
from daggyr_server.descriptors import as_given
from daggyr_server.executors.agents.executor import AgentExecutor
from daggyr_server.executors.agents.servicer import AgentSessions
from daggyr_server.executors.base import ExecutorError, Reports
from daggyr_server.executors.context import ExecutorContext, check_patterns

log = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.1  # seconds before a child that ended is started again; it doubles while no child joins
LONGEST_PAUSE = 30.0
END_SECONDS = 9.0  # for the child to end what it runs, because a coordinator that is stopped is gone within 10 s
_NAME = "local"  # of the child, and of the pool that it joins; on its socket there is no other
_PREFIX = "daggyr-local-"
_MOST_SWEPT = 8  # folders of killed coordinators that are cleared at each start


class LocalSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a pool with this executor may set.

    `workers` is how many cores tasks may use at once; the configuration fills it in if it is not given. `pass_environment` names
    variables of the coordinator that tasks get beside the usual ones (daggyr.environment).
    """

    workers: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    pass_environment: list[str] = []

    def __post_init__(self) -> None:
        check_patterns(self.pass_environment)


class LocalExecutor(AgentExecutor):
    """One pool on this host."""

    Settings = LocalSettings
    on_listener = False

    def __init__(self, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> None:
        super().__init__(pool, settings, reports, context)
        self._resources = {"cores": settings.workers}
        memory = usable_memory_mb()
        if memory is not None:
            self._resources["memory_mb"] = memory
        self._private: PrivateFolder | None = None
        self._folder: Path | None = None
        self._server: grpc.aio.Server | None = None
        self._child: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._orderly = True  # whether the last child ended in order, so that nothing of it is left
        self._has_joined = False  # whether any child ever did; before, none was given anything to run

    @property
    def joined_as(self) -> str:
        return _NAME  # a pool's name may have spaces and slashes, an agent's pool may not

    def largest(self) -> Mapping[str, int]:
        return self._resources

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        for key, placement in placed:
            self._tell_end(placement.host, [key], LOST, "it ran below a coordinator that has ended, and ended with it")

    async def open(self) -> None:
        await super().open()
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS)
        add_AgentsServicer_to_server(AgentSessions([self]), self._server)
        try:
            self._private = PrivateFolder(_PREFIX)
            self._folder = self._private.path
            self._server.add_insecure_port(f"unix:{self._folder}/agent.sock")
        except (OSError, RuntimeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ExecutorError(f"pool {self.pool}: cannot make a socket for its agent: {why}") from error
        await self._server.start()
        self._child = asyncio.create_task(self._keep_running(self._folder), name=f"local agent of {self.pool}")
        self._sweeping = asyncio.create_task(self._sweep(), name=f"what earlier pools like {self.pool} left")

    async def _sweep(self) -> None:
        """End what local pools of coordinators that were killed left running, and remove their folders."""
        for folder in await asyncio.to_thread(lambda: list(islice(abandoned(_PREFIX), _MOST_SWEPT))):
            # If the folder's agent is still there, it ends everything and holds the lock; then the agent started here gives up.
            if not (folder / "agent").exists() or await self._end_leftovers(folder) == 0:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _keep_running(self, folder: Path) -> None:
        backoff = Backoff(SHORTEST_PAUSE, LONGEST_PAUSE)
        while True:
            try:
                ended = await self._run_child(folder)
            except OSError as error:
                ended = f"cannot be started: {error.strerror}"
            joined = bool(self.agents)
            self._has_joined |= joined
            for agent_id in list(self.agents):
                self.moved(agent_id)
            if joined:
                backoff.reset()
            pause = backoff.next()
            log.error("the local agent of pool %s %s; it is started again in %g s", self.pool, ended, pause)
            await asyncio.sleep(pause)

    async def _run_child(self, folder: Path) -> str:
        """Start the agent, wait for its end, and return how it ended. If this is cancelled, so is the agent. Raises OSError."""
        ours, theirs = os.pipe()
        with os.fdopen(theirs, "wb", buffering=0) as lifeline:
            process = await self._start_child(folder, ours)
            try:
                code = await process.wait()
            finally:
                lifeline.close()  # the child ends with it, and all that the child runs
                idle = not self._has_joined and not self.agents
                if process.returncode is None:
                    if idle:  # It may still be loading its modules, which takes seconds on a loaded host.
                        process.kill()
                        await process.wait()
                    else:
                        await _end(process)
                self._orderly = idle or process.returncode == 0
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    async def _end_leftovers(self, folder: Path) -> int | None:
        """Start an agent whose lifeline is cut already: it ends what an earlier one left running, and leaves.

        Returns its exit code, or None if it cannot be started.
        """
        ours, theirs = os.pipe()
        os.close(theirs)
        try:
            process = await self._start_child(folder, ours)
            await _end(process)
            return process.returncode
        except OSError as error:
            log.error("what the local agent of pool %s left running cannot be ended: %s", self.pool, error.strerror)
            return None

    async def _start_child(self, folder: Path, lifeline: int) -> asyncio.subprocess.Process:
        """Start an agent that ends when the other end of `lifeline`, which is closed here, does. Raises OSError."""
        try:
            return await asyncio.create_subprocess_exec(
                *as_given(self._command(folder, lifeline)), stdin=asyncio.subprocess.DEVNULL, pass_fds=(lifeline,)
            )
        finally:
            os.close(lifeline)

    def _command(self, folder: Path, lifeline: int) -> list[str]:
        # -P: a file in the folder where the coordinator was started must not stand in for a module.
        command = [sys.executable, "-P", "-m", "daggyr_agent", "--coordinator", f"unix:{folder}/agent.sock"]
        command += ["--name", _NAME, "--pool", _NAME, "--state-dir", str(folder / "agent")]
        for name, units in self._resources.items():
            command += ["--resource", f"{name}={units}"]
        for pattern in (*self.settings.pass_environment, *self.context.pass_environment):
            command.append(f"--pass-environment={pattern}")
        return [*command, "--lifeline", str(lifeline), "--log-level", self.context.log_level]

    async def close(self) -> None:
        child, self._child = self._child, None
        sweeping, self._sweeping = self._sweeping, None
        if child is not None:
            child.cancel()
            await asyncio.gather(child, return_exceptions=True)
        await super().close()
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0)
        if sweeping is not None:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
        private, self._private, self._folder = self._private, None, None
        if private is not None:
            if not self._orderly:
                await self._end_leftovers(private.path)
            await asyncio.to_thread(private.remove)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Wait for a child whose lifeline is cut. Kill it if it does not end, or if this is cancelled."""
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError) as reason:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(reason, asyncio.CancelledError):
            raise
