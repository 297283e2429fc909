"""What the memory tracker promises beyond the suite: its memory is bounded, and an attempt costs little."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator

import pytest
from tracker_records import DAY, kept, recorded, run_added, whole

from daggyr.v1.task_pb2 import STDERR, AttemptOutcome, AttemptResult
from daggyr_server.trackers.base import Tracker
from daggyr_server.trackers.loader import make_tracker
from daggyr_server.trackers.memory.tracker import MAX_OUTPUT_BYTES

CHUNK = bytes(256 * 1024)  # one object, however often it is kept: the tests need no 256 MiB themselves


@pytest.fixture
async def memory() -> AsyncIterator[Tracker]:
    tracker = make_tracker("memory")
    await tracker.open()
    await tracker.commit([run_added(1), run_added(2)])
    yield tracker
    await tracker.close()


async def size_of(tracker: Tracker, **of: int) -> int:
    return sum(len(data) for _, data in await whole(tracker, **of))


async def test_the_oldest_streams_go_first_and_whole(memory: Tracker) -> None:
    assert MAX_OUTPUT_BYTES == 256 * 1024 * 1024
    each = 4 * len(CHUNK)
    number = 2 * MAX_OUTPUT_BYTES // each
    for attempt in range(number):
        await memory.commit([kept(i * len(CHUNK), CHUNK, number=attempt % 7, attempt=attempt) for i in range(4)])
    sizes = [await size_of(memory, number=attempt % 7, attempt=attempt) for attempt in range(number)]
    assert set(sizes) == {0, each}, "a stream is there whole, or not at all"
    assert sizes == sorted(sizes), "an older stream is there while a newer one is gone"
    assert MAX_OUTPUT_BYTES - 2 * each < sum(sizes) <= MAX_OUTPUT_BYTES


async def test_streams_of_one_attempt_go_one_by_one_across_runs(memory: Tracker) -> None:
    half = MAX_OUTPUT_BYTES // 2 // len(CHUNK)
    await memory.commit([kept(0, b"first")])
    await memory.commit([kept(i * len(CHUNK), CHUNK, run_id=2) for i in range(half)])
    await memory.commit([kept(0, b"errors", stream=STDERR)])
    assert await whole(memory) == [(0, b"first")]
    await memory.commit([kept(i * len(CHUNK), CHUNK, run_id=2, number=1) for i in range(half)])
    assert await whole(memory) == []
    assert await whole(memory, run_id=2) == []
    assert await whole(memory, stream=STDERR) == [(0, b"errors")]
    assert await size_of(memory, run_id=2, number=1) == half * len(CHUNK)


async def test_a_stream_above_the_bound_alone_does_not_stay(memory: Tracker) -> None:
    count = MAX_OUTPUT_BYTES // len(CHUNK) + 1
    await memory.commit([kept(i * len(CHUNK), CHUNK) for i in range(count)])
    assert await size_of(memory) <= MAX_OUTPUT_BYTES
    await memory.commit([kept(0, b"next", number=1)])
    assert await whole(memory, number=1) == [(0, b"next")]


async def test_what_comes_twice_counts_once(memory: Tracker) -> None:
    await memory.commit([kept(0, b"first")])
    for _ in range(3 * MAX_OUTPUT_BYTES // len(CHUNK)):
        await memory.commit([kept(0, CHUNK, number=1)])
    assert await whole(memory) == [(0, b"first")]


async def test_the_bound_counts_what_small_streams_cost(memory: Tracker) -> None:
    """20,000 streams of 10 bytes are counted against the bound for what Python takes for them, within a third."""
    count = 20_000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await memory.commit([kept(0, b"%010d" % number, number=number) for number in range(count)])
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # Large streams are added until the first small one is dropped: all together have reached the bound then.
    large = 0
    while await whole(memory, number=0):
        await memory.commit([kept(i * len(CHUNK), CHUNK, run_id=2, number=large) for i in range(4)])
        large += 1
    counted = MAX_OUTPUT_BYTES - large * 4 * len(CHUNK)
    assert 2 / 3 * taken - 4 * len(CHUNK) < counted < 4 / 3 * taken + 4 * len(CHUNK)


async def test_an_attempt_costs_about_60_bytes(memory: Tracker) -> None:
    count = 12_500
    result = AttemptResult(outcome=AttemptOutcome.SUCCEEDED, exit_code=0, cpu_seconds=0.001234, max_rss_bytes=1_500_000)
    result.start_time.FromMicroseconds(DAY * 1_000_000 + 1)
    result.stop_time.FromMicroseconds(DAY * 1_000_000 + 2_001)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for first in range(0, count, 500):
            await memory.commit([recorded(result, number=number) for number in range(first, first + 500)])
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / count < 66
    assert (peak - before) / count < 75
    for number in (0, 1, count // 2, count - 1):
        (stored,) = await memory.attempts(1, number)
        assert stored.result == result
