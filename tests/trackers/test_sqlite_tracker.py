"""The file of a sqlite tracker: how it is made, what is refused, what happens when the disk is full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.waiting import DEADLINE
from tracker_kinds import IN_VAIN, WAIT
from tracker_records import kept, recorded, run_added, whole

from daggyr_server.core.records import AgentPinned
from daggyr_server.trackers.base import LostTracker, Tracker, TrackerError
from daggyr_server.trackers.loader import make_tracker
from daggyr_server.trackers.sql import statements
from daggyr_server.trackers.sql.sqlite import file as sqlite_file
from daggyr_server.trackers.sql.sqlite import tracker as sqlite
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker
from daggyr_server.trackers.sql.statements import migrations

MEBIBYTE = 1024 * 1024


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@contextlib.asynccontextmanager
async def opened(file: Path, wait: float = WAIT) -> AsyncIterator[Tracker]:
    tracker = SqliteTracker(f"sqlite:{file}", wait=wait)
    try:
        await tracker.open()
        yield tracker
    finally:
        await tracker.close()


@contextlib.contextmanager
def database(file: Path) -> Iterator[sqlite3.Connection]:
    """Another program that looks into the file."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        yield connection


def contents(file: Path) -> dict[str, bytes]:
    """What stands in the file and in its log; what sqlite makes to read a log is none of it."""
    found = {path.name: path.read_bytes() for path in file.parent.glob(f"{file.name}*") if path.is_file()}
    return {name: data for name, data in found.items() if data and not name.endswith("-shm")}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def copy_as_a_crash_leaves_it(file: Path, copy: Path) -> None:
    copy.parent.mkdir()
    for ending in ("", "-wal"):
        copy.with_name(copy.name + ending).write_bytes(file.with_name(file.name + ending).read_bytes())


def damage(file: Path, offset: int, size: int) -> None:
    with open(file, "r+b") as damaged:
        damaged.seek(offset)
        damaged.write(b"\xff" * size)


def replace_by_an_empty_one(file: Path) -> None:
    file.rename(file.with_name("away.db"))
    file.write_bytes(b"")


def mount(*arguments: str | Path) -> bool:
    """Whether that worked: it takes root's rights, and the program."""
    return bool(shutil.which("mount")) and subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", folder], check=True)


async def refused(file: Path, match: str) -> None:
    """It is not opened, with these words, and nothing of it is touched."""
    before = contents(file)
    with pytest.raises(TrackerError, match=match) as raised:
        async with opened(file):
            pass
    assert str(file) in str(raised.value)
    assert contents(file) == before


# -- the file ---------------------------------------------------------------------------------------------------------


async def test_it_is_made_on_first_use_and_nobody_elses(file: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(file) as tracker:
            await tracker.commit([run_added()])
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("state.db", "state.db-wal", "state.db-shm", "state.db-lock"), 0o600)
    assert names(file.parent) == {"state.db", "state.db-lock"}, "the log is in the file after closing"


async def test_its_settings(file: Path) -> None:
    async with opened(file):
        pass
    with database(file) as connection:
        settings = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "auto_vacuum", "user_version", "application_id")
        }
    incremental = 2
    assert settings == {
        "journal_mode": "wal",
        "auto_vacuum": incremental,
        "user_version": len(migrations("sqlite")),
        "application_id": sqlite_file.APPLICATION_ID,
    }
    full = 2
    with contextlib.closing(sqlite_file.SqliteFile(file).connect()) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (full,)


@pytest.mark.parametrize("name", ["with space", "?mode=memory", "per%20cent#x", "späť", "-"])
async def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path / name) as tracker:
        await tracker.commit([run_added()])
    async with opened(tmp_path / name) as tracker:
        assert await tracker.document(1) == b"{}"
    assert (tmp_path / name).stat().st_size > 0


async def test_an_empty_file_is_a_new_tracker(file: Path) -> None:
    with database(file):
        pass
    assert contents(file) == {}
    async with opened(file) as tracker:
        await tracker.commit([run_added()])
    with database(file) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)


async def test_it_shrinks_when_a_run_is_deleted(file: Path) -> None:
    async with opened(file) as tracker:
        await tracker.commit([run_added(1), run_added(2)])
        for number in range(40):
            await tracker.commit([kept(0, bytes(MEBIBYTE // 4), number=number), recorded(number=number)])
            await tracker.commit([kept(0, bytes(1_000), run_id=2, number=number), recorded(run_id=2, number=number)])
        calls = 1
        while await tracker.delete(1, 500):
            calls += 1
        assert calls > 3, "not in slices"
        await tracker.scrub()
        assert len(contents(file)[file.name]) < MEBIBYTE
        await tracker.commit([run_added(3)])
        assert await whole(tracker, run_id=2, number=39) == [(0, bytes(1_000))]
    with database(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# -- what is refused --------------------------------------------------------------------------------------------------


async def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    await refused(tmp_path / "no" / "state.db", re.escape(f"mkdir -p {tmp_path}/no"))


async def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    await refused(folder, "is a folder: name a file in it")
    assert names(tmp_path) == {"folder"}, "a lock was left beside it"


@pytest.mark.parametrize("content", [b"tasks: {}\n", b"SQLite format 3\0 but no more of it", bytes(8_192)], ids=repr)
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


async def test_a_newer_version(file: Path) -> None:
    async with opened(file):
        pass
    with database(file) as connection:
        connection.execute("PRAGMA user_version = 99")
    await refused(file, rf"made by a newer DaggyR \(its tables are version 99, this one knows {len(migrations('sqlite'))}\)")


async def test_a_tracker_of_0_1_learns_of_agents(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it held stays, and keys can be kept from then on."""
    with monkeypatch.context() as patch:
        patch.setattr(statements, "migrations", lambda kind: migrations(kind)[:1])
        async with opened(file) as tracker:
            await tracker.commit([run_added()])
    async with opened(file) as tracker:
        assert await tracker.document(1) == b"{}"
        pin = AgentPinned("id", "one", bytes(32))
        await tracker.commit([pin])
        assert await tracker.pins() == [pin]


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


async def test_a_log_that_a_crash_left_is_taken(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "state.db"
    async with opened(file) as tracker:
        await tracker.commit([run_added(), recorded()])
        copy_as_a_crash_leaves_it(file, copy)
    # The last commit had not reached the disk.
    log = copy.with_name("state.db-wal")
    os.truncate(log, log.stat().st_size - 100)
    async with opened(copy) as tracker:
        assert await tracker.document(1) is None
        await tracker.commit([run_added()])


async def test_a_migration_is_applied_once_and_whole_or_not_at_all(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(file) as tracker:
        await tracker.commit([run_added()])

    def with_second(text: str) -> None:
        monkeypatch.setattr(statements, "migrations", lambda kind: [*migrations(kind), text])

    with_second("CREATE TABLE more (x);\nINSERT INTO missing VALUES (1);")
    with pytest.raises(TrackerError, match="no such table: missing"):
        async with opened(file):
            pass
    with_second("CREATE TABLE more (x);\nINSERT INTO more VALUES (1);")
    for _ in range(2):
        async with opened(file) as tracker:
            assert await tracker.document(1) == b"{}"
    with database(file) as connection:
        assert connection.execute("SELECT count(*) FROM more").fetchone() == (1,)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(migrations("sqlite")) + 1,)


# -- while it is in use -----------------------------------------------------------------------------------------------


async def test_another_name_of_the_file_has_the_same_lock(file: Path) -> None:
    file.parent.joinpath("link.db").symlink_to(file)
    async with opened(file):
        with pytest.raises(TrackerError, match="another coordinator uses"):
            async with opened(file.parent / "link.db", wait=IN_VAIN):
                pass


async def test_a_file_that_was_replaced_is_written_no_more(file: Path) -> None:
    async with opened(file) as tracker:
        await tracker.commit([run_added()])
        replace_by_an_empty_one(file)
        for _ in range(2):
            with pytest.raises(LostTracker, match="while it was in use"):
                await tracker.commit([recorded()])


async def test_another_program_that_writes_is_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", DEADLINE)  # however long it takes
    async with opened(file) as tracker:
        tried: list[str] = []
        tracker._writer.set_trace_callback(tried.append)  # type: ignore[attr-defined]
        with database(file) as connection:
            connection.execute("BEGIN IMMEDIATE")
            commit = asyncio.create_task(tracker.commit([run_added()]))
            async with asyncio.timeout(DEADLINE):
                while tried.count("BEGIN IMMEDIATE") < 3:
                    await asyncio.sleep(0.01)
            assert not commit.done()
            connection.execute("COMMIT")
        await commit
        assert await tracker.document(1) == b"{}"


async def test_a_copy_can_be_made_while_it_is_in_use(file: Path, tmp_path: Path) -> None:
    async with opened(file) as tracker:
        await tracker.commit([run_added()])
        with database(file) as connection, database(tmp_path / "copy.db") as copy:
            connection.backup(copy)
        await tracker.commit([recorded()])
    async with opened(tmp_path / "copy.db") as tracker:
        assert await tracker.document(1) == b"{}"


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Files of this process can have a mebibyte; see RLIMIT_FSIZE in setrlimit(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def fill(tracker: Tracker) -> int:
    """Commits until it fails; how many were kept."""
    for number in range(200):
        try:
            await tracker.commit([recorded(number=number), kept(0, bytes(100_000), number=number)])
        except TrackerError:
            return number
    raise AssertionError("no limit")


async def check_went_on(file: Path, tracker: Tracker, number: int) -> None:
    """Nothing of the commit that failed was kept, what was before it was, and now it goes on."""
    assert len(await tracker.attempts(1, number - 1)) == 1
    assert not await tracker.attempts(1, number)
    assert not await whole(tracker, number=number)
    for more in range(number, number + 20):
        await tracker.commit([recorded(number=more), kept(0, bytes(100_000), number=more)])
    await tracker.close()
    async with opened(file) as tracker:
        stored = await tracker.load(1)
        assert stored is not None
        assert list(stored.tasks.numbers) == list(range(number + 20))
    with database(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_file_that_cannot_grow(file: Path) -> None:
    async with opened(file) as tracker:
        await tracker.commit([run_added()])
        with small_files():
            number = await fill(tracker)
            assert len(await tracker.attempts(1, number - 1)) == 1, "it can be read nevertheless"
            with pytest.raises(TrackerError):
                await tracker.commit([kept(0, bytes(2 * MEBIBYTE), number=number)])
        await check_went_on(file, tracker, number)


async def test_a_full_disk(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    if not mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", disk):
        pytest.skip("a small disk can only be mounted by root; the test before this one does without")
    try:
        async with opened(disk / "state.db") as tracker:
            await tracker.commit([run_added()])
            number = await fill(tracker)
            with pytest.raises(TrackerError, match="is full: make room"):
                await tracker.commit([kept(0, bytes(2 * MEBIBYTE), number=number)])
            assert mount("-o", "remount,size=32m", disk)
            await check_went_on(disk / "state.db", tracker, number)
    finally:
        unmount(disk)


def test_the_entry_point() -> None:
    assert isinstance(make_tracker("sqlite:/tmp/state.db"), SqliteTracker)


# -- what was deleted, and whose the file is --------------------------------------------------------------------------


async def test_nothing_of_what_was_deleted_is_left(file: Path) -> None:
    """In the file, in its log: of large outputs and of small rows that share a page with others' rows."""
    secret = b"a secret of run 1"
    async with opened(file) as tracker:
        await tracker.commit([run_added(1), run_added(2)])
        for number in range(20):
            await tracker.commit([kept(0, secret, number=number), kept(0, b"of run 2", run_id=2, number=number)])
        await tracker.commit([kept(0, secret * 10_000, number=99)])
        assert any(secret in data for data in contents(file).values())
        while await tracker.delete(1, 5):
            pass
        await tracker.scrub()
        assert not [name for name, data in contents(file).items() if secret in data]
        assert any(b"of run 2" in data for data in contents(file).values())


async def test_somebody_who_reads_delays_that_and_nothing_else(file: Path) -> None:
    secret = b"a secret of run 1"
    async with opened(file) as tracker:
        await tracker.commit([run_added(1), run_added(2), kept(0, secret)])
        with database(file) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM run").fetchall()
            while await tracker.delete(1, 1000):
                pass
            await tracker.scrub()
            await tracker.commit([recorded(run_id=2)])
            assert any(secret in data for data in contents(file).values())
            reader.execute("COMMIT")
        async with asyncio.timeout(DEADLINE):
            while any(secret in data for data in contents(file).values()):
                await asyncio.sleep(0.01)


async def test_what_a_crash_left_of_a_deleted_run_goes_at_the_next_start(file: Path) -> None:
    secret = b"a secret of run 1"
    copy = file.parent / "crashed" / "state.db"
    async with opened(file) as tracker:
        await tracker.commit([run_added(1), kept(0, secret)])
        while await tracker.delete(1, 1000):
            pass
        copy_as_a_crash_leaves_it(file, copy)
    assert any(secret in data for data in contents(copy).values())
    for path in copy.parent.iterdir():
        path.chmod(0o600)
    async with opened(copy):
        assert not any(secret in data for data in contents(copy).values())


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
