"""`backup` and `restore`, killed between each pair of their steps: the old or the new is whole, and the next call does the work.

Steps are what others can see: files made, renamed, linked, removed. stepwise_server.py kills itself at the one that it is told.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support import preloaded
from support.deployment import Deployment, shell
from test_live_copies import served, started
from test_restored_copies import server_command

KILLED_AT = Path(__file__).with_name("stepwise_server.py")
MOST_STEPS = 60


def killed_at(deployment: Deployment, folder: Path, number: int, *arguments: str) -> int:
    """Run a command of daggyr-server that is killed before a step in the folder; its exit code, which is 0 if there are fewer."""
    return preloaded.run(
        [sys.executable, "-P", str(KILLED_AT), str(folder), str(number), *arguments],
        cwd=deployment.work,
        env=deployment.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    ).returncode


def runs(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM run").fetchone()[0])


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def crashed(deployment: Deployment) -> Path:
    """The folder of a tracker as the end of its host left it: its two runs are in its log."""
    folder, crashed = deployment.folder / "served", deployment.folder / "crashed"
    server = started(deployment, folder)
    for _ in range(2):
        deployment.watch(deployment.submit({"a": shell("true")}))
    shutil.copytree(folder, crashed)
    server.end()
    assert (crashed / "state.db-wal").stat().st_size
    return crashed


def test_backup(deployment: Deployment, crashed: Path) -> None:
    copies = deployment.folder / "copies"
    copies.mkdir()
    copy, number = copies / "copy", 0
    while number < MOST_STEPS:
        number += 1
        command = ("backup", str(copy), "--tracker", f"sqlite:{crashed}/state.db")
        code = killed_at(deployment, copies, number, *command)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if copy.exists():
            assert runs(copy) == 2
            copy.unlink()
    assert number > 4
    assert (runs(copy), left(copies)) == (2, [])


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "of a copy"])
def test_restore(deployment: Deployment, crashed: Path, in_place: bool) -> None:
    copy = deployment.folder / "copy"
    assert server_command(deployment, "backup", str(copy), "--tracker", f"sqlite:{crashed}/state.db").code == 0
    folder, number = deployment.folder / "tracker", 0
    tracker = folder / "state.db"
    command = ("restore", *(() if in_place else (str(copy),)), "--tracker", f"sqlite:{tracker}")
    while number < MOST_STEPS:
        number += 1
        shutil.rmtree(folder, ignore_errors=True)
        if in_place:
            shutil.copytree(crashed, folder)
        else:
            folder.mkdir()
        code = killed_at(deployment, folder, number, *command)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if not in_place and tracker.exists() and not tracker.stat().st_size:
            code, words = served(deployment, folder)
            assert (code, "restore` was interrupted" in words) == (2, True), "an empty tracker would be served"
        if in_place or not tracker.exists() or not tracker.stat().st_size:
            again = server_command(deployment, *command)
            assert (again.code, left(folder)) == (0, []), (number, again.err)
        assert runs(tracker) == 2, number
        assert in_place or not list(folder.glob("*.before-*")), "an empty file was set aside"
    assert number > 8
    assert (runs(tracker), left(folder)) == (2, [])
    assert not in_place or runs(folder / "state.db.before-1") == 2


def test_names_of_files_that_belong_to_the_tracker(deployment: Deployment) -> None:
    folder = deployment.folder / "tracker"
    started(deployment, folder).end()
    for end in ("wal", "shm", "journal"):
        name = f"{folder}/state.db-{end}"
        refused = server_command(deployment, "backup", name, "--tracker", f"sqlite:{folder}/state.db")
        assert (refused.code, f"{name} is the name of a file that belongs to the tracker" in refused.err) == (2, True), refused


def test_a_copy_that_is_damaged_is_named(deployment: Deployment, crashed: Path) -> None:
    copy, cut = deployment.folder / "copy", deployment.folder / "cut"
    assert server_command(deployment, "backup", str(copy), "--tracker", f"sqlite:{crashed}/state.db").code == 0
    cut.write_bytes(copy.read_bytes()[:50_000])
    cut.chmod(0o600)
    refused = server_command(deployment, "restore", str(cut), "--tracker", f"sqlite:{deployment.folder}/new.db")
    assert (refused.code, f"{cut} is damaged" in refused.err) == (2, True), refused.err
    assert not (deployment.folder / "new.db").exists()
