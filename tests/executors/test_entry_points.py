"""Executors and trackers from outside: packages are installed beside DaggyR, and the real programs find them by entry points.

The packages are the executor of examples/executor, the tracker of the trackers' README, and one whose entry points are wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from executor_harness import eventually
from executor_kinds import EXAMPLE
from outside_packages import install, make_wheel, project_wheel
from support import readme_examples
from support.waiting import DEADLINE

PROGRAMS = Path(sys.executable).parent
RUN = """
parameters: {"{{WHO}}": [one, two]}
tasks:
  greet: {details: {command: [echo, "{{WHO}} and only"]}, children: [end]}
  end: {details: {command: ["true"]}}
"""

PREFIX = """
executor = "prefix"
command = ["nice"]
directory = "attempts"
resources = {cores = 3}
"""

FAULTY = {
    "daggyr.executors": {
        "number": "daggyr_faulty:NUMBER",
        "tracker": "daggyr_journal:JournalTracker",
        "half": "daggyr_faulty:HalfExecutor",
        "missing": "daggyr_nowhere:Executor",
        "nameless": "daggyr_faulty:Nobody",
        "leaving": "daggyr_leaving:Executor",
        "noop": "daggyr_faulty:HalfExecutor",
    },
    "daggyr.trackers": {
        "number": "daggyr_faulty:NUMBER",
        "executor": "daggyr_prefix.executor:PrefixExecutor",
        "half": "daggyr_faulty:HalfTracker",
        "broken": "daggyr_broken:Tracker",
    },
}
FAULTY_MODULE = '''"""Entry points that are wrong."""

from daggyr_server.executors.base import Executor
from daggyr_server.trackers.base import Tracker

NUMBER = 5


class HalfExecutor(Executor):
    def start(self, host, batch):
        """The rest is missing."""


class HalfTracker(Tracker):
    async def open(self):
        """The rest is missing."""
'''


pytestmark = pytest.mark.xdist_group("a package from outside")  # one worker installs it


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the packages were installed."""
    folder = tmp_path_factory.mktemp("outside")
    ((group, entries),) = tomllib.loads(readme_examples.block(readme_examples.TRACKERS, "toml"))["project"][
        "entry-points"
    ].items()
    faulty = {**FAULTY, group: {**FAULTY[group], **entries}}
    files = {
        "daggyr_journal.py": readme_examples.block(readme_examples.TRACKERS, "python"),
        "daggyr_faulty.py": FAULTY_MODULE,
        "daggyr_broken.py": "import no_such_module\n",
        "daggyr_leaving.py": "import sys\n\nsys.exit('its licence has run out')\n",
    }
    target = folder / "installed"
    install(target, project_wheel(EXAMPLE, folder), make_wheel(folder, "daggyr-outside", "1.0", files, faulty))
    return target


@pytest.fixture
def environment(outside: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has a state folder of their own and the packages on the path."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DAGGYR_", "XDG_"))}
    return {**inherited, "PYTHONPATH": str(outside), "XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONWARNINGS": "error"}


