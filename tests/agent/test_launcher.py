"""The launcher by itself, in a process whose C library checks its memory if it can: who owns what C needs for a start."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from support.waiting import DEADLINE

CROWD = Path(__file__).with_name("crowded_launcher.py")

# mallopt(3): memory that is freed or new is filled with other bytes, and what is freed twice or written past its end aborts.
# Since glibc 2.34 the checks are in a library of their own.
CHECKED = {"MALLOC_PERTURB_": "165", "MALLOC_CHECK_": "3", "LD_PRELOAD": "libc_malloc_debug.so.0"}


def has_checks() -> bool:
    try:
        ctypes.CDLL(CHECKED["LD_PRELOAD"])
    except OSError:
        return False
    return True


def test_thousands_of_pairs_of_descriptors_from_many_threads(tmp_path: Path) -> None:
    """Every process writes to its own files, reads its own standard input, and the launcher lives on."""
    threads, starts = 48, 50
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(CROWD), str(threads), str(starts), str(tmp_path)],
        env={**os.environ, **(CHECKED if has_checks() else {})},
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    words = ended.stdout.split()
    assert words[0] == str(threads * starts)
    assert int(words[2]) > 1000, ended.stdout  # otherwise it proves nothing
