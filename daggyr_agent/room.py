"""The room that the state folder's disk has for what tasks write, and whether a file there can be written at all.

`host_condition` asks when attempts have ended, now and then while some run, and before a pause ends. A process writes into its
output files itself, and the kernel tells the process alone that it could not, so that a look at the disk is all that the agent
has: a disk that fills and is empty again between two looks goes unnoticed. A look at the figures is one statvfs(2), of 2 us. The
figures do not tell of a disk that fails (EIO), or that became read-only for that, so one byte is written over each time, in 1 us.
Nor do they tell of a quota, and only what takes new room finds that: it is written where it matters, in 10 us.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from daggyr.attempts import startable

LEAST_BYTES = 1024 * 1024  # below that, nothing new is started: it is what is kept of one stream
LEAST_INODES = 64

_WRITTEN = bytes(4096)


class Room:
    """Looks at one folder."""

    def __init__(self, folder: Path, mend: Callable[[], str | None] = lambda: None) -> None:
        """`mend` makes the folder again if it was taken away, and says why it cannot; any thread may call it."""
        self._mend = mend
        self._folder = os.fsencode(folder)
        self._shown = startable.shown(self._folder)
        self._reserved_is_ours = os.geteuid() == 0  # what a file system reserves is for root
        self._descriptor = -1  # of a file without a name, which has one block, and is made when something is written first

    def shortage(self) -> str | None:
        """What the disk lacks, for a person: a part of a sentence; None if it has room. Any thread may call this."""
        try:
            found = os.statvfs(self._folder)
        except OSError as error:
            return f"{self._shown} cannot be looked at: {error.strerror}"
        free = (found.f_bfree if self._reserved_is_ours else found.f_bavail) * found.f_frsize
        if free < LEAST_BYTES:
            return f"the disk of {self._shown} is full ({free // 1024:,} KiB are free)"
        if found.f_files and found.f_favail < LEAST_INODES:
            return f"the disk of {self._shown} has too few inodes left for new files ({found.f_favail:,} are free)"
        if found.f_flag & os.ST_RDONLY:
            return f"the disk of {self._shown} is read-only"
        return None

    def failing(self) -> str | None:
        """Why a byte cannot be written over, for a person: a part of a sentence; None if it can. In the event loop only."""
        try:
            os.pwrite(self._opened(), b"\0", 0)
        except OSError as error:
            self.close()  # Another disk may come to the place of one that has failed.
            return self._says(error)
        return None

    def unwritable(self) -> str | None:
        """Why nothing new can be written, for a person: a part of a sentence; None if something was. In the event loop only."""
        try:
            descriptor = self._opened()
            _write(descriptor, len(_WRITTEN))
            os.ftruncate(descriptor, len(_WRITTEN))
        except OSError as error:
            return self._says(error)
        return None

    def _opened(self) -> int:
        if self._descriptor < 0:
            descriptor = self._nameless(b"room")
            try:
                _write(descriptor)
            except OSError:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        return self._descriptor

    def unusable(self) -> str | None:
        """As `unwritable`, with a new file, and with a wait until it is on the disk. In a thread, because that may take long."""
        try:
            descriptor = self._nameless(b"room.new")
            try:
                _write(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            return self._says(error)
        return None

    def mended(self) -> str | None:
        """Make the folder again if it was taken away. Returns why it cannot be made, as `shortage`. Before a pause ends."""
        return self._mend()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _nameless(self, name: bytes) -> int:
        path = os.path.join(self._folder, name)  # noqa: PTH118
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.unlink(path)  # noqa: PTH108
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _says(self, error: OSError) -> str:
        return f"files in {self._shown} cannot be written: {_words(error)}"


def _write(descriptor: int, offset: int = 0) -> None:
    """Write to a file, from `offset` on. Raises OSError unless all of it is written.

    A file that may not grow takes what fits, and refuses the rest when it is asked again.
    """
    written = 0
    while written < len(_WRITTEN):
        written += os.pwrite(descriptor, _WRITTEN[written:], offset + written)


def _words(error: OSError) -> str:
    if error.errno == errno.EFBIG:
        return "the agent's limit on the size of files (ulimit -f)"
    return error.strerror or str(error)
