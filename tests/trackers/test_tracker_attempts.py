"""Attempts that ended: what was recorded comes back field by field."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from property_examples import Examples
from tracker_kinds import TrackerKind
from tracker_records import DAY, recorded, run_added

from daggyr.v1.task_pb2 import AttemptOutcome, AttemptResult, OutputSummary
from daggyr_server.trackers.base import MAX_ATTEMPTS, Tracker

OUTCOMES = [outcome for outcome in AttemptOutcome.values() if outcome != AttemptOutcome.ATTEMPT_OUTCOME_UNSPECIFIED]


def time_at(microseconds: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(microseconds)
    return timestamp


def check_same(stored: AttemptResult, given: AttemptResult) -> None:
    """Both results have the same fields with the same values. CPU seconds are compared to the microsecond."""
    assert stored.HasField("cpu_seconds") == given.HasField("cpu_seconds")
    assert stored.cpu_seconds == pytest.approx(given.cpu_seconds, abs=1e-6)
    stored.ClearField("cpu_seconds")
    rest = AttemptResult()
    rest.CopyFrom(given)
    rest.ClearField("cpu_seconds")
    assert stored == rest


async def check_comes_back(tracker: Tracker, given: AttemptResult) -> None:
    await tracker.commit([recorded(given)])
    (stored,) = await tracker.attempts(1, 0)
    check_same(stored.result, given)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"exit_code": 0},
        {"exit_code": 3},
        {"exit_code": -1},
        {"exit_code": -(2**31)},
        {"exit_code": 2**31 - 1},
        {"signal": 9},
        {"signal": 0},
        {"cpu_seconds": 0.0},
        {"cpu_seconds": 0.000001},
        {"cpu_seconds": 123_456.789012},
        {"max_rss_bytes": 0},
        {"max_rss_bytes": 2**64 - 1},
        {"notes": [""]},
        {"notes": ["no such program: 'x'", "späť\n\x01"]},
        {"stdout": OutputSummary()},
        {"stderr": OutputSummary(size_bytes=5)},
        {"stdout": OutputSummary(size_bytes=2**63, cut_offset=524_288, cut_bytes=2**63 - 2**20)},
        {"start_time": time_at(0)},
        {"start_time": time_at(1)},
        {"start_time": time_at(DAY * 1_000_000 + 1), "stop_time": time_at(DAY * 1_000_000 + 999_999)},
        {"stop_time": time_at(253_402_300_799_999_999)},
        {"stop_time": time_at(8_632_191_687_084_477)},  # in 2243, where a double of seconds does not hold microseconds
        {"start_time": Timestamp(seconds=2**62)},
        {"cpu_seconds": float("inf")},
    ],
    ids=str,
)
async def test_absent_is_not_zero(tracker: Tracker, fields: dict[str, object]) -> None:
    await tracker.commit([run_added()])
    await check_comes_back(tracker, AttemptResult(outcome=AttemptOutcome.FAILED, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=AttemptOutcome.Name)
async def test_every_outcome_comes_back(tracker: Tracker, outcome: AttemptOutcome) -> None:
    await tracker.commit([run_added()])
    await check_comes_back(tracker, AttemptResult(outcome=outcome))


TIMES = st.none() | st.integers(0, 253_402_300_799_999_999).map(time_at)
SUMMARIES = st.none() | st.builds(
    OutputSummary, size_bytes=st.integers(0, 2**40), cut_offset=st.integers(0, 2**20), cut_bytes=st.integers(0, 2**40)
)
RESULTS = st.builds(
    AttemptResult,
    outcome=st.sampled_from(OUTCOMES),
    exit_code=st.none() | st.integers(-(2**31), 2**31 - 1),
    signal=st.none() | st.integers(0, 64),
    start_time=TIMES,
    stop_time=TIMES,
    cpu_seconds=st.none() | st.floats(0, 1e7),
    max_rss_bytes=st.none() | st.integers(0, 2**64 - 1),
    notes=st.lists(st.text(max_size=20), max_size=2),
    stdout=SUMMARIES,
    stderr=SUMMARIES,
)


def test_any_results_come_back(kind: TrackerKind, examples: Examples) -> None:
    async def keep(results: list[AttemptResult]) -> None:
        tracker, run_id = examples.tracker, examples.run_id()
        # The results are attempts of three tasks in turn.
        ends = [recorded(result, run_id=run_id, number=i % 3, attempt=i // 3 + 1) for i, result in enumerate(results)]
        await tracker.commit([run_added(run_id), *ends])
        for number in range(3):
            stored = await tracker.attempts(run_id, number)
            assert [entry.attempt for entry in stored] == [i + 1 for i in range(len(stored))]
            for entry, result in zip(stored, results[number::3], strict=True):
                check_same(entry.result, result)

    @settings(max_examples=kind.examples, deadline=None, database=None)
    @given(st.lists(RESULTS, max_size=8))
    def property_(results: list[AttemptResult]) -> None:
        examples.run(keep(results))

    property_()


async def test_attempts_of_a_task_come_oldest_first_with_their_hosts(tracker: Tracker) -> None:
    lost = AttemptResult(outcome=AttemptOutcome.LOST, notes=["its agent went away"])
    await tracker.commit([run_added(), recorded(lost, attempt=1, host="h1", host_name="one", assign_time=DAY + 0.000001)])
    await tracker.commit(
        [
            recorded(AttemptResult(outcome=AttemptOutcome.RETURNED), attempt=2, host="h2", host_name="two"),
            recorded(number=7, attempt=1, host="h1", host_name="renamed"),
            recorded(AttemptResult(outcome=AttemptOutcome.SUCCEEDED, exit_code=0), attempt=3, host="h2", host_name="two"),
        ]
    )
    stored = await tracker.attempts(1, 0)
    assert [(entry.attempt, entry.host, entry.host_name, entry.result.outcome) for entry in stored] == [
        (1, "h1", "one", AttemptOutcome.LOST),
        (2, "h2", "two", AttemptOutcome.RETURNED),
        (3, "h2", "two", AttemptOutcome.SUCCEEDED),
    ]
    assert stored[0].assign_time == pytest.approx(DAY + 0.000001, abs=5e-7)
    assert [entry.host_name for entry in await tracker.attempts(1, 7)] == ["renamed"]


async def test_tasks_and_runs_that_are_not_known_have_no_attempts(tracker: Tracker) -> None:
    assert await tracker.attempts(1, 0) == []
    await tracker.commit([run_added(), recorded(number=5)])
    assert [await tracker.attempts(1, number) for number in (0, 4, 6, 2**32 - 1)] == [[], [], [], []]
    assert await tracker.attempts(2, 5) == []


async def test_runs_are_kept_apart(tracker: Tracker) -> None:
    await tracker.commit([run_added(1), run_added(2)])
    await tracker.commit([recorded(run_id=2, attempt=4), recorded(run_id=1, attempt=9)])
    assert [entry.attempt for entry in await tracker.attempts(1, 0)] == [9]
    assert [entry.attempt for entry in await tracker.attempts(2, 0)] == [4]


async def test_attempts_are_read_a_page_at_a_time_from_the_last(tracker: Tracker) -> None:
    await tracker.commit([run_added()])
    await tracker.commit([recorded(attempt=attempt) for attempt in range(1, 2501)])
    await tracker.commit([recorded(number=1, attempt=1)])
    found: list[int] = []
    before = None
    while page := [stored.attempt for stored in await tracker.attempts(1, 0, before=before, limit=700)]:
        assert len(page) <= 700
        found = page + found
        before = page[0]
    assert found == list(range(1, 2501))
    assert [stored.attempt for stored in await tracker.attempts(1, 0, before=4, limit=2)] == [2, 3]
    assert [stored.attempt for stored in await tracker.attempts(1, 0, limit=1)] == [2500]
    assert len(await tracker.attempts(1, 0)) == MAX_ATTEMPTS
    assert await tracker.attempts(1, 0, before=1) == []
    assert await tracker.attempts(2, 0, before=5, limit=5) == []


async def test_results_of_many_attempts_are_read_at_once(tracker: Tracker) -> None:
    def wrote(size: int) -> AttemptResult:
        return AttemptResult(outcome=AttemptOutcome.SUCCEEDED, exit_code=0, stdout=OutputSummary(size_bytes=size))

    plain = AttemptResult(outcome=AttemptOutcome.FAILED, exit_code=3)
    records = [recorded(wrote(10 * number + attempt), number=number, attempt=attempt) for number in (4, 0) for attempt in (1, 2)]
    await tracker.commit([run_added(), run_added(2), *records, recorded(plain, number=1), recorded(wrote(9), run_id=2)])
    asked = [(0, 2), (4, 1), (1, 1), (1, 2), (7, 1), (0, 3)]
    assert await tracker.results(1, asked) == {(0, 2): wrote(2), (4, 1): wrote(41), (1, 1): plain}
    assert await tracker.results(1, []) == await tracker.results(3, asked) == {}
    await tracker.delete([1], 100)
    assert await tracker.results(1, asked) == {}
