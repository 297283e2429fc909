"""Where another life of a tracker begins to give out run ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daggyr_server.driver.another_life import IDS_A_SECOND, IDS_LEFT_OUT, ids_after


@given(st.integers(1, 2**53), st.floats(0, 1e9), st.floats(5, 1e6))
def test_a_copy_that_is_restored_twice_makes_two_lives_with_ids_of_their_own(
    next_run_id: int, first: float, between: float
) -> None:
    """The first of them gives out as many ids as may be expected, until the copy is restored again."""
    begun = ids_after(next_run_id, first)
    assert begun >= next_run_id + IDS_LEFT_OUT + IDS_A_SECOND * int(first)
    assert ids_after(next_run_id, first + between) >= begun + IDS_A_SECOND * int(between) - 100


@given(st.integers(1, 2**53), st.floats(0, 1e9))
def test_ids_begin_after_a_whole_hundred(next_run_id: int, seconds: float) -> None:
    assert ids_after(next_run_id, seconds) % 100 == 1
    assert ids_after(next_run_id, seconds + 5) > ids_after(next_run_id, seconds)
