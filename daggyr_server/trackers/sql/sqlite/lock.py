"""The locks of a sqlite tracker, and the mark: what this host has seen of the tracker, in a file beside it.

`SqliteFile` takes the locks, `SqliteTracker` writes the mark. No database is opened here.

There are two locks, and whoever opens the tracker takes both. The first is taken with flock(2) on PATH-lock, a file that stays;
versions before this one know no other. The second is on the database itself, so that a second name of it (a hard link, a bind
mount, another container) leads to the same lock. It is an open file description lock (fcntl(2), F_OFD_SETLK), because that one
belongs to the open file: a usual lock by fcntl goes when any descriptor of the file is closed, and sqlite has descriptors of the
database. It is on one byte far beyond the end, where sqlite has no lock. Both files are opened close-on-exec, so that no child
holds a lock after the coordinator is gone.

The mark stands in PATH-lock. It is written after each commit, and says how many commits the tracker has seen. So the database
is never behind it, unless an older copy was put in its place, or its log was lost or damaged. The mark is not flushed to the disk
at each commit: what is written survives the end of the process, and after a loss of power an older mark is still one that the
database is not behind.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from daggyr_server.trackers.base import TrackerError

log = logging.getLogger(__name__)

_POLL = 0.05  # seconds between looks at a lock that is held
_BYTE = 2**62  # where the lock on the database is
_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length and pid of `struct flock` (fcntl(2)) on 64-bit Linux
_NO_SUCH_LOCK = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_HELD = frozenset({errno.EAGAIN, errno.EACCES})
_MAX_MARK_BYTES = 256
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Mark(NamedTuple):
    """What this host has seen of a tracker."""

    tracker_id: str
    epoch: int
    commits: int
    boot: str  # the boot of the system that wrote it; empty if that is not known


class SqliteLock:
    """The locks of one database, by its path, real and absolute."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.with_name(f"{path.name}-lock")
        self._descriptors: list[int] = []
        self._beginning = b""  # of the mark: all that stays the same from commit to commit

    async def take(self, wait: float, make: Callable[[], None], held: Callable[[], TrackerError]) -> None:
        """Take both locks. `make` makes the database if there is none.

        Raises `held()` if another process keeps one of them for `wait` seconds, OSError if they cannot be taken at all.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        try:
            self._descriptors.append(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            while not _flock(self._descriptors[0]):
                if loop.time() >= deadline:
                    raise held()
                await asyncio.sleep(_POLL)
            make()
            self._descriptors.append(os.open(self.path, os.O_RDWR | os.O_CLOEXEC))
            while not lock_database(self._descriptors[1], fcntl.F_WRLCK):
                if loop.time() >= deadline:
                    raise held()
                await asyncio.sleep(_POLL)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go of what was taken. No connection of sqlite's may be open, because their own locks go with it."""
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in reversed(descriptors):
            os.close(descriptor)

    # -- the mark -----------------------------------------------------------------------------------------------------

    def mark(self) -> Mark | None:
        """What was marked last; None if nothing was, or if it cannot be read. Call it with the locks held."""
        return self._read(self._descriptors[0])

    def look_at_mark(self) -> Mark | None:
        """The same without the locks: it may be another one a moment later."""
        try:
            descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return self._read(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> Mark | None:
        text = os.pread(descriptor, _MAX_MARK_BYTES, 0)
        body, _, rest = text.partition(b" crc ")
        words = body.decode("ascii", "replace").split()
        if len(words) != 5 or words[0] != "daggyr" or rest[:8] != b"%08x" % zlib.crc32(body):
            if text:
                log.warning("%s holds no mark that can be read: it does not tell whether the tracker is whole", self.file)
            return None
        return Mark(words[1], int(words[2]), int(words[4]), "" if words[3] == "-" else words[3])

    def begin_mark(self, tracker_id: str, epoch: int, commits: int) -> None:
        """Mark what a start of the coordinator found, durably. Raises OSError."""
        self._beginning = f"daggyr {tracker_id} {epoch} {boot_id() or '-'} ".encode()
        os.ftruncate(self._descriptors[0], 0)
        self.mark_commits(commits)
        self.sync_mark()

    def mark_commits(self, commits: int) -> None:
        """Mark that so many commits are durable. Raises OSError."""
        body = b"%b%020d" % (self._beginning, commits)
        os.pwrite(self._descriptors[0], b"%b crc %08x\n" % (body, zlib.crc32(body)), 0)

    def sync_mark(self) -> None:
        """Make the mark durable. Raises OSError."""
        os.fsync(self._descriptors[0])


def boot_id() -> str:
    """What this boot of the system is called; empty if that is not known."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def lock_database(descriptor: int, kind: int) -> bool:
    """Take the lock on an open database, F_WRLCK or F_RDLCK, until it is closed. Returns whether nobody else has it.

    A file system without such locks has no lock on the database; that is told, and the one on PATH-lock remains. Raises OSError.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, _BYTE, 1, 0))
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _NO_SUCH_LOCK:
            raise
        log.warning("the database cannot be locked where it lies (%s): do not give it a second name", error.strerror)
    return True


def is_locked(path: Path) -> bool:
    """Whether a process has the lock on this database, under whatever name. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not lock_database(descriptor, fcntl.F_RDLCK)
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
