"""Executors and trackers from outside: a package with the READMEs' examples is installed, and the real programs use it.

The package is a wheel made here by hand (https://packaging.python.org/en/latest/specifications/binary-distribution-format/),
installed beside DaggyR with pip, and found through its entry points alone. It also brings entry points that are wrong.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from executor_harness import eventually
from support import readme_examples
from support.waiting import DEADLINE

PROGRAMS = Path(sys.executable).parent
RUN = """
parameters: {"{{WHO}}": [one, two]}
tasks:
  greet: {details: {command: [/no/such/program, "{{WHO}} and only"]}, children: [end]}
  end: {details: {command: [finish]}}
"""

# Beside the READMEs' own entry points.
FAULTY = """
[daggyr.executors]
number = daggyr_faulty:NUMBER
tracker = daggyr_journal:JournalTracker
half = daggyr_faulty:HalfExecutor
missing = daggyr_nowhere:Executor
nameless = daggyr_faulty:Nobody

[daggyr.trackers]
number = daggyr_faulty:NUMBER
executor = daggyr_dry:DryExecutor
half = daggyr_faulty:HalfTracker
broken = daggyr_broken:Tracker
"""
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


def entry_points() -> str:
    """entry_points.txt: what the READMEs' pyproject.toml blocks say, and the faulty ones."""
    groups = FAULTY
    for readme in (readme_examples.EXECUTORS, readme_examples.TRACKERS):
        ((group, entries),) = tomllib.loads(readme_examples.block(readme, "toml"))["project"]["entry-points"].items()
        for name, value in entries.items():
            groups = groups.replace(f"[{group}]\n", f"[{group}]\n{name} = {value}\n")
    return groups


def make_wheel(folder: Path) -> Path:
    info = "daggyr_outside-1.0.dist-info"
    files = {
        "daggyr_dry.py": readme_examples.block(readme_examples.EXECUTORS, "python"),
        "daggyr_journal.py": readme_examples.block(readme_examples.TRACKERS, "python"),
        "daggyr_faulty.py": FAULTY_MODULE,
        "daggyr_broken.py": "import no_such_module\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: daggyr-outside\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points(),
    }
    record = "".join(f"{name},sha256={digest(text)},{len(text.encode())}\n" for name, text in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    path = folder / "daggyr_outside-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


pytestmark = pytest.mark.xdist_group("a package from outside")  # one worker installs it


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the package was installed."""
    folder = tmp_path_factory.mktemp("outside")
    target = folder / "installed"
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-index", "--no-deps", "--no-cache-dir", "--target", str(target), str(make_wheel(folder))]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
    return target


@pytest.fixture
def environment(outside: Path, tmp_path: Path) -> dict[str, str]:
    """A user with a state folder of their own, and the package on the path."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DAGGYR_", "XDG_"))}
    return {**inherited, "PYTHONPATH": str(outside), "XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONWARNINGS": "error"}


@asynccontextmanager
async def server(environment: Mapping[str, str], folder: Path, *arguments: str) -> AsyncIterator[str]:
    """`daggyr-server` on a free port; gives its address."""
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
    """What `daggyr` says; it must succeed."""
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
    (tmp_path / "server.toml").write_text('[pools.far]\nexecutor = "dry"\nworkers = 3\n')
    given = ("--config", str(tmp_path / "server.toml"), "--tracker", f"journal:{tmp_path}/journal")

    async with server(environment, tmp_path, *given) as address:
        submitted = await daggyr(environment, address, "submit", "--watch", str(tmp_path / "run.yaml"))
        assert "1" in submitted.split()
        shown = json.loads(await daggyr(environment, address, "--output", "json", "show", "last"))
        assert (shown["run_id"], shown["state"]) == (1, "COMPLETED")
        said = await daggyr(environment, address, "logs", "1", "greet.{{WHO}}:two")
        assert "/no/such/program 'two and only'" in said, "the executor ran nothing, the tracker kept what it said"
        (pool,) = json.loads(await daggyr(environment, address, "--output", "json", "pools"))
        assert (pool["name"], pool["executor"], pool["resources"]) == ("far", "dry", {"cores": 3})

    async with server(environment, tmp_path, *given) as address:
        again = await daggyr(environment, address, "submit", str(tmp_path / "run.yaml"))
        assert again.split() == ["2"], "the tracker remembers that there was a run 1"


@pytest.mark.parametrize(
    ("config", "tracker", "words"),
    [
        ('executor = "zzz"', "memory", ["pools.p.executor", "no executor `zzz`", "agent, dry,", "local,", "noop,"]),
        ('executor = "dri"', "memory", ["no executor `dri`", "did you mean `dry`?"]),
        ('executor = "dry"', "zzz:/x", ["--tracker", "no tracker `zzz`", "broken,", "journal, memory,"]),
        ('executor = "dry"\nspeed = 3', "memory", ["pools.p.speed", "unknown key", "workers"]),
        ('executor = "dry"\nworkers = "3"', "memory", ["pools.p.workers", "expected a whole number"]),
        ('executor = "number"', "memory", ["daggyr_faulty:NUMBER", "daggyr.executors", "not a subclass", "Executor"]),
        ('executor = "tracker"', "memory", ["daggyr_journal:JournalTracker", "not a subclass", "Executor"]),
        ('executor = "half"', "memory", ["daggyr_faulty:HalfExecutor", "lacks: close, follow, open,", "Settings"]),
        ('executor = "missing"', "memory", ["daggyr_nowhere:Executor", "cannot be loaded", "daggyr_nowhere"]),
        ('executor = "nameless"', "memory", ["daggyr_faulty:Nobody", "cannot be loaded", "Nobody"]),
        ('executor = "dry"', "number:secret", ["daggyr_faulty:NUMBER", "daggyr.trackers", "not a subclass", "Tracker"]),
        ('executor = "dry"', "executor:secret", ["daggyr_dry:DryExecutor", "not a subclass", "Tracker"]),
        ('executor = "dry"', "half:secret", ["daggyr_faulty:HalfTracker", "lacks: attempts, close, commit,"]),
        ('executor = "dry"', "broken:secret", ["daggyr_broken:Tracker", "cannot be loaded", "no_such_module"]),
        ('executor = "dry"', "journal:", ["write journal:/path/of/journal"]),
        ('executor = "dry"', "journal:/no/such/folder/journal", ["/no/such/folder/journal", "No such file or directory"]),
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
