"""What is kept of an attempt's output: all of a short stream, and the two ends of a long one.

Every executor asks `kept_of` which bytes of a stream it passes on, and tells the rest as cut. The function `dg_keep` in
attempt.sh does the same arithmetic where a shell has to; a test compares the two. This module reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daggyr.v1.task_pb2 import OutputSummary

KEPT_BYTES = 1024 * 1024  # of a stream, unless the task wants its standard output whole
CHUNK_BYTES = 256 * 1024  # of one OutputChunk at most
MOST_BYTES = 2**62  # no limit is higher: shells count with 64 bits and a sign


@dataclass(slots=True)
class Extent:
    """Which part of a stream is kept: its first `head` and its last `tail` bytes, of `size` in all.

    If nothing is cut, `head` is `size` and `tail` is 0.
    """

    size: int
    head: int
    tail: int

    @property
    def cut(self) -> int:
        """How many bytes are not kept; they begin at `head`."""
        return max(0, self.size - self.head - self.tail)

    def next_kept(self, offset: int) -> tuple[int, int]:
        """Where the next piece at or after `offset` begins, and its length, which is CHUNK_BYTES at most, and 0 at the end."""
        cut = self.cut
        resume = self.head + cut
        if cut and self.head <= offset < resume:
            offset = resume
        end = self.head if cut and offset < self.head else self.size
        return offset, max(0, min(end - offset, CHUNK_BYTES))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Offset and length of all that is kept, in order, in pieces of at most CHUNK_BYTES."""
        offset, length = self.next_kept(0)
        while length:
            yield offset, length
            offset, length = self.next_kept(offset + length)

    @classmethod
    def of(cls, summary: OutputSummary) -> Extent:
        """The extent that `summary` tells of."""
        size = summary.size_bytes
        if not summary.cut_bytes:
            return cls(size, size, 0)
        return cls(size, summary.cut_offset, size - summary.cut_offset - summary.cut_bytes)

    def summary(self) -> OutputSummary:
        """What a result tells of a stream that was read to its end."""
        return self.summary_up_to(self.size)

    def summary_up_to(self, offset: int) -> OutputSummary:
        """What a result tells if nothing at or after `offset` could be read: what did not come counts as cut.

        That happens when a stream's file is truncated or taken away after it was measured.
        """
        came = min(offset, self.head) + max(0, min(offset, self.size) - self.head - self.cut)
        if came >= self.size:
            return OutputSummary(size_bytes=self.size)
        return OutputSummary(size_bytes=self.size, cut_offset=min(offset, self.head), cut_bytes=self.size - came)


def limit_of(whole_bytes: int) -> int:
    """How many bytes of a stream are kept whole: `whole_bytes` (TaskSpec.whole_stdout_bytes), or KEPT_BYTES if that is 0."""
    return min(whole_bytes, MOST_BYTES) or KEPT_BYTES


def kept_of(size: int, whole_bytes: int = 0) -> Extent:
    """What is kept of `size` bytes: all of it up to the limit; above that, KEPT_BYTES of both ends, or the limit if it is less.

    Of an odd number of bytes, the tail gets one more than the head, because ends tell more often what went wrong.
    """
    limit = limit_of(whole_bytes)
    if size <= limit:
        return Extent(size, size, 0)
    kept = min(limit, KEPT_BYTES)
    return Extent(size, kept // 2, kept - kept // 2)
