"""The suite's third part: attempts that are stopped, time out, or leave processes behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from executor_harness import GRACE, Harness, Told, eventually, pid_in, runs
from executor_kinds import CORES, ExecutorKind
from support.task_specs import python, shell, spec

pytestmark = pytest.mark.asyncio(loop_scope="session")

FOR_EVER = "while :; do sleep 100; done"


async def test_StartStopWait(executor: Harness) -> None:
    key = await executor.give_one(shell(FOR_EVER))
    await executor.started(key)
    executor.stop(key)
    told = await executor.ends(key)
    assert told.outcome == "KILLED"
    assert told.result.signal == 15
    assert told.result.HasField("start_time")


async def test_KillEndsTheGroup(executor: Harness, tmp_path: Path) -> None:
    key = await executor.give_one(shell('sleep 1000 & echo $! > "$1/pid"; sleep 1000 | cat', str(tmp_path)))
    child = await pid_in(tmp_path / "pid")
    executor.stop(key)
    assert (await executor.ends(key)).outcome == "KILLED"
    assert not runs(child), "told as ended while a process of it runs"


async def test_IgnoringTermIsKilledAfterTheGracePeriod(impatient_executor: Harness, tmp_path: Path) -> None:
    executor = impatient_executor
    key = await executor.give_one(shell(f"trap '' TERM; echo $$ > \"$1/pid\"; {FOR_EVER}", str(tmp_path)))
    await pid_in(tmp_path / "pid")
    before = time.monotonic()
    executor.stop(key)
    told = await executor.ends(key)
    assert time.monotonic() - before >= GRACE
    assert (told.outcome, told.result.signal) == ("KILLED", 9)


async def test_TheGracePeriodIsForCleaningUp(executor: Harness, tmp_path: Path) -> None:
    key = await executor.give_one(shell(f"trap 'echo bye; exit 4' TERM; echo $$ > \"$1/pid\"; {FOR_EVER} & wait", str(tmp_path)))
    await pid_in(tmp_path / "pid")
    executor.stop(key)
    told = await executor.ends(key)
    assert (told.outcome, told.result.exit_code, told.output()) == ("KILLED", 4, b"bye\n")


async def test_StopTwiceIsOneEnd(executor: Harness) -> None:
    key = await executor.give_one(shell(FOR_EVER))
    await executor.started(key)
    executor.stop(key)
    executor.stop(key)
    assert (await executor.ends(key)).outcome == "KILLED"
    executor.stop(key)
    assert (await executor.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"


async def test_StopOfWhatHasNotStarted(executor: Harness, tmp_path: Path) -> None:
    running = await executor.give(*[shell(FOR_EVER)] * CORES)
    (waiting,) = await executor.give(shell('touch "$1"', str(tmp_path / "ran")))
    for key in running:
        await executor.started(key)
    executor.stop(waiting)
    told = await executor.ends(waiting)
    assert told.outcome == "KILLED"
    assert not told.result.HasField("start_time")
    executor.stop(*running)
    assert {told.outcome for told in await executor.ended(running)} == {"KILLED"}
    assert not (tmp_path / "ran").exists()


async def test_TimeoutEndsIt(executor: Harness, tmp_path: Path) -> None:
    key, timeout, child = await executor.timed('echo begun; sleep 1000 & echo $! > "$1"; wait', tmp_path)
    told = await executor.ends(key)
    assert told.outcome == "TIMED_OUT"
    assert f"{timeout:g} s" in told.notes
    assert told.output() == b"begun\n"
    assert not runs(child)
    took = told.result.stop_time.ToNanoseconds() - told.result.start_time.ToNanoseconds()
    assert took >= 0.9e9 * timeout, "by a clock that may be set a little meanwhile"


@pytest.mark.given(shell("exit 5", timeout=3600))
async def test_InTimeIsNoTimeout(told: Told) -> None:
    assert told.outcome == "FAILED"


async def test_WhatIsLeftBehindIsEnded(executor: Harness, tmp_path: Path) -> None:
    """A background process of the group and a process in a session of its own end with their attempt."""
    told = await executor.run_one(
        shell(
            'sleep 1000 & echo $! > "$1/group"; setsid sh -c \'echo $$ > "$1/session"; exec sleep 1000\' sh "$1" & '
            'until [ -s "$1/session" ]; do sleep 0.01; done',
            str(tmp_path),
        )
    )
    assert told.outcome == "SUCCEEDED"
    assert not runs(await pid_in(tmp_path / "group"))
    assert not runs(await pid_in(tmp_path / "session"))


async def test_WhatIsLeftBehindDoesNotHoldTheResultBack(kind: ExecutorKind, executor: Harness, tmp_path: Path) -> None:
    """The result does not wait for a daemon that keeps the task's output open and has scrubbed its environment."""
    source = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.execve('/bin/sh', ['sh', '-c', 'echo $$ > \"$1\"; exec sleep 1000', 'sh', sys.argv[1]], {})\n"
        "    os._exit(0)\n"
        "while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read(): time.sleep(0.01)\n"
    )
    told = await executor.run_one(python(source, str(tmp_path / "pid")))
    assert told.outcome == "SUCCEEDED"
    daemon = await pid_in(tmp_path / "pid")
    if not kind.finds_daemons():
        os.kill(daemon, signal.SIGKILL)
    await eventually(lambda: not runs(daemon))
