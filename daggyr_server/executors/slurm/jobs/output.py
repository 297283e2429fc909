"""What a task on Slurm wrote, read from its files in the shared directory, as far as it is kept.

The executor of job mode calls this in threads, at an attempt's end and while somebody follows it. It never changes a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from daggyr.attempts.kept import Extent, kept_of
from daggyr.v1.task_pb2 import STDOUT, OutputStream, OutputSummary
from daggyr_server.executors.slurm.jobs.submission_folder import SubmissionFolder


class Written:
    """One stream, with the size that it had when this was made."""

    def __init__(self, path: Path, extent: Extent) -> None:
        self._path = path
        self._extent = extent
        self._offset = 0  # where the last piece that was read ended

    def chunks(self, offset: int = 0) -> Iterator[tuple[int, bytes]]:
        """Read what is kept at or after `offset`, in pieces of at most CHUNK_BYTES. Raises OSError."""
        self._offset, length = self._extent.next_kept(offset)
        if not length:
            return
        with self._path.open("rb", buffering=0) as file:
            while length:
                data = os.pread(file.fileno(), length, self._offset)
                if not data:
                    return  # the file was truncated since
                found, self._offset = self._offset, self._offset + len(data)
                yield found, data
                self._offset, length = self._extent.next_kept(self._offset)

    def summary(self) -> OutputSummary:
        """What came of the stream, to be asked when all chunks were read. What could not be read counts as cut."""
        return self._extent.summary_up_to(self._offset)


def written_by(folder: SubmissionFolder, index: int, stream: OutputStream) -> Written:
    """What a task of a folder has written to a stream so far."""
    if stream == STDOUT:
        return written(folder.output(index, "out"), folder.manifest.whole_stdout_bytes)
    return written(folder.output(index, "err"))


def written(path: Path, whole_bytes: int = 0) -> Written:
    """A stream as it is now; `whole_bytes` as for `kept_of`."""
    try:
        # The file is opened, because NFS asks the server for the size then.
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        size = 0
    return Written(path, kept_of(size, whole_bytes))
