"""What the local executor promises beyond the suite: its agent is a child that comes back, and that never outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, chdir, suppress
from pathlib import Path

import psutil
import pytest
from executor_harness import CollectedReports, Harness, eventually, executor_context, pid_in, runs
from executor_kinds import CORES, opened
from support.task_specs import shell, spec
from support.waiting import DEADLINE, is_gone

from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_GONE, AttemptKey, Placement
from daggyr_server.executors.agents.local import LocalExecutor
from daggyr_server.executors.base import ExecutorError

HERE = Path(__file__).resolve().parent
FOR_EVER = 'echo $$ > "$1"; while :; do sleep 100; done'


def children() -> set[int]:
    """Return the agents that are children of this process."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "daggyr_agent" in child.cmdline():
                found.add(child.pid)
    return found


def modes(folder: Path) -> list[int]:
    """Return the permissions of the files in a folder, by name."""
    return [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()]


class Local:
    """A local executor of the test's own, and the child that it started."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._before = children()

    async def open(self, pool: str = "pool", workers: int = CORES) -> Harness:
        harness = await self._stack.enter_async_context(opened(LocalExecutor, pool=pool, workers=workers))
        await harness.host()
        return harness

    def child(self) -> int:
        (pid,) = children() - self._before
        return pid


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a short path, in which no coordinator that was killed has left anything to sweep."""
    with tempfile.TemporaryDirectory(prefix="daggyr-test-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
async def local(temporary: Path) -> AsyncIterator[Local]:
    async with AsyncExitStack() as stack:
        local = Local(stack)
        yield local
    assert children() <= local._before


async def test_KilledItsAttemptsAreLostAtOnceAndItComesBack(
    local: Local, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harness = await local.open()  # with a lease so long that its end does not matter
    host = await harness.host()
    keys = await harness.give(
        *[shell('echo $$ > "$1/$DAGGYR_TASK_ID"; until [ -e "$1/gate" ]; do sleep 0.02; done', str(tmp_path))] * 3
    )
    pids = [await pid_in(tmp_path / f"task-{number}") for number in range(CORES)]
    first = local.child()
    os.kill(first, signal.SIGKILL)
    await harness.reports.until(lambda: (host, HOST_GONE) in harness.reports.states)
    again = await harness.host()
    assert local.child() != first
    assert harness.reports.states[-1] == (again, HOST_AVAILABLE)
    assert (await harness.run_one(spec("/bin/echo", "again"))).text == "again\n"
    assert [harness.reports.of(key).results for key in keys] == [[]] * 3, "the machine makes them LOST; late words change nothing"
    assert "was ended by signal 9; it is started again" in caplog.text
    assert not any(runs(pid) for pid in pids), "it ends what was left before it joins"


async def test_KilledJustBeforeTheEndItLeavesNothingRunning(local: Local, tmp_path: Path) -> None:
    harness = await local.open()
    host = await harness.host()
    await harness.give(*[shell('echo $$ > "$1/$DAGGYR_TASK_ID"; setsid sleep 600 & wait', str(tmp_path))] * CORES)
    pids = [await pid_in(tmp_path / f"task-{number}") for number in range(CORES)]
    await eventually(lambda: all(psutil.Process(pid).children() for pid in pids))
    pids += [child.pid for pid in pids for child in psutil.Process(pid).children()]
    os.kill(local.child(), signal.SIGKILL)
    await harness.reports.until(lambda: (host, HOST_GONE) in harness.reports.states)
    await harness.executor.close()
    assert not any(runs(pid) for pid in pids)


async def test_ClosingLetsNothingRunBehind(local: Local, tmp_path: Path) -> None:
    harness = await local.open()
    await harness.give(
        shell(FOR_EVER, str(tmp_path / "plain")),
        shell('setsid sh -c "$2" sh "$1" & trap "" TERM; wait; wait', str(tmp_path / "session"), f"trap '' TERM; {FOR_EVER}"),
    )
    pids = [await pid_in(tmp_path / "plain"), await pid_in(tmp_path / "session"), local.child()]
    async with asyncio.timeout(DEADLINE):
        await harness.executor.close()
    assert not any(runs(pid) for pid in pids)
    await harness.executor.close()


async def test_ClosingAtOnceLetsNothingRunBehind(local: Local) -> None:
    executor = LocalExecutor("pool", LocalExecutor.Settings(workers=1), CollectedReports(), executor_context())
    await executor.open()
    await executor.close()


async def test_ItDiesWithACoordinatorThatIsKilled(tmp_path: Path) -> None:
    source = (
        "import asyncio, sys\n"
        "from executor_harness import shell\n"
        "from executor_kinds import opened\n"
        "from daggyr_server.executors.agents.local import LocalExecutor\n"
        "async def main():\n"
        "    async with opened(LocalExecutor, workers=1) as harness:\n"
        "        await harness.give(shell(sys.argv[2], sys.argv[1]))\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    coordinator = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", source, str(tmp_path / "pid"), FOR_EVER),
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary)},
    )
    try:
        task = await pid_in(tmp_path / "pid")
        (child,) = [process.pid for process in psutil.Process(coordinator.pid).children()]
        assert psutil.Process(task).ppid() == child
    finally:
        coordinator.kill()
        await coordinator.wait()
    await eventually(lambda: not runs(task) and not runs(child))


