"""The suite's part for the ladder of outcomes: each line that every executor can reach, with the same words from each executor.

A line that only some executors reach is tested with these: an agent that is stopped or sees the OOM killer (tests/agent), what
Slurm says of its jobs (slurm_jobs/), and attempts that vanish (test_ssh_executor.py, slurm_jobs/test_slurm_recovery.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from executor_harness import GRACE, Harness, eventually, pid_in, runs
from support.task_specs import shell, spec

pytestmark = pytest.mark.asyncio(loop_scope="session")

# The task notes each SIGTERM in a file, and ends as the test says once the file `gate` is there.
OBEDIENT = 'trap "echo >> $1.term" TERM; echo $$ > "$1"; until [ -s "$1.gate" ]; do sleep 0.05; done; exit $(cat "$1.gate")'


async def test_WhatEndsByItself(executor: Harness) -> None:
    told = await executor.run(
        spec("/bin/true"), shell("exit 3"), shell("kill -KILL $$"), shell("kill -USR1 $$"), spec("no-such-program-anywhere")
    )
    assert [(one.outcome, one.result.exit_code, one.result.signal) for one in told] == [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 0),
        ("FAILED", 0, 9),
        ("FAILED", 0, 10),
        ("REJECTED", 0, 0),
    ]
    succeeded, failed, killed, signalled, rejected = (one.notes for one in told)
    assert (succeeded, failed, signalled) == ("", "", "ended by SIGUSR1")
    assert killed.startswith("ended by SIGKILL, not from here: another process")
    assert rejected
    assert not told[-1].result.HasField("start_time") and told[-1].result.HasField("stop_time")


async def test_ExitCode0AtAKillHasSucceeded(executor: Harness, tmp_path: Path) -> None:
    key = await executor.give_one(shell(OBEDIENT, str(tmp_path / "pid")))
    await pid_in(tmp_path / "pid")
    executor.stop(key)
    await eventually((tmp_path / "pid.term").exists)
    (tmp_path / "pid.gate").write_text("0\n")
    told = await executor.ends(key)
    assert (told.outcome, told.result.exit_code, told.notes) == ("SUCCEEDED", 0, "")


@pytest.mark.parametrize("code", [0, 3])
async def test_AnExitCodeAtTheTimeout(executor: Harness, tmp_path: Path, code: int) -> None:
    key, timeout, _ = await executor.timed(OBEDIENT, tmp_path)
    file = tmp_path / f"pid-{timeout:g}"
    await eventually(file.with_name(f"{file.name}.term").exists)
    file.with_name(f"{file.name}.gate").write_text(f"{code}\n")
    told = await executor.ends(key)
    assert (told.outcome, told.result.exit_code) == ("TIMED_OUT" if code else "SUCCEEDED", code)
    had_passed = f"its timeout of {timeout:g} s had passed"
    assert told.notes == (had_passed if code else f"it ended with exit code 0 when {had_passed}")


async def test_TheFirstCauseCounts(executor: Harness, tmp_path: Path) -> None:
    """An attempt that is killed in its grace after the timeout is TIMED_OUT."""
    key, timeout, _ = await executor.timed(OBEDIENT, tmp_path)
    file = tmp_path / f"pid-{timeout:g}"
    await eventually(file.with_name(f"{file.name}.term").exists)
    executor.stop(key)
    file.with_name(f"{file.name}.gate").write_text("3\n")
    told = await executor.ends(key)
    assert (told.outcome, told.notes) == ("TIMED_OUT", f"its timeout of {timeout:g} s had passed")


async def test_IgnoringTermAtTheTimeoutIsKilledAfterTheGracePeriod(impatient_executor: Harness, tmp_path: Path) -> None:
    """The task and its children get SIGTERM when the timeout has passed, and SIGKILL after the pool's kill_grace."""
    key, timeout, _ = await impatient_executor.timed(
        'trap "" TERM; sleep 1000 & echo $! > "$1.child"; echo $$ > "$1"; while :; do sleep 100; done', tmp_path
    )
    told = await impatient_executor.ends(key)
    assert (told.outcome, told.result.signal) == ("TIMED_OUT", 9)
    assert told.notes == f"its timeout of {timeout:g} s had passed"
    took = told.result.stop_time.ToNanoseconds() - told.result.start_time.ToNanoseconds()
    assert took >= 0.9e9 * (timeout + GRACE), "by a clock that may be set a little meanwhile"
    for name in ("pid", "child"):
        pid = await pid_in(tmp_path / (f"pid-{timeout:g}" + (".child" if name == "child" else "")))
        assert not runs(pid), f"told as ended while its {name} runs"
