"""The executor of examples/executor where the conformance suite does not look: over a restart, and as its README says.

Other coordinators of the same tracker take up what one left. A real server is killed and started again.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from executor_harness import Harness, eventually, executor_context, pid_in, runs
from executor_kinds import EXAMPLE, prefix
from outside_packages import install, project_wheel
from support.task_specs import shell, spec
from support.waiting import DEADLINE

from daggyr.attempts.keys import ident_of, name_of
from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_PAUSED, AttemptKey, Placement

PROGRAMS = Path(sys.executable).parent
FOR_EVER = "while :; do sleep 100; done"
GATED = 'echo "$DAGGYR_TASK_ID" >> "$1/log"; until [ -e "$1/gate" ]; do sleep 0.02; done; echo done; exit "$2"'


class Place:
    """A pool's folders, and the coordinators that come and go there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.attempts = folder / "attempts"
        self._stack = AsyncExitStack()

    async def coordinator(self, *taken_up: AttemptKey, **context: Any) -> Harness:
        """Open another coordinator in the place of the one before, and tell it of attempts that were placed."""
        await self.end()
        harness = await self._stack.enter_async_context(prefix(self.home, context=executor_context(**context)))
        host = await harness.host()
        for key in taken_up:
            harness.reports.of(key).host = host
        harness.executor.recover([(key, Placement(host=host)) for key in taken_up])
        return harness

    async def end(self) -> None:
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    def gated(self, code: int = 0) -> Any:
        return shell(GATED, str(self.home), str(code))

    def log(self) -> list[str]:
        return sorted((self.home / "log").read_text().split()) if (self.home / "log").exists() else []

    def folders(self, keys: Sequence[AttemptKey] = ()) -> list[Path]:
        """The folders of these attempts, or of all attempts that are on disk."""
        names = [name_of(ident_of(key)) for key in keys] or ["*"]
        return [path for name in names for path in self.attempts.glob(f"*/*/{name}")]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    yield made
    await made.coordinator()  # it ends attempts of which the tracker does not know
    await eventually(lambda: not made.folders())
    await made.end()


async def test_WhatRunsAndWhatHasEndedIsTakenUp(place: Place) -> None:
    harness = await place.coordinator()
    runs_on, ends = await harness.give(place.gated(), shell("echo out; exit 7"))
    await harness.started(runs_on)
    await harness.ends(ends)
    again = await place.coordinator(runs_on)
    await again.started(runs_on)
    (place.home / "gate").touch()
    told = await again.ends(runs_on)
    assert (told.outcome, told.text) == ("SUCCEEDED", "done\n")
    assert place.log() == ["task-0"], "it was not repeated"
    await eventually(lambda: not place.folders())


async def test_WhatEndedWithoutACoordinatorIsToldFromItsFolder(place: Place) -> None:
    harness = await place.coordinator()
    key = await harness.give_one(place.gated(5))
    await harness.started(key)
    await place.end()
    (place.home / "gate").touch()
    (folder,) = place.folders([key])
    await eventually(lambda: (folder / "result").exists())
    again = await place.coordinator(key)
    told = await again.ends(key)
    assert (told.outcome, told.result.exit_code, told.text) == ("FAILED", 5, "done\n")


async def test_AResultIsKeptUntilItIsDurable(place: Place) -> None:
    harness = await place.coordinator()
    harness.reports.holding = True
    key = await harness.give_one(shell("echo out; exit 7"))
    assert (await harness.ends(key)).outcome == "FAILED"
    again = await place.coordinator(key)
    told = await again.ends(key)
    assert (told.outcome, told.result.exit_code, told.text) == ("FAILED", 7, "out\n")


async def test_WhatWasNotStartedIsLostAndNeverStarts(place: Place) -> None:
    harness = await place.coordinator()
    keys = await harness.give(*[place.gated()] * 3)
    for key in keys[:2]:
        await harness.started(key)
    again = await place.coordinator(*keys)
    assert (await again.ends(keys[2])).outcome == "LOST"
    (place.home / "gate").touch()
    assert {told.outcome for told in await again.ended(keys[:2])} == {"SUCCEEDED"}
    assert place.log() == ["task-0", "task-1"]


async def test_WhatWasTakenUpCountsAgainstTheResources(place: Place) -> None:
    harness = await place.coordinator()
    keys = await harness.give(*[place.gated()] * 2)
    for key in keys:
        await harness.started(key)
    again = await place.coordinator(*keys)
    new = await again.give_one(spec("/bin/true"))
    again.recall(new)
    assert (await again.ends(new)).outcome == "RETURNED", "it waited"
    (place.home / "gate").touch()
    await again.ended(keys)


async def test_AStopOfWhatWasTakenUp(place: Place) -> None:
    harness = await place.coordinator()
    key = await harness.give_one(shell(FOR_EVER))
    await harness.started(key)
    again = await place.coordinator(key)
    again.stop(key)
    told = await again.ends(key)
    assert (told.outcome, told.result.signal) == ("KILLED", 15)


async def test_WhatNobodyWantsIsEnded(place: Place) -> None:
    """The run was deleted while no coordinator was there."""
    harness = await place.coordinator()
    key = await harness.give_one(shell(f'echo $$ > "$1/pid"; {FOR_EVER}', str(place.home)))
    pid = await pid_in(place.home / "pid")
    await place.coordinator()
    await eventually(lambda: not place.folders([key]))
    assert not runs(pid)


