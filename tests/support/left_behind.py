"""Nothing of a session of tests is left behind: no process, and no file in the folder for temporary files.

tests/conftest.py calls it. `begin` gives the session (or the worker of pytest-xdist) a folder of its own for temporary files. All
that tests start inherits it as TMPDIR, so that two sessions on a host do not meet. `end` fails with what is left, ends it and
removes the folder. It never looks at what somebody else started.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

from support.waiting import is_gone, until

_MARK = "TESTS_FOLDER"  # a variable that what is started inherits, unless it is given an environment without it


def begin() -> Path:
    """Returns the folder. Its path is short, because those of unix sockets have 107 bytes at most."""
    # pytest's own folders stay where they are: people look there.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp")).resolve()
    folder.chmod(0o1777)  # as /tmp has: other users' services have files there
    os.environ["TMPDIR"] = os.environ[_MARK] = str(folder)
    tempfile.tempdir = None  # it is asked for again
    return folder


def end(folder: Path) -> None:
    """Fails if there is a process or a file left; it is gone when this returns or raises."""
    try:
        until(lambda: not _processes(folder), "the end of what is just ending")
    except AssertionError:
        left = [f"process {process.pid}: {_words(process)}" for process in _processes(folder)]
        for process in _processes(folder):
            process.kill()
    else:
        left = []
    left += [f"file {path}" for path in folder.iterdir()]
    shutil.rmtree(folder)
    assert not left, f"the tests left behind: {left}"


def _processes(folder: Path) -> list[psutil.Process]:
    """What this process started and still runs, and what inherited its mark, whatever became of its parents."""
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    mark = f"{_MARK}={folder}".encode()
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found[process.pid] = process
        except OSError:
            continue
    return [process for pid, process in found.items() if not is_gone(pid)]


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "(it is just ending)"
