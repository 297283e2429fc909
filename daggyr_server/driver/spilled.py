"""What each task of a large run executes, on disk instead of in memory.

Whoever expands a document for the machine (the API, edits, generators, recovery) puts the tasks' specifications into a
`SpilledTasks`. Its file has no name and goes with the process, because all that it holds can be made again of the document that
the tracker has. Small runs, and what the disk does not take, stay in memory.
"""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
from array import array
from pathlib import Path

from daggyr_server.trackers.base import LostTracker

log = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024  # is written at once; what is smaller stays in memory
BLOCK_BYTES = 8 * 1024  # is read at once, because tasks that follow each other are asked for one after the other
MAX_FILES = 128  # are open in all; while so many are open, what comes stays in memory
SHARED = 1_000  # the first small specifications, which are written once however often they come
SHARED_BYTES = 1024  # a larger specification is not small

_open: set[int] = set()  # the descriptors of all files


class SpilledTasks:
    """A list of specifications. Whoever makes it appends to it, and gives it to others only when it is complete."""

    __slots__ = (
        "__weakref__",
        "_block",
        "_end",
        "_file",
        "_folder",
        "_lengths",
        "_shared",
        "_starts",
        "_waiting",
        "_waiting_bytes",
    )

    def __init__(self, folder: Path | None) -> None:
        """`folder` is where the file is made; without one, all stays in memory."""
        self._folder = folder
        self._file: int | None = None
        self._starts, self._lengths = array("Q"), array("I")  # in bytes, of each specification on disk
        self._end = 0  # the size of the file, in bytes
        self._block = (0, b"")  # what was read last: its offset and its bytes
        self._shared: dict[bytes, int] = {}  # the first small specifications, with their offsets
        self._waiting: list[bytes] = []  # the last specifications, which are not on disk
        self._waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._starts) + len(self._waiting)

    def __getitem__(self, index: int) -> bytes:
        """Raises LostTracker if the disk does not give the specification back: without it, the run cannot go on."""
        if index >= len(self._starts):
            return self._waiting[index - len(self._starts)]
        assert self._file is not None and index >= 0
        start, length = self._starts[index], self._lengths[index]
        begins, block = self._block
        if begins <= start and start + length <= begins + len(block):
            return block[start - begins : start - begins + length]
        try:
            block = os.pread(self._file, max(length, BLOCK_BYTES), start)
        except OSError as error:
            raise LostTracker(f"what tasks execute cannot be read from {self._folder} any more: {error.strerror}") from None
        if len(block) < length:
            raise LostTracker(f"what tasks execute cannot be read from {self._folder} any more: the file is too short")
        self._block = (start, block)
        return block[:length]

    def append(self, details: bytes) -> None:
        """Add one to the end. A disk that takes nothing is told of in the log, and all that follows stays in memory."""
        self._waiting.append(details)
        self._waiting_bytes += len(details)
        if self._waiting_bytes >= CHUNK_BYTES and self._folder is not None:
            if self._file is None and len(_open) >= MAX_FILES:
                self._folder = None
                return
            try:
                self._put_away(self._folder)
            except OSError as error:
                log.warning("what tasks execute stays in memory, %s takes none of it: %s", self._folder, error.strerror)
                self._folder = None

    def _put_away(self, folder: Path) -> None:
        """Write what waits. Raises OSError, and leaves it waiting then."""
        if self._file is None:
            with tempfile.TemporaryFile(buffering=0, prefix="daggyr-", dir=folder) as file:
                self._file = os.dup(file.fileno())
            _open.add(self._file)
            weakref.finalize(self, _close, self._file)
        starts, pieces, end = array("Q"), [], self._end
        for each in self._waiting:
            start = self._shared.get(each)
            if start is None:
                start = end
                pieces.append(each)
                end += len(each)
                if len(self._shared) < SHARED and len(each) <= SHARED_BYTES:
                    self._shared[each] = start
            starts.append(start)
        data = memoryview(b"".join(pieces))
        while data:
            written = os.pwrite(self._file, data, end - len(data))
            data = data[written:]
        self._starts += starts
        self._lengths.extend(map(len, self._waiting))
        self._end = end
        self._waiting, self._waiting_bytes = [], 0


def _close(file: int) -> None:
    _open.discard(file)
    os.close(file)
