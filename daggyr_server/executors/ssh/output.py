"""Output of one attempt as a target gives it: bytes of a head and a tail in one piece, cut into chunks at their offsets.

`session.py` feeds it what it reads. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputChunk, OutputStream, OutputSummary
from daggyr_server.executors.believable import MAX_NUMBER

CHUNK_BYTES = 256 * 1024


class Output:
    """One stream, from an O line: its name, its size, and how much of its head and its tail follows."""

    def __init__(self, words: list[str]) -> None:
        """Raises ValueError."""
        name, size, head, tail = words
        self.attempt, _, stream = name.partition("/")
        self.stream: OutputStream = STDOUT if stream == "stdout" else STDERR
        self.size, self._head, self._tail = int(size), int(head), int(tail)
        if min(self._head, self._tail) < 0 or not self._head + self._tail <= self.size <= MAX_NUMBER:
            raise ValueError(f"sizes that contradict each other: {size[:40]} {head[:40]} {tail[:40]}")
        self._read = 0

    def chunks(self, data: bytes) -> Iterator[OutputChunk]:
        """The next bytes, as chunks; what a file has grown by since it was measured is left out."""
        view = memoryview(data)[: self._head + self._tail - self._read]
        while view:
            in_head = self._read < self._head
            offset = self._read if in_head else self.size - self._tail + self._read - self._head
            piece = view[: min(CHUNK_BYTES, self._head - self._read if in_head else CHUNK_BYTES)]
            yield OutputChunk(stream=self.stream, offset=offset, data=bytes(piece))
            self._read += len(piece)
            view = view[len(piece) :]

    def summary(self) -> OutputSummary:
        """To be asked when all was fed: what was promised and did not come is cut as well."""
        if self._read < self._head:
            return OutputSummary(size_bytes=self.size, cut_offset=self._read, cut_bytes=self.size - self._read)
        cut = self.size - self._head - self._tail
        return OutputSummary(size_bytes=self.size, cut_offset=self._head if cut else 0, cut_bytes=cut)
