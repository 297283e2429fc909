# ruff: noqa: ASYNC221, ASYNC240  # the test's own loop may wait
"""A sqlite tracker that lost some of its newest state is refused and left as it is, and so is a second name of one in use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sqlite_files import contents, copy_as_a_crash_leaves_it, database, names, opened, refused
from tracker_kinds import IN_VAIN
from tracker_records import recorded, run_added

from daggyr_server.core.records import Record
from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

RESTORE = "daggyr-server restore --tracker sqlite:"


async def left_by_a_crash(folder: Path, *more: Record) -> Path:
    """Return a tracker that a crash left with the run 1 in its log alone, and with the mark of its coordinator."""
    file = folder / "state.db"
    left = folder / "left" / "state.db"
    async with opened(file) as tracker:
        await tracker.commit([run_added(1)])
        for record in more:
            await tracker.commit([record])
        copy_as_a_crash_leaves_it(file, left)
        shutil.copy(f"{file}-lock", f"{left}-lock")
    assert not (log := Path(f"{file}-wal")).exists(), log
    return left


async def holds_run_1(file: Path) -> bool:
    async with opened(file) as tracker:
        return await tracker.document(1) is not None


async def test_a_crash_leaves_a_whole_one(tmp_path: Path) -> None:
    assert await holds_run_1(await left_by_a_crash(tmp_path))


async def test_a_start_without_a_commit_leaves_a_whole_one(tmp_path: Path) -> None:
    file, left = tmp_path / "state.db", tmp_path / "left" / "state.db"
    async with opened(file):
        copy_as_a_crash_leaves_it(file, left)
    async with opened(left):
        pass


async def test_a_log_that_is_lost(tmp_path: Path) -> None:
    left = await left_by_a_crash(tmp_path)
    Path(f"{left}-wal").unlink()
    await refused(left, rf"is behind what this host has seen of it.*was lost.*{RESTORE}")


async def test_a_live_copy_without_its_log(tmp_path: Path) -> None:
    left = await left_by_a_crash(tmp_path)
    (copy := tmp_path / "copy.db").write_bytes(left.read_bytes())
    for _ in range(2):  # what the first try leaves behind does not make the second one succeed
        await refused(copy, rf"was in use when it was left or copied, and its log \(copy\.db-wal\).*{RESTORE}")
    Path(f"{copy}-wal").touch()
    await refused(copy, rf"was in use when it was left or copied, and its log \(copy\.db-wal\).*{RESTORE}")


async def test_a_stopped_tracker_is_copied_by_its_file_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "state.db") as tracker:
        await tracker.commit([run_added(1)])
    (copy := tmp_path / "copy.db").write_bytes((tmp_path / "state.db").read_bytes())
    assert await holds_run_1(copy)


@pytest.mark.parametrize("frame", [0, 1, 3])
async def test_a_log_with_a_flipped_bit(tmp_path: Path, frame: int) -> None:
    left = await left_by_a_crash(tmp_path, *(recorded(number=number) for number in range(3)))
    log = Path(f"{left}-wal")
    damaged = bytearray(log.read_bytes())
    damaged[32 + frame * (24 + 4096) + 300] ^= 4
    log.write_bytes(damaged)
    await refused(left, rf"is behind what this host has seen of it.*damaged.*{RESTORE}")


async def test_another_trackers_log(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    left, other = await left_by_a_crash(tmp_path / "one"), await left_by_a_crash(tmp_path / "two")
    Path(f"{left}-wal").write_bytes(Path(f"{other}-wal").read_bytes())
    await refused(left, rf"state\.db-wal.* is of another tracker.*{RESTORE}")
    Path(f"{left}-lock").unlink()
    await refused(left, rf"state\.db-wal.* is of another tracker.*{RESTORE}")


async def test_a_log_of_an_earlier_time(tmp_path: Path) -> None:
    left = await left_by_a_crash(tmp_path)
    earlier = Path(f"{left}-wal").read_bytes()
    async with opened(left) as tracker:
        await tracker.commit([run_added(2)])
    Path(f"{left}-lock").unlink()
    Path(f"{left}-wal").write_bytes(earlier)
    await refused(left, rf"is of an earlier time.*{RESTORE}")


async def test_an_older_copy_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    async with opened(file) as tracker:
        await tracker.commit([run_added(1)])
    older = file.read_bytes()
    async with opened(file):
        pass
    file.write_bytes(older)
    await refused(file, rf"An older copy was put in its place.*{RESTORE}")


async def test_a_log_without_its_file(tmp_path: Path) -> None:
    left = await left_by_a_crash(tmp_path)
    left.write_bytes(b"")
    await refused(left, "is missing or empty, but its log state.db-wal is there")


async def test_a_program_that_looked_at_it_after_a_crash(tmp_path: Path) -> None:
    """The program moves the log into the file, and takes the log away."""
    left = await left_by_a_crash(tmp_path)
    with database(left) as connection:
        assert connection.execute("SELECT count(*) FROM run").fetchone() == (1,)
    assert not Path(f"{left}-wal").exists()
    assert await holds_run_1(left)


async def test_a_mark_that_cannot_be_read_refuses_nothing(tmp_path: Path) -> None:
    left = await left_by_a_crash(tmp_path)
    Path(f"{left}-lock").write_bytes(b"daggyr \xff what")
    assert await holds_run_1(left)


async def test_another_tracker_in_its_place(tmp_path: Path) -> None:
    """The mark is another tracker's, and says nothing of this one."""
    async with opened(tmp_path / "other.db") as tracker:
        await tracker.commit([run_added(1)])
    file = tmp_path / "state.db"
    for _ in range(3):
        async with opened(file):
            pass
    (tmp_path / "other.db").replace(file)
    assert await holds_run_1(file)


# -- a second name ----------------------------------------------------------------------------------------------------


async def in_use(name: Path) -> None:
    before = contents(name)
    with pytest.raises(TrackerError, match=rf"another coordinator uses the tracker {name}: process {os.getpid()} on"):
        async with opened(name, IN_VAIN):
            pass
    assert contents(name) == before


async def test_a_second_name_of_the_file_has_the_same_lock(tmp_path: Path) -> None:
    async with opened(tmp_path / "state.db") as tracker:
        await tracker.commit([run_added(1)])
        (tmp_path / "hard.db").hardlink_to(tmp_path / "state.db")
        (tmp_path / "soft.db").symlink_to("state.db")
        await in_use(tmp_path / "hard.db")
        with pytest.raises(TrackerError, match="another coordinator uses the tracker"):
            async with opened(tmp_path / "soft.db", IN_VAIN):
                pass
        await tracker.commit([run_added(2)])
        assert names(tmp_path) == {
            "state.db",
            "state.db-wal",
            "state.db-shm",
            "state.db-lock",
            "hard.db",
            "hard.db-lock",
            "soft.db",
        }
    assert await holds_run_1(tmp_path / "hard.db")


async def test_a_bind_mount_of_the_folder_has_the_same_lock(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a folder can be mounted by root only")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    subprocess.run(["mount", "--bind", str(tmp_path / "one"), str(tmp_path / "two")], check=True)
    try:
        async with opened(tmp_path / "one" / "state.db"):
            await in_use(tmp_path / "two" / "state.db")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "two")], check=True)


async def test_the_lock_goes_with_the_tracker(tmp_path: Path) -> None:
    first, second = (SqliteTracker(f"sqlite:{tmp_path}/state.db", wait=IN_VAIN) for _ in range(2))
    await first.open()
    with pytest.raises(TrackerError, match="another coordinator uses"):
        await second.open()
    await first.close()
    async with opened(tmp_path / "state.db"):
        pass
