"""Bytes that are stored as pieces with offsets: how they are cut, and how they are put in order again without overlaps.

Pieces may come twice, overlap, and leave gaps. All trackers keep output as pieces, and the SQL trackers documents too. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from daggyr_server.trackers.base import Piece

# No stored piece of output is longer. So a reader knows how far before an offset a piece may begin that covers it; the statement
# `output` in each statements.sql has the same number.
MAX_PIECE_BYTES = 256 * 1024
DOCUMENT_PIECE_BYTES = 1024 * 1024
MAX_OFFSET = 2**63 - 1  # the largest number that databases take


def cut(offset: int, data: bytes | bytearray, size: int) -> Iterator[tuple[int, bytes | memoryview]]:
    """`data` in pieces of at most `size` bytes, each with its offset. Nothing is copied."""
    if isinstance(data, bytes) and len(data) <= size:
        yield offset, data
        return
    view = memoryview(data)
    for start in range(0, len(data), size):
        yield offset + start, view[start : start + size]


def in_order(pieces: Iterable[tuple[int, bytes]], offset: int, limit: int) -> list[Piece]:
    """The bytes of `pieces` from `offset` on, each byte once. `pieces` ascend by start.

    The result has at most `limit` bytes, but one piece at least, if there is any.
    """
    found: list[Piece] = []
    for start, data in pieces:
        skipped = max(0, offset - start)
        if skipped:
            data = data[skipped:]
        if not data:
            continue  # it lies before `offset`, or an earlier piece has all of it
        if found and len(data) > limit:
            break
        found.append(Piece(start + skipped, data))
        limit -= len(data)
        offset = start + skipped + len(data)
    return found


def joined(pieces: Iterable[tuple[int, bytes]]) -> bytes:
    """All bytes of `pieces`, each byte once. `pieces` ascend by start."""
    return b"".join(piece.data for piece in in_order(pieces, 0, MAX_OFFSET))
