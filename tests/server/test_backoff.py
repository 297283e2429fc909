"""Pauses between tries: doubled up to the longest, begun anew after a success, and shortened at random by the jitter at most."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daggyr.backoff import Backoff


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(0.1, 0.5)
    assert [backoff.next() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert [backoff.next(longest=1.5) for _ in range(3)] == [1.0, 1.5, 1.5], "this once"
    assert backoff.next() == 0.5
    backoff.reset()
    assert [backoff.next(), backoff.next()] == [0.1, 0.2]


def test_the_longest_counts_where_the_shortest_is_longer() -> None:
    assert [Backoff(90, 60).next() for _ in range(2)] == [60, 60]


@given(st.floats(0, 1), st.integers(0, 2_000))
def test_jitter_only_shortens(jitter: float, tries: int) -> None:
    backoff = Backoff(0.25, 30, jitter=jitter)
    for _ in range(tries % 50):
        backoff.next()
    whole = min(30, 0.25 * 2 ** (tries % 50))
    assert (1 - jitter) * whole * (1 - 1e-9) <= backoff.next() <= whole
