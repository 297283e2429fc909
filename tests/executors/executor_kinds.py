"""The executors that the conformance suite runs against, each through its real wire, and what each of them can do.

`begin` opens an executor whose host offers CORES cores and whose tasks start in the folder it is given, and closes it in the end.
It may be given the context of a coordinator. A new executor adds one entry to KINDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from executor_harness import CollectedReports, Harness, executor_context
from support import preloaded, slurm_cluster
from support.readme_examples import ROOT
from support.sshd_server import SshdServer, sshd_server
from support.waiting import DEADLINE

from daggyr.v1.agents_pb2_grpc import add_AgentsServicer_to_server
from daggyr_server.api.listening.listener import Listener
from daggyr_server.executors.agents.executor import AgentExecutor
from daggyr_server.executors.agents.servicer import AgentSessions
from daggyr_server.executors.base import Executor
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.loader import find_executor
from daggyr_server.executors.ssh.settings import TargetSettings

CORES = 2
EXAMPLE = ROOT / "examples/executor"
_trackers = itertools.count(1)
# The daemon's environment. No task gets DAEMONS or the daemon's own DAGGYR_*.
DAEMONS = {"UNNAMED": "a secret of the daemon's"}
ENVIRONMENT = {"INHERITED": "from the daemon", "DAGGYR_SERVER": "nobody's", "DAGGYR_TASK_ID": "nobody's"}


class Begin(Protocol):
    def __call__(self, home: Path, *, context: ExecutorContext | None = None) -> AbstractAsyncContextManager[Harness]: ...


class BeginOn(Protocol):
    def __call__(self, home: Path, kept: Path) -> AbstractAsyncContextManager[Harness]: ...


@dataclass(frozen=True, kw_only=True)
class ExecutorKind:
    """One executor and what it can do."""

    name: str
    begin: Begin
    begin_on: BeginOn | None = None  # as `begin`; what tasks write is kept below the folder `kept`
    runs_processes: bool  # tasks are executed, and have output, signals, folders and files
    tells_usage: bool = False  # CPU seconds and peak memory are in the results
    finds_daemons: Callable[[], bool] = lambda: True  # also daemons in sessions of their own that have another environment
    many: int = 300  # so many attempts start and end within some seconds


@contextlib.asynccontextmanager
async def opened(
    kind: type[Executor], context: ExecutorContext | None = None, *, pool: str = "pool", **settings: Any
) -> AsyncIterator[Harness]:
    """An executor, opened here and closed in the end, behind a harness."""
    reports = CollectedReports()
    executor = kind(pool, kind.Settings(**settings), reports, context or executor_context())
    try:
        await executor.open()
        yield Harness(executor, reports)
    finally:
        await executor.close()


@contextlib.asynccontextmanager
async def serving(socket: Path, *executors: AgentExecutor) -> AsyncIterator[None]:
    """The listener of a coordinator with these agent pools."""
    listener = Listener(f"unix:{socket}", tokens=None)
    add_AgentsServicer_to_server(AgentSessions(executors), listener.server)
    await listener.start()
    try:
        yield
    finally:
        await listener.stop(0)


class AgentProcess:
    """A real `daggyr-agent`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    async def ended(self) -> int:
        """Return the agent's exit code, once it has ended."""
        async with asyncio.timeout(DEADLINE):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def agent(
    socket: Path,
    state: Path,
    home: Path,
    *,
    name: str = "one",
    pool: str = "pool",
    resources: Mapping[str, int] | None = None,
) -> AsyncIterator[AgentProcess]:
    """A real agent that starts in `home` and dials a socket. It gets SIGTERM in the end if it still runs."""
    command = [sys.executable, "-P", "-m", "daggyr_agent", "--coordinator", f"unix:{socket}", "--state-dir", str(state)]
    command += ["--name", name, "--pool", pool, "--log-level", "warning", "--pass-environment", "INHERITED"]
    for resource, units in (resources or {"cores": CORES, "memory_mb": 1_000}).items():
        command += ["--resource", f"{resource}={units}"]
    process = await preloaded.create_subprocess_exec(*command, cwd=home, env={**os.environ, **DAEMONS, **ENVIRONMENT})
    try:
        yield AgentProcess(process)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(DEADLINE):
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


@contextlib.asynccontextmanager
async def _local(home: Path, *, context: ExecutorContext | None = None, kept: Path | None = None) -> AsyncIterator[Harness]:
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(home):
        for name, value in {**DAEMONS, **ENVIRONMENT}.items():
            patch.setenv(name, value)
        if kept is not None:
            patch.setattr(tempfile, "tempdir", str(kept))
        async with contextlib.AsyncExitStack() as stack:
            harness = await stack.enter_async_context(opened(find_executor("local"), context, workers=CORES))
            await harness.host()
            patch.undo()
            closing = stack.pop_all()
    async with closing:
        yield harness


@contextlib.asynccontextmanager
async def _agent(home: Path, *, context: ExecutorContext | None = None, kept: Path | None = None) -> AsyncIterator[Harness]:
    folder = home.parent
    (folder / "wire").mkdir(mode=0o700)
    socket = folder / "wire/socket"
    async with opened(find_executor("agent"), context) as harness:
        assert isinstance(harness.executor, AgentExecutor)
        async with serving(socket, harness.executor), agent(socket, (kept or folder) / "state", home):
            await harness.host()
            yield harness


