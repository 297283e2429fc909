"""What is kept of output: the rule itself, for any size and any limit, and that the shell's arithmetic is the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daggyr.attempts.kept import CHUNK_BYTES, KEPT_BYTES, MOST_BYTES, Extent, kept_of, limit_of
from daggyr.v1.task_pb2 import OutputSummary

SIZES = st.one_of(st.integers(0, 100), st.integers(KEPT_BYTES - 3, KEPT_BYTES + 3), st.integers(0, 5 * KEPT_BYTES))
LIMITS = st.one_of(SIZES, st.integers(0, 2**64 - 1))  # uint64 of the contract


@given(SIZES, LIMITS)
def test_all_is_kept_up_to_the_limit_and_above_it_both_ends(size: int, whole_bytes: int) -> None:
    extent = kept_of(size, whole_bytes)
    limit = whole_bytes or KEPT_BYTES
    assert extent.size == size
    if size <= limit:
        assert (extent.head, extent.tail, extent.cut) == (size, 0, 0)
    else:
        assert extent.head + extent.tail == min(limit, KEPT_BYTES) == size - extent.cut
        assert extent.tail - extent.head in (0, 1)
    assert 0 < limit_of(whole_bytes) <= MOST_BYTES


@given(
    st.integers(0, 5 * KEPT_BYTES),
    st.integers(0, KEPT_BYTES // 2),
    st.integers(0, KEPT_BYTES // 2),
    st.integers(0, 6 * KEPT_BYTES),
)
def test_pieces_are_all_that_is_kept_in_order(size: int, head: int, tail: int, start: int) -> None:
    extent = Extent(size, head, tail) if head + tail < size else Extent(size, size, 0)
    pieces = list(extent.pieces())
    assert Extent.of(extent.summary()) == extent
    assert all(0 < length <= CHUNK_BYTES for _, length in pieces)
    assert sum(length for _, length in pieces) == size - extent.cut
    covered = 0
    for offset, length in pieces:
        assert offset == covered or (offset, covered) == (extent.head + extent.cut, extent.head)
        covered = offset + length
    assert covered == size or (not tail and covered == extent.head)
    offset, length = extent.next_kept(start)
    assert offset >= start and (length == 0 or offset + length <= size)
    assert not (extent.cut and length and extent.head <= offset < extent.head + extent.cut)


@given(SIZES, LIMITS, st.integers(0, 6 * KEPT_BYTES))
def test_what_does_not_come_counts_as_cut(size: int, whole_bytes: int, offset: int) -> None:
    extent = kept_of(size, whole_bytes)
    assert extent.summary_up_to(size) == extent.summary()
    came = sum(max(0, min(length, offset - begin)) for begin, length in extent.pieces())
    summary = extent.summary_up_to(offset)
    assert (summary.size_bytes, summary.size_bytes - summary.cut_bytes) == (size, came)
    assert summary.cut_offset + summary.cut_bytes <= size, "or believable.py would leave it out"
    assert summary.cut_offset == (min(offset, extent.head) if summary.cut_bytes else 0)


def test_a_stream_without_a_byte() -> None:
    assert kept_of(0, 1).summary() == OutputSummary()
    assert list(kept_of(0).pieces()) == []
