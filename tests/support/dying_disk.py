"""A file system of a test's own whose disk dies: from then on, whatever is written, read or made there fails with EIO.

Tests of hosts in trouble use it. It is an ext4 in a file, behind a loop device, and is shut down by the request that exists for
such tests. Only sizes and names are still told, which a kernel has in memory when a disk dies. Root alone can mount one, where
the kernel has loop devices and ext4.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_SIZE = 32 * 1024 * 1024  # bytes
_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, which XFS calls FS_IOC_GOINGDOWN
_WITHOUT_LOG = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: what is not on the disk yet is lost


class DyingDisk:
    """A mounted file system. Life: `mount`, then `die` and `replace` in turn, `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images = (folder.with_name(f"{folder.name}-{number}.image") for number in itertools.count(1))
        self._image = next(self._images)

    def mount(self) -> None:
        """Mount it, empty. Skips the test where that cannot be done."""
        if os.geteuid() != 0:
            pytest.skip("a file system can be mounted by root only")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._image.open("wb") as image:
            image.truncate(_SIZE)
        made = subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(self._image)], capture_output=True, text=True)
        mounted = self._mount() if made.returncode == 0 else made
        if mounted.returncode:
            pytest.skip(f"no ext4 can be mounted behind a loop device here: {mounted.stderr.strip()}")
        (self.folder / "lost+found").rmdir()

    def _mount(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", "-o", "loop", str(self._image), str(self.folder)], capture_output=True, text=True)

    def die(self) -> None:
        """From now on, it fails."""
        own = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(own, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
        finally:
            os.close(own)

    def replace(self) -> None:
        """Mount a good disk in its place, with what had come to the old one. Files that are open stay those of the old one."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        old, self._image = self._image, next(self._images)
        shutil.copyfile(old, self._image)
        mounted = self._mount()
        assert mounted.returncode == 0, mounted.stderr

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@contextlib.contextmanager
def dying_disk(folder: Path) -> Iterator[DyingDisk]:
    """One that is mounted at a folder, which is made if need be, and unmounted in the end."""
    disk = DyingDisk(folder)
    disk.mount()
    try:
        yield disk
    finally:
        disk.close()
