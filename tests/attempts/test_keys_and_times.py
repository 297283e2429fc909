"""Keys of attempts in all their forms, and times as messages: each form leads back to what it was made of."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from daggyr.attempts.keys import Ident, ident_in, ident_of, key_of, name_of
from daggyr.attempts.times import duration, seconds_of, timestamp
from daggyr.v1.task_pb2 import AttemptKey

idents = st.tuples(*(st.integers(0, 2**bits - 1) for bits in (64, 32, 32, 64)))


@given(idents)
def test_each_form_of_a_key_leads_back(ident: Ident) -> None:
    assert ident_of(key_of(ident)) == ident_in(name_of(ident)) == ident


def test_a_key_is_what_it_says() -> None:
    assert key_of((7, 0, 2, 255)) == AttemptKey(run_id=7, task_number=0, attempt=2, life=255)
    assert name_of((7, 0, 2, 255)) == "7-0-2-ff"


def test_a_key_without_a_life_has_the_name_that_it_had_before_there_were_lives() -> None:
    assert name_of((7, 0, 2, 0)) == "7-0-2"
    assert ident_in("7-0-2") == (7, 0, 2, 0)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1-2",
        "1-2-3-0",
        "1-2-3-04",
        "1-2-3-A",
        f"1-2-3-{2**64:x}",
        "1-2-3-4-5",
        "-1-2-3",
        "1-2-x",
        "1-2-3\n",
        "1-2-٣",
        f"{10**20}-0-1",
        "fence",
    ],
)
def test_what_is_no_attempts_name(name: str) -> None:
    assert ident_in(name) is None


@given(st.integers(0, 2**62))
def test_points_of_time(nanoseconds: int) -> None:
    expected = Timestamp()
    expected.FromNanoseconds(nanoseconds)
    assert timestamp(nanoseconds) == expected
    assert seconds_of(timestamp(nanoseconds)) == pytest.approx(nanoseconds / 1e9)


@given(st.integers(0, 10**9 * 86_400))
def test_durations(nanoseconds: int) -> None:
    assert duration(nanoseconds / 1e9).ToNanoseconds() == pytest.approx(nanoseconds, abs=16_384)
    assert seconds_of(duration(nanoseconds / 1e9)) == pytest.approx(nanoseconds / 1e9)


def test_what_is_not_set_is_nothing() -> None:
    assert seconds_of(Duration()) == 0
    assert duration(0.1) == Duration(nanos=100_000_000)
    assert duration(1.9999999999) == Duration(seconds=2)
