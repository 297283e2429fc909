"""The changes of runs: which of them are kept, for how long, and that no number is given twice."""

from __future__ import annotations

import gc

import pytest

from daggyr_server.driver import changes as module
from daggyr_server.driver.changes import Changes


def logs() -> int:
    """Return how many runs' changes are in memory."""
    return sum(type(each) is module._Log for each in gc.get_objects())


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> Changes:
    monkeypatch.setattr(module, "KEPT_ENDED", 3)
    return Changes(epoch=1)


def test_changes_of_runs_that_ended_long_ago_are_not_kept(changes: Changes) -> None:
    before = logs()
    for run_id in range(1, 101):
        changes.publish({run_id: [0, 1]})
        changes.ended(run_id)
    assert logs() - before == 3


def test_numbers_go_on_after_changes_were_forgotten(changes: Changes) -> None:
    first = changes.seq(1)
    changes.publish({1: [7]})
    changes.publish({1: [8]})
    newest = changes.seq(1)
    for run_id in range(1, 6):
        changes.ended(run_id)
    assert changes.seq(1) == newest
    assert changes.after(1, newest) == []
    assert changes.after(1, first) is None and changes.after(1, newest - 1) is None
    changes.publish({1: [9]})
    assert changes.seq(1) == newest + 1
    assert changes.after(1, newest) == [9]
    assert changes.after(1, newest - 1) is None


def test_a_run_that_ends_again_is_kept_from_then_on(changes: Changes) -> None:
    changes.publish({1: [7]})
    for run_id in (1, 2, 3, 1, 4, 5):
        changes.ended(run_id)
    assert changes.after(1, changes.seq(1) - 1) == [7]


def test_nothing_is_kept_of_a_run_that_was_taken_away(changes: Changes) -> None:
    first = changes.seq(1)
    changes.publish({1: [7]})
    changes.ended(1)
    changes.deleted(1)
    assert changes.seq(1) == first
