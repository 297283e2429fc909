"""One stream of an attempt as its target gives it: what is kept of it, in one run of bytes, made into chunks at their offsets.

`fetching.py` feeds it what it reads, and asks for the summary in the end. Nothing here knows of connections.
"""

from __future__ import annotations

from collections.abc import Iterator

from daggyr.attempts.kept import Extent
from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputChunk, OutputStream, OutputSummary
from daggyr_server.executors.believable import MAX_NUMBER


class Output:
    """One stream, from the words of an O line: its name, its size, and how much of its head and of its tail follows."""

    def __init__(self, words: list[str]) -> None:
        """Raises ValueError."""
        name, size, head, tail = words
        self.attempt, _, stream = name.partition("/")
        self.stream: OutputStream = STDOUT if stream == "stdout" else STDERR
        self.extent = Extent(int(size), int(head), int(tail))
        if (
            min(self.extent.head, self.extent.tail) < 0
            or not self.extent.head + self.extent.tail <= self.extent.size <= MAX_NUMBER
        ):
            raise ValueError(f"sizes that contradict each other: {size[:40]} {head[:40]} {tail[:40]}")
        self._offset = 0  # where the last chunk ended

    def chunks(self, data: bytes) -> Iterator[OutputChunk]:
        """Make chunks of the next bytes. Bytes beyond what the O line promised are left out, because the file has grown since."""
        view = memoryview(data)
        while view:
            offset, length = self.extent.next_kept(self._offset)
            if not length:
                return
            yield OutputChunk(stream=self.stream, offset=offset, data=bytes(view[:length]))
            self._offset = offset + min(length, len(view))
            view = view[length:]

    def summary(self) -> OutputSummary:
        """What came of the stream, to be asked when all was fed. What was promised and did not come counts as cut."""
        return self.extent.summary_up_to(self._offset)
