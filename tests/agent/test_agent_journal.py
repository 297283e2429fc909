"""The journal by itself: whatever happens to its file, what can be read of it is true, and it is never an error."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_coordinator import key

from daggyr.v1.task_pb2 import SUCCEEDED, AttemptResult, AttemptUpdate
from daggyr_agent import journal as module
from daggyr_agent.journal import Journal

MIB = 1 << 20


def update(number: int, note: str = "") -> AttemptUpdate:
    return AttemptUpdate(key=key(number), finished=AttemptResult(outcome=SUCCEEDED, notes=[note] if note else []))


def numbers(journal: Journal) -> list[int]:
    """The task numbers of the results that are in it."""
    return [update.key.task_number for update, _ in journal.results()]


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    journal.begin()
    yield journal
    journal.close()


def test_the_next_process_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert numbers(Journal(path)) == []
    with opened(path) as journal:
        journal.belongs_to("größe", 2**40, life=7)
        journal.runs(17, 2**40)
        journal.runs(18, 5)
        journal.ended(18, 5)
        for number in range(5):
            journal.finished(update(number, note="größe"), 10 * number)
        journal.acknowledged(2)
        read = Journal(path)
        assert (read.tracker_id, read.epoch) == ("größe", 2**40)
        assert read.running == {17: 2**40, 18: 5}
        assert read.results() == [(update(number, note="größe"), 10 * number) for number in (2, 3, 4)]
        assert read.output_numbers() == {20, 30, 40}
    # Taken up, it holds the same, but for what ran.
    with opened(path) as again:
        assert (numbers(again), again.running) == ([2, 3, 4], {})
        again.acknowledged(3)
        assert numbers(Journal(path)) == []


def test_what_is_written_together_is_there_at_the_end_of_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with opened(path) as journal:
        size = path.stat().st_size
        with pytest.raises(ZeroDivisionError), journal.together():
            for number in range(3):
                journal.finished(update(number), number)
            journal.runs(17, 5)
            assert path.stat().st_size == size
            raise ZeroDivisionError
        with journal.together():
            pass
        journal.acknowledged(1)
        read = Journal(path)
        assert (numbers(read), read.running) == ([1, 2], {17: 5})


def test_results_for_another_tracker_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with opened(path) as journal:
        journal.belongs_to("one", 1, life=7)
        journal.finished(update(1), 1)
        journal.belongs_to("one", 2, life=7)
        assert numbers(Journal(path)) == [1]
        journal.belongs_to("two", 1, life=7)
        journal.finished(update(2), 2)
        read = Journal(path)
        assert (read.tracker_id, read.epoch, numbers(read), read.output_numbers()) == ("two", 1, [2], {2})


def test_it_is_bounded_by_what_is_not_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    largest = 0
    with opened(path) as journal:
        journal.belongs_to("one", 1, life=7)
        journal.runs(17, 4)
        for number in range(60_000):
            journal.runs(100 + number, 5)
            journal.ended(100 + number, 5)
            journal.finished(update(number), number)
            if number % 64 == 63:
                journal.acknowledged(60)
                largest = max(largest, path.stat().st_size)
        kept = numbers(journal)
        read = Journal(path)
        assert numbers(read) == kept == list(range(60_000 - len(kept), 60_000))
        assert (read.tracker_id, read.running[17]) == ("one", 4)
    assert len(kept) == 60_000 - 60_000 // 64 * 60
    assert 0.9 * MIB < largest < 1.1 * MIB
    assert list(tmp_path.iterdir()) == [path]


def written(path: Path) -> tuple[bytes, list[tuple[int, list[int]]]]:
    """A journal's content, and which results it holds at which sizes of the file."""
    states = []
    with opened(path) as journal:

        def note() -> None:
            states.append((path.stat().st_size, numbers(journal)))

        note()
        journal.belongs_to("one", 1, life=7)
        note()
        for number in range(6):
            journal.finished(update(number), number)
            note()
            journal.runs(number + 1, number)
            if number % 2:
                journal.acknowledged(1)
                note()
    return path.read_bytes(), states


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[tuple[int, list[int]]]]:
    path = tmp_path_factory.mktemp("journal") / "journal"
    return path, *written(path)


@given(st.data())
def test_torn_end_is_passed_over(example: tuple[Path, bytes, list[tuple[int, list[int]]]], data: st.DataObject) -> None:
    path, content, states = example
    size = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:size])
    expected = [held for length, held in states if length <= size]
    assert numbers(Journal(path)) == (expected[-1] if expected else [])
    assert path.exists()


@given(st.data())
def test_damage_is_set_aside_and_what_comes_before_it_is_right(
    example: tuple[Path, bytes, list[tuple[int, list[int]]]], data: st.DataObject
) -> None:
    path, content, states = example
    place = data.draw(st.integers(0, len(content) - 1))
    piece = data.draw(st.binary(min_size=1, max_size=40))
    damaged = content[:place] + piece + content[place + len(piece) :]
    path.write_bytes(damaged)
    aside = path.with_name("journal.damaged")
    aside.unlink(missing_ok=True)
    read = numbers(Journal(path))
    if damaged == content:
        return
    before = [held for length, held in states if length <= place]
    # A length that has become too long looks like a torn end; else the file is kept for whoever wants to look at it.
    assert (aside.read_bytes() if aside.exists() else path.read_bytes()) == damaged
    assert read == (before[-1] if before else [])


@given(st.binary(max_size=300))
def test_what_is_no_journal_is_set_aside(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    path.write_bytes(content)
    with opened(path) as journal:
        assert (numbers(journal), journal.running, journal.tracker_id) == ([], {}, "")
        journal.finished(update(1), 1)
        assert numbers(Journal(path)) == [1]


def test_journal_of_a_later_format_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_FORMAT", 2)
        with opened(path) as journal:
            journal.finished(update(1), 1)
    assert numbers(Journal(path)) == []
    assert path.with_name("journal.damaged").exists()
    assert "it has format 2, and this agent reads format 1" in caplog.text


@contextmanager
def full(path: Path, room: int) -> Iterator[None]:
    """Files cannot grow beyond the journal's size and some bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 20])
def test_full_disk_is_said_once_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    path = tmp_path / "journal"
    caplog.set_level(logging.INFO)
    with opened(path) as journal:
        journal.belongs_to("one", 1, life=7)
        journal.finished(update(1), 1)
        with full(path, room):
            for number in range(2, 7):
                journal.finished(update(number), number)
            journal.acknowledged(1)
            assert numbers(Journal(path)) == [1], "what had been written is there, and no more"
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        journal.finished(update(7), 7)
        assert numbers(Journal(path)) == numbers(journal) == [2, 3, 4, 5, 6, 7]
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert list(tmp_path.iterdir()) == [path]


def test_begin_on_a_full_disk_keeps_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    path = tmp_path / "journal"
    with opened(path) as journal:
        journal.finished(update(1), 1)
    with full(path, -10), opened(path) as journal:
        assert numbers(Journal(path)) == [1]
        journal.finished(update(2), 2)
    assert numbers(Journal(path)) == [1]
