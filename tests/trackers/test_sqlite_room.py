"""The room that a sqlite tracker takes: full disks, and what is left in the file and its log after a deletion."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_files import contents, copy_as_a_crash_leaves_it, database, opened, refused
from support.waiting import DEADLINE
from tracker_records import kept, recorded, run_added, whole

from daggyr_server.trackers.base import Tracker, TrackerError

MEBIBYTE = 1024 * 1024


def mount(*arguments: str | Path) -> bool:
    """Mount a file system; returns whether that worked. It takes root's rights and the program."""
    return bool(shutil.which("mount")) and subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", folder], check=True)


async def test_it_shrinks_when_a_run_is_deleted(file: Path) -> None:
    async with opened(file) as tracker:
        await tracker.commit([run_added(1), run_added(2)])
        for number in range(40):
            await tracker.commit([kept(0, bytes(MEBIBYTE // 4), number=number), recorded(number=number)])
            await tracker.commit([kept(0, bytes(1_000), run_id=2, number=number), recorded(run_id=2, number=number)])
        calls = 1
        while await tracker.delete([1], 500):
            calls += 1
        assert calls > 3, "not in slices"
        await tracker.scrub()
        assert len(contents(file)[file.name]) < MEBIBYTE
        await tracker.commit([run_added(3)])
        assert await whole(tracker, run_id=2, number=39) == [(0, bytes(1_000))]
    with database(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file that this process writes can have more than a mebibyte; see RLIMIT_FSIZE in setrlimit(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def fill(tracker: Tracker) -> int:
    """Commit until a commit fails. Returns how many commits were kept."""
    for number in range(200):
        try:
            await tracker.commit([recorded(number=number), kept(0, bytes(100_000), number=number)])
        except TrackerError:
            return number
    raise AssertionError("no limit")


async def check_went_on(file: Path, tracker: Tracker, number: int) -> None:
    """Nothing of the commit that failed was kept, all commits before it were, and commits work again."""
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
            with pytest.raises(TrackerError, match="is full: make room, it goes on by itself then"):
                await tracker.commit([kept(0, bytes(2 * MEBIBYTE), number=number)])
            assert mount("-o", "remount,size=32m", disk)
            await check_went_on(disk / "state.db", tracker, number)
    finally:
        unmount(disk)


async def test_a_disk_that_is_full_at_the_start_is_told_without_a_promise(tmp_path: Path) -> None:
    """The server ends then, so that nothing goes on by itself."""
    (disk := tmp_path / "disk").mkdir()
    if not mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", disk):
        pytest.skip("a small disk can only be mounted by root")
    try:
        with (disk / "filling").open("wb", buffering=0) as filling, contextlib.suppress(OSError):
            while True:
                filling.write(bytes(4096))
        await refused(disk / "state.db", "is full: make room, and try again$")
    finally:
        unmount(disk)


async def test_nothing_of_what_was_deleted_is_left(file: Path) -> None:
    """Large outputs and small rows, which share pages with other runs' rows, are gone from the file and its log."""
    secret = b"a secret of run 1"
    async with opened(file) as tracker:
        await tracker.commit([run_added(1), run_added(2)])
        for number in range(20):
            await tracker.commit([kept(0, secret, number=number), kept(0, b"of run 2", run_id=2, number=number)])
        await tracker.commit([kept(0, secret * 10_000, number=99)])
        assert any(secret in data for data in contents(file).values())
        while await tracker.delete([1], 5):
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
            while await tracker.delete([1], 1000):
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
        while await tracker.delete([1], 1000):
            pass
        copy_as_a_crash_leaves_it(file, copy)
    assert any(secret in data for data in contents(copy).values())
    for path in copy.parent.iterdir():
        path.chmod(0o600)
    async with opened(copy):
        assert not any(secret in data for data in contents(copy).values())
