"""The files that take what attempts write: made, kept small while a process writes, read for sending, removed.

An execution takes a Capture (a file for each stream) at its start and gives it back at its end. If nothing was done to the
files and nobody is left who could, they serve the next attempt. Otherwise they become Kept output, which the outbox reads, and
releases once the result is acknowledged. The number that names the files is enough to find kept output again after a restart.
`watch` calls `trim` while a process writes: the middle of long output, which is not kept, is punched out of the file
(fallocate(2)), so that a process that writes without end fills neither disk nor memory. Nothing here sends output.

A process writes into the file itself. A process that opens its output anew and truncates it (`> /dev/stderr` in a shell) loses
what it wrote before, as with any redirection into a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import logging
import os
import time
from pathlib import Path

from daggyr.attempts.kept import Extent, kept_of
from daggyr.v1.task_pb2 import STDERR, STDOUT, AttemptResult, OutputStream

from .process import Outputs

_MAX_SPARE = 128
_SEEN_SECONDS = 0.1
_KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
_PUNCH_HOLE = 0x02
_BLOCK = 4096

_log = logging.getLogger(__name__)


class Stream:
    """One stream's file while its process runs."""

    __slots__ = ("_flags", "_gone", "_mode", "_whole_bytes", "descriptor", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._whole_bytes = 0
        self._gone = 0  # where what was punched out ends
        # It is opened for appending, because all who inherit the descriptor write to one end, whatever was cut or truncated.
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._mode = os.fstat(self.descriptor).st_mode
        self._flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)

    def reset(self, whole_bytes: int) -> None:
        """Make the empty file ready for an attempt of which `whole_bytes` are kept whole; 0 means as usual (see `kept_of`)."""
        self._whole_bytes = whole_bytes
        self._gone = 0

    def is_as_made(self) -> bool:
        """Whether the file is empty, and nothing was done to it that the next attempt would notice.

        Flags belong to the open file, not to the process that set them. An attempt that wrote nothing may still have made it a
        file that does not append (and moved its offset), or one that refuses what is not aligned (O_DIRECT, as dd sets it).
        """
        found = os.fstat(self.descriptor)
        return (
            not found.st_size
            and found.st_mode == self._mode
            and found.st_nlink == 1
            and fcntl.fcntl(self.descriptor, fcntl.F_GETFL) == self._flags
        )

    def has_name(self) -> bool:
        """Whether the file is still in its folder. A program that clears old files away may have removed it."""
        return os.fstat(self.descriptor).st_nlink > 0

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def extent_of(self, size: int) -> Extent:
        """What is kept of the stream if it has `size` bytes."""
        return kept_of(size, self._whole_bytes)

    def trim(self) -> int:
        """Take what is not kept off the disk. Returns the size so far, in bytes."""
        size = self.size()
        extent = self.extent_of(size)
        if extent.cut:
            if size < self._gone:
                self._gone = 0  # The file was truncated and grew again.
            begin = max(self._gone, -(-extent.head // _BLOCK) * _BLOCK)
            end = (size - extent.tail) // _BLOCK * _BLOCK
            if begin < end and _punch(self.descriptor, begin, end - begin):
                self._gone = end
        return size

    def read(self, offset: int) -> tuple[int, bytes]:
        """What can be read at or after `offset` now, at most CHUNK_BYTES, and where it begins; empty at the end."""
        offset, length = self.extent_of(self.size()).next_kept(offset)
        return offset, os.pread(self.descriptor, length, offset) if length else b""

    def close(self, *, remove: bool) -> None:
        os.close(self.descriptor)
        if remove:
            _remove(self.path)


class Kept:
    """One stream's file after its process has ended. It holds no descriptor, so that any number can wait for acknowledgement."""

    __slots__ = ("_path", "extent", "number", "stream")

    def __init__(self, number: int, stream: OutputStream, path: str, extent: Extent) -> None:
        self.number = number
        self.stream = stream
        self.extent = extent
        self._path = path

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`. Raises OSError if the file was taken away."""
        with open(self._path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

    def release(self) -> None:
        """Remove the file."""
        _remove(self._path)


class Capture:
    """The two files of an attempt that runs."""

    __slots__ = ("number", "outputs", "stderr", "stdout")

    def __init__(self, number: int, stdout: Stream, stderr: Stream) -> None:
        self.number = number
        self.stdout = stdout
        self.stderr = stderr
        self.outputs = Outputs(stdout.descriptor, stderr.descriptor)

    def is_as_made(self) -> bool:
        """Whether both files may serve another attempt: nothing was written to them, or done to them otherwise."""
        return self.stdout.is_as_made() and self.stderr.is_as_made()

    def has_names(self) -> bool:
        """Whether both files are where they are read from later."""
        return self.stdout.has_name() and self.stderr.has_name()

    def trim(self) -> int:
        """Trim both; returns the bytes written so far."""
        return self.stdout.trim() + self.stderr.trim()

    def stream(self, stream: OutputStream) -> Stream:
        return self.stdout if stream == STDOUT else self.stderr


class Captures:
    """Gives out captures in a folder, in files named by numbers, and takes them back. `take` and `recycle` from any thread."""

    def __init__(self, folder: Path, first: int = 1) -> None:
        """`first` is the first number that is free; 0 names no file."""
        self._folder = str(folder)
        self._numbers = itertools.count(first)
        self._spare: list[tuple[float, Capture]] = []  # each with when it was taken back
        self._oldest = first  # files with a lower number serve no other attempt

    def take(self, whole_stdout_bytes: int) -> Capture:
        """A pair of empty files. `whole_stdout_bytes` > 0 keeps stdout whole up to that many bytes. Raises OSError."""
        capture = self._take_spare() or self._make()
        capture.stdout.reset(whole_stdout_bytes)
        capture.stderr.reset(0)
        return capture

    def _take_spare(self) -> Capture | None:
        while self._spare:
            with contextlib.suppress(IndexError):  # another thread took the last
                since, capture = self._spare.pop()
                # `is_as_made` has just seen the names of one that was taken back a moment ago.
                if time.monotonic() - since < _SEEN_SECONDS or capture.has_names():
                    return capture
                self.drop(capture)
        return None

    def _make(self) -> Capture:
        number = next(self._numbers)
        stdout = Stream(self._path(number, STDOUT))
        try:
            return Capture(number, stdout, Stream(self._path(number, STDERR)))
        except OSError:
            stdout.close(remove=True)
            raise

    def recycle(self, capture: Capture) -> None:
        """Take back files for another attempt. They are as they were made, and nobody is left who could write to them."""
        if len(self._spare) < _MAX_SPARE and capture.number >= self._oldest:
            self._spare.append((time.monotonic(), capture))
        else:
            self.drop(capture)

    def keep(self, capture: Capture) -> tuple[Kept, ...]:
        """Take the capture of an attempt that has ended. Returns what it wrote, which the caller releases."""
        kept = []
        for which, stream in ((STDOUT, capture.stdout), (STDERR, capture.stderr)):
            size = stream.trim()
            if size:
                kept.append(Kept(capture.number, which, stream.path, stream.extent_of(size)))
            stream.close(remove=not size)
        return tuple(kept)

    def kept(self, number: int, result: AttemptResult) -> tuple[Kept, ...]:
        """What `keep` returned for this result, in an earlier process of this agent."""
        return tuple(
            Kept(number, which, self._path(number, which), Extent.of(summary))
            for which, summary in ((STDOUT, result.stdout), (STDERR, result.stderr))
            if summary.size_bytes
        )

    def drop(self, capture: Capture) -> None:
        """Remove both files, because nobody wants what they hold."""
        capture.stdout.close(remove=True)
        capture.stderr.close(remove=True)

    def renew(self) -> None:
        """Let no file that is there serve another attempt."""
        self._oldest = next(self._numbers)
        self.close()

    def close(self) -> None:
        """Remove the spare files."""
        while True:
            try:
                _, spare = self._spare.pop()
            except IndexError:
                return
            self.drop(spare)

    def _path(self, number: int, stream: OutputStream) -> str:
        return f"{self._folder}/{number}.{'stdout' if stream == STDOUT else 'stderr'}"


def _remove(path: str) -> None:
    """Remove a file. One that cannot be removed, on a disk that fails, stays until the agent is started anew."""
    try:
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.debug("%s stays: %s", path, error.strerror)


_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate  # musl has 64 bits under this name
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_punching = True


def _punch(descriptor: int, offset: int, length: int) -> bool:
    global _punching
    if not _punching:
        return False
    if _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return True
    _punching = False
    reason = os.strerror(ctypes.get_errno())
    _log.warning("the state folder's file system cannot drop parts of a file (%s): long output fills the disk", reason)
    return False