@asynccontextmanager
async def server(environment: Mapping[str, str], folder: Path, *arguments: str) -> AsyncIterator[str]:
    """The address of a `daggyr-server` on a free port."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    command = [str(PROGRAMS / "daggyr-server"), "--listen", "127.0.0.1:0", "--ready-file", str(ready), *arguments]
    process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=folder)
    try:
        await eventually(lambda: ready.exists() or process.returncode is not None)
        assert process.returncode is None
        yield ready.read_text().strip()
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(DEADLINE):
            assert await process.wait() == 0


async def daggyr(environment: Mapping[str, str], address: str, *arguments: str) -> str:
    """Run `daggyr`, which must succeed; returns what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(str(PROGRAMS / "daggyr"), "--server", address, *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_AServerRunsOnAnExecutorAndATrackerFromOutside(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "server.toml").write_text(f"[pools.far]\n{PREFIX}")
    given = ("--config", str(tmp_path / "server.toml"), "--tracker", f"journal:{tmp_path}/journal")

    async with server(environment, tmp_path, *given) as address:
        submitted = await daggyr(environment, address, "submit", "--watch", str(tmp_path / "run.yaml"))
        assert "1" in submitted.split()
        shown = json.loads(await daggyr(environment, address, "--output", "json", "show", "last"))
        assert (shown["run_id"], shown["state"]) == (1, "COMPLETED")
        said = await daggyr(environment, address, "logs", "1", "greet.{{WHO}}:two")
        assert "two and only" in said, "the executor told it, the tracker kept it"
        (pool,) = json.loads(await daggyr(environment, address, "--output", "json", "pools"))
        assert (pool["name"], pool["executor"], pool["resources"]) == ("far", "prefix", {"cores": 3})

    async with server(environment, tmp_path, *given) as address:
        again = await daggyr(environment, address, "submit", str(tmp_path / "run.yaml"))
        assert again.split() == ["2"], "the tracker remembers that there was a run 1"


@pytest.mark.parametrize(
    ("config", "tracker", "words"),
    [
        ('executor = "zzz"', "memory", ["pools.p.executor", "no executor `zzz`", "agent,", "local,", "prefix,"]),
        ('executor = "prefiz"', "memory", ["no executor `prefiz`", "did you mean `prefix`?"]),
        (PREFIX, "zzz:/x", ["--tracker", "no tracker `zzz`", "broken,", "journal, memory,"]),
        (f"{PREFIX}speed = 3", "memory", ["pools.p.speed", "unknown key", "look_up"]),
        (PREFIX.replace("3", '"3"'), "memory", ["pools.p.resources", "expected a whole number"]),
        (PREFIX.replace("nice", "no-such-nice"), "memory", ["pools.p", "no-such-nice", "no program of this host"]),
        ('executor = "number"', "memory", ["daggyr_faulty:NUMBER", "daggyr.executors", "not a subclass", "Executor"]),
        ('executor = "tracker"', "memory", ["daggyr_journal:JournalTracker", "not a subclass", "Executor"]),
        ('executor = "half"', "memory", ["daggyr_faulty:HalfExecutor", "lacks: close, follow, open,", "Settings"]),
        ('executor = "missing"', "memory", ["daggyr_nowhere:Executor", "cannot be loaded", "daggyr_nowhere"]),
        ('executor = "nameless"', "memory", ["daggyr_faulty:Nobody", "cannot be loaded", "Nobody"]),
        (
            'executor = "leaving"',
            "memory",
            ["daggyr_leaving:Executor", "cannot be loaded", "SystemExit: its licence has run out"],
        ),
        (
            'executor = "noop"',
            "memory",
            ["more than one executor 'noop'", "HalfExecutor of the package daggyr-outside", "NoopExecutor"],
        ),
        (PREFIX, "number:secret", ["daggyr_faulty:NUMBER", "daggyr.trackers", "not a subclass", "Tracker"]),
        (PREFIX, "executor:secret", ["daggyr_prefix.executor:PrefixExecutor", "not a subclass", "Tracker"]),
        (PREFIX, "half:secret", ["daggyr_faulty:HalfTracker", "lacks: attempts, close, commit,"]),
        (PREFIX, "broken:secret", ["daggyr_broken:Tracker", "cannot be loaded", "no_such_module"]),
        (PREFIX, "journal:", ["write journal:/path/of/journal"]),
        (PREFIX, "journal:/no/such/folder/journal", ["/no/such/folder/journal", "No such file or directory"]),
    ],
)
def test_WhatIsWrongIsSaid(environment: dict[str, str], tmp_path: Path, config: str, tracker: str, words: list[str]) -> None:
    (tmp_path / "server.toml").write_text(f"[pools.p]\n{config}\n")
    command = [str(PROGRAMS / "daggyr-server"), "--listen", "127.0.0.1:0", "--tracker", tracker]
    command += ["--config", str(tmp_path / "server.toml")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ended.returncode == 2, ended.stderr
    assert [word for word in words if word not in ended.stderr] == [], ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr
