"""Commands of tasks on disk: they are the same as in memory, and a disk that fails does no harm."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.open_files import nameless

from daggyr_server.driver import spilled as module
from daggyr_server.driver.spilled import SpilledTasks
from daggyr_server.trackers.base import LostTracker


def files(folder: Path) -> list[Path]:
    """Return this process's open files without a name that were made in `folder`."""
    return nameless(os.getpid(), folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    monkeypatch.setattr(module, "SHARED", 2)
    monkeypatch.setattr(module, "SHARED_BYTES", 20)


@given(
    details=st.lists(st.sampled_from([b"", b"one", b"two", b"three"]) | st.binary(max_size=300), max_size=40),
    chunk=st.integers(1, 400),
    shared=st.integers(0, 3),
    block=st.integers(0, 500),
    order=st.randoms(use_true_random=False),
)
def test_it_gives_back_what_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, details: list[bytes], chunk: int, shared: int, block: int, order: Random
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk)
        patch.setattr(module, "SHARED", shared)
        patch.setattr(module, "BLOCK_BYTES", block)
        made = SpilledTasks(tmp_path_factory.getbasetemp())
        for each in details:
            made.append(each)
        assert [made[index] for index in range(len(made))] == details
        indexes = [index for index in range(len(made)) for _ in range(2)]
        order.shuffle(indexes)
        assert all(made[index] == details[index] for index in indexes)


@pytest.mark.usefixtures("small_chunks")
def test_the_file_has_no_name_and_goes_with_it(folder: Path) -> None:
    made = SpilledTasks(folder)
    made.append(b"x" * 99)
    assert not files(folder)
    made.append(b"y")
    assert len(files(folder)) == 1
    assert not list(folder.iterdir())
    del made
    gc.collect()
    assert not files(folder)


@pytest.mark.usefixtures("small_chunks")
def test_only_so_many_files_are_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While as many files are open as may be, further commands stay in memory. A place that becomes free is taken again."""
    monkeypatch.setattr(module, "MAX_FILES", 2 + len(module._open))

    def made(mark: bytes) -> SpilledTasks:
        one = SpilledTasks(folder)
        for _ in range(5):
            one.append(mark * 90)
        return one

    shelves = [made(b"a"), made(b"b"), made(b"c")]
    assert len(files(folder)) == 2
    assert [each[4] for each in shelves] == [b"a" * 90, b"b" * 90, b"c" * 90]
    del shelves[0]
    gc.collect()
    shelves.append(made(b"d"))
    assert len(files(folder)) == 2
    assert shelves[-1][0] == b"d" * 90


@pytest.mark.usefixtures("small_chunks")
def test_equal_ones_are_there_once(folder: Path) -> None:
    made = SpilledTasks(folder)
    for _ in range(100):
        made.append(b"0123456789")
    (file,) = files(folder)
    assert file.stat().st_size == 10


@pytest.mark.usefixtures("small_chunks")
def test_without_a_folder_all_stays_in_memory() -> None:
    made = SpilledTasks(None)
    for number in range(100):
        made.append(bytes([number]) * 50)
    assert made[99] == bytes([99]) * 50


@pytest.mark.usefixtures("small_chunks")
def test_a_disk_that_takes_no_more(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that the disk took are read from it, and all others stay in memory. This is logged once."""
    write, room = os.pwrite, 130

    def little(file: int, data: memoryview, offset: int) -> int:
        if offset >= room:
            raise OSError(28, "No space left on device")
        return write(file, data[: room - offset], offset)

    monkeypatch.setattr(os, "pwrite", little)
    made = SpilledTasks(folder)
    details = [bytes([number]) * 50 for number in range(20)]
    with caplog.at_level(logging.WARNING):
        for each in details:
            made.append(each)
    assert [made[index] for index in range(20)] == details
    assert len(files(folder)) == 1
    (record,) = caplog.records
    assert str(folder) in record.getMessage() and "No space left on device" in record.getMessage()


@pytest.mark.usefixtures("small_chunks")
def test_a_folder_that_is_not_there(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = SpilledTasks(folder / "none")
    made.append(b"x" * 200)
    assert made[0] == b"x" * 200
    assert "No such file or directory" in caplog.text


@pytest.mark.usefixtures("small_chunks")
def test_a_file_that_was_cut_is_a_lost_tracker(folder: Path) -> None:
    made = SpilledTasks(folder)
    made.append(b"x" * 200)
    (file,) = files(folder)
    os.truncate(file, 150)
    with pytest.raises(LostTracker, match=f"from {folder} any more"):
        made[0]