async def test_AnotherTrackerFindsNothing(place: Place) -> None:
    harness = await place.coordinator()
    key = await harness.give_one(place.gated())
    await harness.started(key)
    other = await place.coordinator(key, tracker_id="tracker-2")
    assert (await other.ends(key)).outcome == "LOST"
    again = await place.coordinator(key)
    (place.home / "gate").touch()
    assert (await again.ends(key)).outcome == "SUCCEEDED"


async def test_AKilledRunnerTakesItsTaskAlong(place: Place) -> None:
    harness = await place.coordinator()
    key = await harness.give_one(shell(f'echo $$ > "$1/pid"; echo $PPID > "$1/runner"; {FOR_EVER}', str(place.home)))
    pid, runner = await pid_in(place.home / "pid"), await pid_in(place.home / "runner")
    os.kill(runner, signal.SIGKILL)
    told = await harness.ends(key)
    assert (told.outcome, "left no result" in told.notes) == ("LOST", True)
    await eventually(lambda: not runs(pid))


async def test_AHostThatCannotStartAnythingPausesItself(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = await place.coordinator()
    monkeypatch.setattr(sys.modules[type(harness.executor).__module__], "PAUSE_SECONDS", 0.05)
    (pool,) = place.attempts.glob("*/*")
    pool.rmdir()
    pool.touch()  # no folder can be made below a file
    key = await harness.give_one(spec("/bin/true"))
    told = await harness.ends(key)
    assert (told.outcome, "cannot start it now" in told.notes) == ("RETURNED", True)
    assert harness.reports.states[-1][1] == HOST_PAUSED
    pool.unlink()
    pool.mkdir()
    await harness.reports.until(lambda: harness.reports.states[-1][1] == HOST_AVAILABLE)
    assert (await harness.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the example, and what was installed from it."""
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(EXAMPLE, folder / "examples/executor", ignore=shutil.ignore_patterns("out", "__pycache__"))
    install(folder / "installed", project_wheel(folder / "examples/executor", folder))
    return folder


@pytest.fixture
def environment(copy: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has the real programs and the package on their paths."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DAGGYR_", "XDG_"))}
    return {
        **inherited,
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "PYTHONPATH": str(copy / "installed"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PYTHONWARNINGS": "error",
    }


class TestInstalled:
    """The real programs use the package, which is installed from a copy of the folder."""

    def test_ItRunsAsTheReadmeSays(self, copy: Path, environment: dict[str, str]) -> None:
        readme = (copy / "examples/executor/README.md").read_text(encoding="utf-8")
        installs, line = re.findall(r"^```sh\n(.*)\n```$", readme, re.MULTILINE)
        assert installs == "pip install ./examples/executor"
        ended = subprocess.run(
            ["sh", "-c", line], cwd=copy, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert ended.returncode == 0, ended.stderr
        nice = min(19, os.nice(0) + 10)
        assert ended.stdout.endswith("".join(f"{who} is nice: {nice}\n" for who in ("ann", "ben", "eve"))), ended.stdout

    async def test_WhatRunsOutlivesAKilledServer(self, environment: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "server.toml").write_text(
            '[pools.p]\nexecutor = "prefix"\ncommand = ["nice"]\ndirectory = "attempts"\nresources = {cores = 1}\n'
        )
        task = {"details": {"command": ["/bin/sh", "-c", GATED, "sh", str(tmp_path), "0"]}}
        (tmp_path / "run.json").write_text(json.dumps({"tasks": {"one": task}}))
        arguments = ["--config", "server.toml", "--tracker", f"sqlite:{tmp_path}/state.db", "--listen", "127.0.0.1:0"]

        async def server() -> tuple[asyncio.subprocess.Process, str]:
            (tmp_path / "ready").unlink(missing_ok=True)
            words = [str(PROGRAMS / "daggyr-server"), *arguments, "--ready-file", "ready"]
            process = await asyncio.create_subprocess_exec(*words, env=environment, cwd=tmp_path)
            await eventually(lambda: (tmp_path / "ready").exists() or process.returncode is not None)
            assert process.returncode is None
            return process, (tmp_path / "ready").read_text().strip()

        async def daggyr(address: str, *words: str) -> str:
            command = [str(PROGRAMS / "daggyr"), "--server", address, *words]
            process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
            out, _ = await process.communicate()
            assert process.returncode == 0
            return out.decode()

        first, address = await server()
        await daggyr(address, "submit", str(tmp_path / "run.json"))
        await eventually(lambda: (tmp_path / "log").exists())
        first.kill()
        await first.wait()
        second, address = await server()
        try:
            (tmp_path / "gate").touch()
            await daggyr(address, "watch", "last")
            (task_told,) = json.loads(await daggyr(address, "--output", "json", "tasks", "last"))
            assert (task_told["state"], task_told["attempt_count"]) == ("COMPLETED", 1)
            assert await daggyr(address, "logs", "last", "one") == "done\n"
            assert (tmp_path / "log").read_text() == "one\n", "it was not repeated"
        finally:
            second.terminate()
            assert await second.wait() == 0