async def test_ItsSocketIsItsUsersAlone(local: Local, temporary: Path) -> None:
    harness = await local.open()
    assert modes(temporary) == [0o700]
    await harness.executor.close()
    assert modes(temporary) == []


async def test_ALongTemporaryFolderIsNoObstacle(local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert (await (await local.open()).run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
    assert modes(long) == []


async def test_NoTemporaryFolderIsSaid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ExecutorError, match=r"no private folder can be made in .*missing.*TMPDIR"):
        async with opened(LocalExecutor, workers=1):
            pass


@pytest.mark.parametrize("pool", ["two words", "a/b", "-x", "größer", "x" * 128])
async def test_AnyNameOfAPoolWillDo(local: Local, pool: str) -> None:
    assert (await (await local.open(pool)).run_one(spec("/bin/true"))).outcome == "SUCCEEDED"


async def test_FilesInTheFolderWhereItIsStartedAreNoModules(local: Local, tmp_path: Path) -> None:
    for name in ("daggyr_agent", "daggyr", "grpc", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)\n")
    with chdir(tmp_path):
        assert (await (await local.open()).run_one(spec("/bin/pwd"))).text == f"{tmp_path}\n"


async def test_AttemptsOfAnEarlierCoordinatorAreLostAtOnce(local: Local) -> None:
    harness = await local.open()
    keys = [AttemptKey(run_id=10**6, task_number=number, attempt=1) for number in range(2)]
    for key in keys:
        harness.reports.of(key).host = "of-before"
    harness.executor.recover([(key, Placement(host="of-before")) for key in keys])
    assert [told.outcome for told in await harness.ended(keys)] == ["LOST"] * 2


async def test_MoreWorkersThanCoresAreWhatTheUserSays(local: Local, tmp_path: Path) -> None:
    harness = await local.open(workers=64)
    assert harness.reports.hosts[await harness.host()].resources["cores"] == 64
    keys = await harness.give(*[shell('echo . >> "$1/started"; until [ -e "$1/gate" ]; do sleep 0.02; done', str(tmp_path))] * 32)
    await eventually(lambda: (tmp_path / "started").exists() and len((tmp_path / "started").read_text()) == 2 * 32)
    (tmp_path / "gate").touch()
    assert {told.outcome for told in await harness.ended(keys)} == {"SUCCEEDED"}


async def test_AnAgentThatIsStillLoadingIsNotWaitedFor(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was given nothing yet. On a loaded host it takes seconds to load, and a coordinator has some to end in."""
    words = ["sh", "-c", FOR_EVER, "agent", str(tmp_path / "pid")]
    monkeypatch.setattr(LocalExecutor, "_command", lambda *_: words)
    monkeypatch.setattr("daggyr_server.executors.agents.local.END_SECONDS", 10 * DEADLINE)
    executor = LocalExecutor("pool", LocalExecutor.Settings(workers=1), CollectedReports(), executor_context())
    await executor.open()
    child = await pid_in(tmp_path / "pid")
    async with asyncio.timeout(DEADLINE):
        await executor.close()
    assert is_gone(child)
    assert os.listdir(temporary) == []  # noqa: PTH208