def ssh_settings(server: SshdServer, *targets: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the settings of a pool of these targets, or of a pool whose only target is the server."""
    given = {"targets": targets or [server.target()], "known_hosts": server.known_hosts, "ssh_config": server.ssh_config}
    checked = {**given, **changes}
    checked["targets"] = [TargetSettings(**target) for target in checked["targets"]]
    return checked


@contextlib.asynccontextmanager
async def _ssh(home: Path, *, context: ExecutorContext | None = None, kept: Path | None = None) -> AsyncIterator[Harness]:
    with sshd_server({**ENVIRONMENT, "HOME": str(home)}) as server:
        more = {"directory": str(kept)} if kept is not None else {}
        async with opened(find_executor("ssh"), context, **ssh_settings(server, **more)) as harness:
            await harness.host()
            yield harness


@contextlib.asynccontextmanager
async def _noop(home: Path, *, context: ExecutorContext | None = None) -> AsyncIterator[Harness]:
    async with opened(find_executor("noop"), context, workers=CORES) as harness:
        yield harness


def example() -> type[Executor]:
    """Return the class of examples/executor from the folder itself; test_executor_example.py installs it as a reader would."""
    if str(EXAMPLE) not in sys.path:
        sys.path.append(str(EXAMPLE))
    found = importlib.import_module("daggyr_prefix.executor").PrefixExecutor
    assert issubclass(found, Executor)
    return found


@contextlib.asynccontextmanager
async def prefix(home: Path, *, context: ExecutorContext | None = None, **settings: Any) -> AsyncIterator[Harness]:
    """A pool of the example's executor; its tasks start in `home`."""
    offered = {"cores": CORES, "memory_mb": 1_000}
    given = {"command": ["nice", "-n", "1"], "directory": home.parent / "attempts", "resources": offered, **settings}
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(home):
        for name, value in {**DAEMONS, **ENVIRONMENT}.items():
            patch.setenv(name, value)
        async with contextlib.AsyncExitStack() as stack:
            harness = await stack.enter_async_context(opened(example(), context, **given))
            patch.undo()
            closing = stack.pop_all()
    async with closing:
        yield harness


@contextlib.asynccontextmanager
async def slurm(home: Path, *, context: ExecutorContext | None = None, **settings: Any) -> AsyncIterator[Harness]:
    """A pool on the tests' own cluster whose tasks start in `home`; `settings` go over those that the tests use.

    The executor waits for a result that is on its way, however long that takes. A test in which no result can come sets another
    `settle_seconds`.
    """
    cluster = slurm_cluster.running()
    # Jobs carry the mark of their tracker and pool, and a pool cancels those with its mark that it does not know. So no two
    # executors that live at the same time may have one tracker and one pool, or each cancels what the other was given.
    context = context or executor_context(tracker_id=f"tracker-{next(_trackers)}")
    offered = {"cores": slurm_cluster.CORES, "memory_mb": slurm_cluster.MEMORY_MB}
    given = {"directory": home, "resources": offered, "poll_interval": 0.1, "settle_seconds": 2 * DEADLINE, **settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**DAEMONS, **ENVIRONMENT, "SLURM_CONF": str(cluster.configuration)}.items():
            patch.setenv(name, value)
        async with contextlib.AsyncExitStack() as stack:
            harness = await stack.enter_async_context(opened(find_executor("slurm"), context, **given))
            patch.undo()
            closing = stack.pop_all()
    async with closing:
        await harness.host()
        yield harness


def _local_on(home: Path, kept: Path) -> AbstractAsyncContextManager[Harness]:
    return _local(home, kept=kept)


def _agent_on(home: Path, kept: Path) -> AbstractAsyncContextManager[Harness]:
    return _agent(home, kept=kept)


def _ssh_on(home: Path, kept: Path) -> AbstractAsyncContextManager[Harness]:
    return _ssh(home, kept=kept)


def _slurm_on(home: Path, kept: Path) -> AbstractAsyncContextManager[Harness]:
    """A pool's directory is also where its tasks start."""
    return slurm(kept, settle_seconds=1.0)


def _slurm_tracks() -> bool:
    """Slurm itself ends daemons where it has control groups."""
    return slurm_cluster.running().has_cgroups


KINDS = (
    ExecutorKind(name="local", begin=_local, begin_on=_local_on, runs_processes=True, tells_usage=True),
    ExecutorKind(name="agent", begin=_agent, begin_on=_agent_on, runs_processes=True, tells_usage=True),
    ExecutorKind(name="ssh", begin=_ssh, begin_on=_ssh_on, runs_processes=True),
    ExecutorKind(name="slurm", begin=slurm, begin_on=_slurm_on, runs_processes=True, finds_daemons=_slurm_tracks, many=12),
    ExecutorKind(name="noop", begin=_noop, runs_processes=False),
    ExecutorKind(name="prefix", begin=prefix, runs_processes=True, tells_usage=True, many=30),  # examples/executor
)
RUNNING_KINDS = tuple(kind for kind in KINDS if kind.runs_processes)


def grouped(kinds: Iterable[ExecutorKind]) -> list[pytest.ParameterSet]:
    """Each kind as a parameter whose cases stay together on one worker of pytest-xdist, so that they share the kind's executor.

    Slurm's cases stay with all other tests of the cluster.
    """
    groups = {kind: slurm_cluster.GROUP if kind.name == "slurm" else f"executor-{kind.name}" for kind in kinds}
    return [pytest.param(kind, id=kind.name, marks=pytest.mark.xdist_group(group)) for kind, group in groups.items()]
