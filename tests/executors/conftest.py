"""One executor of each kind for the whole suite: `any_executor` of all kinds, `executor` of those that run processes.

Cases of the suite share it, as the runs of a coordinator do, and so must not disturb each other. Those that break something make
their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from executor_harness import GRACE, Harness, executor_context
from executor_kinds import KINDS, RUNNING_KINDS, ExecutorKind
from ssh_pools import Pools
from support import slurm_cluster
from support.sshd_server import SshdServer, sshd_server


def grouped(kinds: Iterable[ExecutorKind]) -> list[pytest.ParameterSet]:
    """Each kind as a parameter whose cases stay together on one worker of pytest-xdist, so that they share the kind's executor.

    Slurm's cases stay with all other tests of the cluster.
    """
    groups = {kind: slurm_cluster.GROUP if kind.name == "slurm" else f"executor-{kind.name}" for kind in kinds}
    return [pytest.param(kind, id=kind.name, marks=pytest.mark.xdist_group(group)) for kind, group in groups.items()]


@pytest.fixture(scope="session", params=grouped(KINDS))
def any_kind(request: pytest.FixtureRequest) -> ExecutorKind:
    found = request.param
    assert isinstance(found, ExecutorKind)
    return found


@pytest.fixture(scope="session", params=grouped(RUNNING_KINDS))
def kind(request: pytest.FixtureRequest) -> ExecutorKind:
    found = request.param
    assert isinstance(found, ExecutorKind)
    return found


@pytest.fixture(scope="session")
def home(kind: ExecutorKind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tasks of `executor` start."""
    return _home(tmp_path_factory)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def any_executor(any_kind: ExecutorKind, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harness]:
    async with any_kind.begin(_home(tmp_path_factory)) as harness:
        yield harness
    assert harness.reports.faults == []


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def executor(kind: ExecutorKind, home: Path) -> AsyncIterator[Harness]:
    async with kind.begin(home) as harness:
        yield harness
    assert harness.reports.faults == []


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def impatient_executor(kind: ExecutorKind, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harness]:
    """One that gives what it ends no time, but GRACE. Its tracker is another, or Slurm's jobs of `executor` were its own."""
    context = executor_context(grace=GRACE, tracker_id="tracker-impatient")
    async with kind.begin(_home(tmp_path_factory), context=context) as harness:
        yield harness
    assert harness.reports.faults == []


def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("executor") / "home"
    home.mkdir()
    return home


@pytest.fixture
def server() -> Iterator[SshdServer]:
    with sshd_server() as server:
        yield server


@pytest.fixture
async def pools(server: SshdServer, tmp_path: Path) -> AsyncIterator[Pools]:
    async with AsyncExitStack() as stack:
        yield Pools(server, tmp_path / "attempts", stack)
