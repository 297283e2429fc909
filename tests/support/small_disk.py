"""A small file system of a test's own, to fill, to take the inodes of, and to clear again. Root alone can mount one.

Tests of trackers and agents in trouble use it. It is a tmpfs, so that nothing of the machine's disks is touched.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filling = folder / "filling"
        self._files = folder / "files"

    def fill(self) -> None:
        """Take all the room that is left."""
        with self._filling.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def take_inodes(self) -> None:
        """Take all inodes that are left."""
        self._files.mkdir()
        number = 0
        try:
            while True:
                (self._files / str(number)).touch()
                number += 1
        except OSError:
            return

    def clear(self) -> None:
        """Give all that was taken back."""
        self._filling.unlink(missing_ok=True)
        if self._files.exists():
            for file in self._files.iterdir():
                file.unlink()
            self._files.rmdir()


@contextlib.contextmanager
def small_disk(folder: Path, options: str = "size=16m") -> Iterator[SmallDisk]:
    """Mount one at a folder, which is made if need be. The test is skipped for whoever may not mount."""
    if os.geteuid() != 0:
        pytest.skip("a file system can be mounted by root only")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
