"""What a task on Slurm wrote, read from its files in the shared directory: all of it, or the head and tail of what was too long.

The executor of job mode calls this in threads, at an attempt's end and while somebody follows it. Files are never changed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from daggyr.v1.task_pb2 import STDOUT, OutputStream, OutputSummary
from daggyr_server.executors.slurm.jobs.script import KEPT_BYTES
from daggyr_server.executors.slurm.jobs.submission_folder import SubmissionFolder

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Written:
    """A stream of `size` bytes of which the first `head` and the last `tail` are kept."""

    path: Path
    size: int
    head: int
    tail: int

    @property
    def summary(self) -> OutputSummary:
        cut = self.size - self.head - self.tail
        return OutputSummary(size_bytes=self.size, cut_offset=self.head if cut else 0, cut_bytes=cut)

    def chunks(self, offset: int = 0) -> Iterator[tuple[int, bytes]]:
        """What is kept at or after `offset`, in pieces of at most CHUNK_BYTES. Raises OSError."""
        if offset >= self.size:
            return
        with self.path.open("rb", buffering=0) as file:
            while offset < self.size:
                resume = self.size - self.tail
                if self.head <= offset < resume:
                    offset = resume
                end = self.head if offset < self.head else self.size
                data = os.pread(file.fileno(), min(CHUNK_BYTES, end - offset), offset)
                if not data:
                    return  # the task truncated it
                yield offset, data
                offset += len(data)


def written_by(folder: SubmissionFolder, index: int, stream: OutputStream) -> Written:
    """What a task of a folder has written to a stream so far."""
    if stream == STDOUT:
        return written(folder.output(index, "out"), folder.manifest.whole_stdout_bytes)
    return written(folder.output(index, "err"))


def written(path: Path, whole_bytes: int = 0) -> Written:
    """A stream as it is now. Up to `whole_bytes` (0: KEPT_BYTES) all is kept, beyond that half of KEPT_BYTES at both ends."""
    try:
        # Opened, because NFS asks the server for the size then.
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        size = 0
    limit = whole_bytes or KEPT_BYTES
    if size <= limit:
        return Written(path, size, size, 0)
    kept = min(limit, KEPT_BYTES)
    return Written(path, size, kept // 2, kept - kept // 2)
