"""The fixtures of this folder: `any_executor` is an executor of every kind, `executor` one of each kind that runs processes.

There is one executor of each kind for the whole suite. The cases share it, as the runs of a coordinator do, and so must not
disturb each other. Cases that break something make an executor of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from agent_wire import bare_wire, wire  # noqa: F401
from executor_harness import GRACE, Harness, Told, executor_context
from executor_kinds import KINDS, RUNNING_KINDS, ExecutorKind, grouped
from ssh_pools import Pools
from support.sshd_server import SshdServer, sshd_server

from daggyr.v1.task_pb2 import AttemptKey, TaskSpec


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "given(*specs): what a case of the suite gives to its executor; see the fixture of that name"
    )


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
    """The folder where the tasks of `executor` start."""
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
async def given(request: pytest.FixtureRequest, kind: ExecutorKind, executor: Harness, home: Path) -> dict[str, list[AttemptKey]]:
    """The keys of the attempts of all cases that only look at how their tasks end, by case.

    The attempts are given all together, because on Slurm they then share job arrays. Given one after another, each would cost a
    second of waiting.
    """
    (home / "below").mkdir()
    (home / "plain").touch(0o644)
    cases = {
        item.nodeid: _specs(item)
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.get_closest_marker("given") and item.callspec.params["kind"] is kind
    }
    keys = iter(await executor.give(*[spec for specs in cases.values() for spec in specs]))
    return {case: list(itertools.islice(keys, len(specs))) for case, specs in cases.items()}


def _specs(item: pytest.Function) -> Sequence[TaskSpec]:
    """Return the specifications in a case's mark `given`, or made by the function there, or else the parameter `task`."""
    (mark,) = item.iter_markers("given")
    parameters = {name: value for name, value in item.callspec.params.items() if name != "kind"}
    if not mark.args:
        return [parameters["task"]]
    return [mark.args[0](**parameters)] if callable(mark.args[0]) else mark.args


@pytest_asyncio.fixture(loop_scope="session")
async def all_told(request: pytest.FixtureRequest, executor: Harness, given: dict[str, list[AttemptKey]]) -> list[Told]:
    """What was told of the attempts that the case's mark `given` names, once all of them have ended."""
    return await executor.ended(given[request.node.nodeid])


@pytest.fixture
def told(all_told: list[Told]) -> Told:
    """What was told of the one attempt that the case's mark `given` names."""
    (one,) = all_told
    return one


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def impatient_executor(kind: ExecutorKind, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harness]:
    """An executor whose grace is GRACE. Its tracker is another one, because else it would take the Slurm jobs of `executor`."""
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
