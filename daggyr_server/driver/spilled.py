"""What each task of a large run is to execute, on disk instead of in memory.

Whoever expands a document for the machine gives it a `SpilledTasks` to put specifications in: the API, edits, generators and
recovery. The file has no name and goes with the process; it has nothing that the tracker has not, which has the document. Small
runs, and what does not fit on the disk, stay in memory.
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

CHUNK_BYTES = 1024 * 1024  # goes to disk at once; less than that never does
BLOCK_BYTES = 8 * 1024  # is read at once: tasks that follow each other are asked for one after the other
MAX_FILES = 128  # open in all; what comes while so many are stays in memory
SHARED = 1_000  # specifications that are looked for again, the first small ones
SHARED_BYTES = 1024

_open: set[int] = set()  # the descriptors of all shelves


class SpilledTasks:
    """A list of specifications, to the end of which more can be put as long as nobody else has it."""

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
        """`folder` is where the file is made. None: all stays in memory."""
        self._folder = folder
        self._file: int | None = None
        self._starts, self._lengths = array("Q"), array("I")  # bytes, of what is on disk
        self._end = 0  # of the file
        self._block = (0, b"")  # what was read last: where it begins, and the bytes
        self._shared: dict[bytes, int] = {}  # where they are
        self._waiting: list[bytes] = []  # what comes behind that
        self._waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._starts) + len(self._waiting)

    def __getitem__(self, index: int) -> bytes:
        """Raises LostTracker where the disk does not give it back."""
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
        """Write what waits. Raises OSError; then it still waits."""
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
