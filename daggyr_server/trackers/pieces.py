"""Stretches of bytes that came in pieces, maybe twice and overlapping: cut for storage, and told in order without overlaps.

All trackers keep output like this, and the SQL trackers documents too. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from daggyr_server.trackers.base import Piece

# No stored piece is longer, so that a reader knows how far back one may begin that covers an offset. statements.sql says it too.
MAX_PIECE_BYTES = 256 * 1024
DOCUMENT_PIECE_BYTES = 1024 * 1024
MAX_OFFSET = 2**63 - 1  # the largest number that databases take


def cut(offset: int, data: bytes, size: int) -> Iterator[tuple[int, bytes | memoryview]]:
    """`data` in pieces of at most `size` bytes, each with its offset; nothing is copied."""
    if len(data) <= size:
        yield offset, data
        return
    view = memoryview(data)
    for start in range(0, len(data), size):
        yield offset + start, view[start : start + size]


def in_order(pieces: Iterable[tuple[int, bytes]], offset: int, limit: int) -> list[Piece]:
    """What `pieces`, ascending by start, hold from `offset` on, each byte once.

    At most `limit` bytes, at least one piece if there is any.
    """
    found: list[Piece] = []
    for start, data in pieces:
        skipped = max(0, offset - start)
        if skipped:
            data = data[skipped:]
        if not data:
            continue  # an earlier piece told it already, or nobody asked for it
        if found and len(data) > limit:
            break
        found.append(Piece(start + skipped, data))
        limit -= len(data)
        offset = start + skipped + len(data)
    return found


def joined(pieces: Iterable[tuple[int, bytes]]) -> bytes:
    """All that `pieces`, ascending by start, hold, each byte once."""
    return b"".join(piece.data for piece in in_order(pieces, 0, MAX_OFFSET))
