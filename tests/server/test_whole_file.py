"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daggyr.whole_file import write_whole


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_takes_the_place_of_another(tmp_path: Path, synced: bool) -> None:
    path = tmp_path / "id"
    path.write_text("before")
    path.chmod(0o644)
    with path.open() as before:
        write_whole(path, b"after\n", synced=synced)
        assert before.read() == "before", "who has it open keeps what he has"
    assert path.read_bytes() == b"after\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_of_several_who_make_a_file_one_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "token"

    def make(number: int) -> bool:
        try:
            write_whole(path, b"%d" % number, replace=False)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(64)))
    assert made.count(True) == 1
    assert int(path.read_text()) == made.index(True)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    path = tmp_path / "id"
    path.write_text("before")
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)  # type: ignore[call-overload]
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"after", synced=True)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_is_as_told_less_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "ready", b"", mode=0o666)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ready").stat().st_mode) == 0o640
