"""Output: pieces in any order, twice, with gaps; read again in order, page by page."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_examples import Examples
from tracker_kinds import TrackerKind
from tracker_records import kept, pages, run_added, whole

from daggyr.v1.task_pb2 import STDERR, STDOUT
from daggyr_server.trackers.base import Piece, Tracker


@pytest.fixture(autouse=True)
async def run(tracker: Tracker) -> None:
    await tracker.commit([run_added()])


async def test_what_was_never_written_is_empty(tracker: Tracker) -> None:
    assert await tracker.output(1, 0, 1, STDOUT, 0, 100) == []
    assert await tracker.output(9, 0, 1, STDOUT, 0, 100) == []
    await tracker.commit([kept(0, b"")])
    assert await tracker.output(1, 0, 1, STDOUT, 0, 100) == []


async def test_pieces_come_in_order_whatever_order_they_came_in(tracker: Tracker) -> None:
    await tracker.commit([kept(6, b"ghi"), kept(0, b"abc")])
    await tracker.commit([kept(3, b"def")])
    assert await whole(tracker) == [(0, b"abcdefghi")]


async def test_gaps_stay_gaps(tracker: Tracker) -> None:
    await tracker.commit([kept(0, b"head"), kept(1_000, b"tail")])
    assert await whole(tracker) == [(0, b"head"), (1_000, b"tail")]
    assert await whole(tracker, offset=500) == [(1_000, b"tail")]


async def test_reading_begins_inside_a_piece(tracker: Tracker) -> None:
    await tracker.commit([kept(10, b"0123456789")])
    assert await tracker.output(1, 0, 1, STDOUT, 14, 100) == [Piece(14, b"456789")]
    assert await tracker.output(1, 0, 1, STDOUT, 20, 100) == []
    assert await tracker.output(1, 0, 1, STDOUT, 2**40, 100) == []


async def test_a_piece_that_came_twice_is_there_once(tracker: Tracker) -> None:
    await tracker.commit([kept(0, b"abc"), kept(3, b"def")])
    await tracker.commit([kept(3, b"def"), kept(0, b"abc")])
    assert await whole(tracker) == [(0, b"abcdef")]


async def test_overlaps_are_told_once(tracker: Tracker) -> None:
    await tracker.commit([kept(0, b"abcd"), kept(2, b"cdef"), kept(1, b"bc"), kept(0, b"abc"), kept(4, b"efgh")])
    assert await whole(tracker) == [(0, b"abcdefgh")]


async def test_a_longer_piece_takes_the_place_of_a_shorter(tracker: Tracker) -> None:
    await tracker.commit([kept(0, b"ab")])
    await tracker.commit([kept(0, b"abcd")])
    await tracker.commit([kept(0, b"a")])
    assert await whole(tracker) == [(0, b"abcd")]


async def test_any_bytes_come_back(tracker: Tracker) -> None:
    everything = bytes(range(256)) * 1_024
    await tracker.commit([kept(0, everything)])
    assert await whole(tracker) == [(0, everything)]


async def test_pages_hold_at_most_the_limit_but_one_piece(tracker: Tracker) -> None:
    await tracker.commit([kept(10 * i, b"0123456789") for i in range(10)])
    assert [[piece.offset for piece in page] for page in await pages(tracker, 25)] == [
        [0, 10],
        [20, 30],
        [40, 50],
        [60, 70],
        [80, 90],
    ]
    assert [[len(piece.data) for piece in page] for page in await pages(tracker, 1)] == [[10]] * 10
    assert [sum(len(piece.data) for piece in page) for page in await pages(tracker, 1_000)] == [100]


async def test_attempts_and_streams_are_kept_apart(tracker: Tracker) -> None:
    await tracker.commit([run_added(2)])
    await tracker.commit(
        [
            kept(0, b"out"),
            kept(0, b"err", stream=STDERR),
            kept(0, b"second", attempt=2),
            kept(0, b"other task", number=1),
            kept(0, b"other run", run_id=2),
        ]
    )
    assert await whole(tracker) == [(0, b"out")]
    assert await whole(tracker, stream=STDERR) == [(0, b"err")]
    assert await whole(tracker, attempt=2) == [(0, b"second")]
    assert await whole(tracker, number=1) == [(0, b"other task")]
    assert await whole(tracker, run_id=2) == [(0, b"other run")]


def test_any_pieces_of_a_stream_read_as_that_stream(kind: TrackerKind, examples: Examples) -> None:
    stream = bytes(i * 7 % 251 for i in range(64))

    async def keep(stretches: list[tuple[int, int]], limit: int, begin: int) -> None:
        tracker, run_id = examples.tracker, examples.run_id()
        pieces = [kept(start, stream[start : start + length], run_id=run_id) for start, length in stretches]
        await tracker.commit([run_added(run_id), *pieces])
        read = {
            piece.offset + i: byte
            for page in await pages(tracker, limit, offset=begin, run_id=run_id)
            for piece in page
            for i, byte in enumerate(piece.data)
        }
        written = {i for start, length in stretches for i in range(start, min(start + length, len(stream))) if i >= begin}
        assert read == {i: stream[i] for i in written}

    @settings(max_examples=kind.examples, deadline=None, database=None)
    @given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 20)), max_size=12), st.integers(1, 40), st.integers(0, 70))
    def property_(stretches: list[tuple[int, int]], limit: int, begin: int) -> None:
        examples.run(keep(stretches, limit, begin))

    property_()
