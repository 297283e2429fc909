"""Files that a sqlite tracker refuses: it says what to do and leaves them as they are."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from sqlite_files import contents, copy_as_a_crash_leaves_it, database, names, opened, refused
from tracker_records import recorded, run_added

from daggyr_server.trackers.sql.statements import migrations


def damage(file: Path, offset: int, size: int) -> None:
    with open(file, "r+b") as damaged:
        damaged.seek(offset)
        damaged.write(b"\xff" * size)


async def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    await refused(tmp_path / "no" / "state.db", re.escape(f"mkdir -p {tmp_path}/no"))


async def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    await refused(folder, "is a folder: name a file in it")
    assert names(tmp_path) == {"folder"}, "a lock was left beside it"


@pytest.mark.parametrize(
    "content", [b"tasks: {}\n", b"SQLite format 3\0 but no more of it", bytes(8_192)], ids=["yaml", "its head", "zeros"]
)
def test_a_file_of_something_else(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    asyncio.run(refused(file, "no sqlite database|damaged"))
    assert contents(file) == {file.name: content}


async def test_what_is_surely_something_else_gets_no_lock_beside_it(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("tasks: {}\n")
    os.mkfifo(tmp_path / "pipe")
    await refused(tmp_path / "spec.yaml", "is no sqlite database")
    await refused(tmp_path / "pipe", "is a device, a pipe or a socket: name a file")
    await refused(Path("/dev/null"), "is a device, a pipe or a socket: name a file")
    assert names(tmp_path) == {"spec.yaml", "pipe"}


async def test_a_database_of_another_program(file: Path) -> None:
    with database(file) as connection:
        connection.execute("CREATE TABLE mine (x)")
    await refused(file, "database of another program; name another file")


async def test_a_file_that_another_program_is_writing(file: Path) -> None:
    async with opened(file):
        pass
    with database(file) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        await refused(file, "another program is writing to .*: try again once that has ended$")


async def test_a_newer_version(file: Path) -> None:
    async with opened(file):
        pass
    with database(file) as connection:
        connection.execute("PRAGMA user_version = 99")
    await refused(file, rf"made by a newer DaggyR \(its tables are version 99, this one knows {len(migrations('sqlite'))}\)")


async def large(file: Path) -> None:
    async with opened(file) as tracker:
        for first in range(0, 3_000, 500):
            more = [recorded(number=number) for number in range(first, first + 500)]
            await tracker.commit([*([run_added()] if first == 0 else []), *more])


@pytest.mark.parametrize("page", [0, 1, 3, 30])
async def test_a_damaged_file(file: Path, page: int) -> None:
    await large(file)
    damage(file, page * 4_096 + 100 * (page == 0), 3_000)
    await refused(file, "damaged.*left as it is")


@pytest.mark.parametrize("size", [100, 4_096, 40_000])
async def test_a_file_that_was_cut(file: Path, size: int) -> None:
    await large(file)
    os.truncate(file, size)
    await refused(file, "damaged.*left as it is")


async def test_a_damaged_file_with_a_log_that_a_crash_left(file: Path, tmp_path: Path) -> None:
    await large(file)
    copy = tmp_path / "copy" / "state.db"
    async with opened(file) as tracker:
        await tracker.commit([recorded(number=9_999)])
        copy_as_a_crash_leaves_it(file, copy)
    damage(copy, 20 * 4_096, 4_096)
    await refused(copy, "damaged")


@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-lock"])
async def test_a_file_that_others_may_write_is_refused(file: Path, ending: str) -> None:
    async with opened(file):
        pass
    path = file.with_name(file.name + ending)
    path.touch()
    path.chmod(0o620)
    await refused(file, rf"{re.escape(path.name)} may be written by others \(mode 0620\): chmod go-w")
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
        await refused(file, rf"{re.escape(path.name)} belongs to another user \(uid 4711\)")
        os.chown(path, 0, -1)
    path.chmod(0o644)
    async with opened(file):
        pass
