"""The file of a sqlite tracker: how it is made and brought up to date, and which programs may use it meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path

import pytest
from old_moves import OLD_MOVE, OLD_MOVES
from sqlite_files import contents, copy_as_a_crash_leaves_it, database, names, opened, refused
from support.waiting import DEADLINE
from tracker_kinds import IN_VAIN
from tracker_records import recorded, run_added

from daggyr_server.core.records import AgentPinned
from daggyr_server.trackers.base import LostTracker, TrackerError
from daggyr_server.trackers.loader import make_tracker
from daggyr_server.trackers.sql import statements
from daggyr_server.trackers.sql.sqlite import file as sqlite_file
from daggyr_server.trackers.sql.sqlite import tracker as sqlite
from daggyr_server.trackers.sql.sqlite.file import APPLICATION_ID
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker
from daggyr_server.trackers.sql.statements import migrations
from daggyr_server.trackers.task_rows import pack


def replace_by_an_empty_one(file: Path) -> None:
    file.rename(file.with_name("away.db"))
    file.write_bytes(b"")


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


@pytest.mark.parametrize("version", [1, 2])
async def test_a_tracker_of_an_older_version_learns_of_agents_and_lives(file: Path, version: int) -> None:
    """What it held is there, its attempts in flight are of no life, and agents' keys and lives are kept from then on."""
    written_by(version, file)
    async with opened(file) as tracker:
        stored = await tracker.load(1)
        assert stored is not None and stored.document == b"{}"
        assert [(sent.number, sent.attempt, sent.life) for sent in stored.in_flight] == [(0, 1, 0), (1, 2, 0)]
        pin = AgentPinned("id", "one", bytes(32))
        await tracker.commit([pin])
        assert await tracker.pins() == [pin]
    again = SqliteTracker(f"sqlite:{file}")
    lives = (await again.open()).lives
    await again.close()
    assert sorted(lives) == [4, 5], "the starts of the older version had none"


@pytest.mark.parametrize(
    ("state", "start", "stop", "told"),
    [
        (2, 2.0, None, (0.0, 2.0)),
        (3, 2.0, 9.5, (7.5, None)),
        (3, 9.5, 2.0, (0.0, None)),  # a clock was set back meanwhile
        (1, None, None, (0.0, None)),
        (5, None, 3.0, (0.0, None)),
    ],
)
async def test_runs_of_an_older_version_tell_how_long_they_ran(
    file: Path, state: int, start: float | None, stop: float | None, told: tuple[float, float | None]
) -> None:
    """Without a history, that is from the first start to the last stop."""
    written_by(2, file)
    with database(file) as connection:
        connection.execute("UPDATE run SET state = ?, start_time = ?, stop_time = ?", (state, start, stop))
    async with opened(file) as tracker:
        (row,) = await tracker.rows(before=None, limit=1)
    assert (row.ran_seconds, row.running_time) == told


async def test_a_night_before_an_older_version_s_run_was_queued_again_does_not_count(file: Path) -> None:
    """Its history tells when it was RUNNING. An edit and a kill are noted there too, and are no moves."""
    written_by(2, file)
    with database(file) as connection:
        connection.execute("UPDATE run SET state = 2, start_time = 100")
        connection.executemany(OLD_MOVE, OLD_MOVES)
    async with opened(file) as tracker:
        (row,) = await tracker.rows(before=None, limit=1)
    assert (row.ran_seconds, row.running_time) == (8.0, 40_000.0)


def written_by(version: int, file: Path) -> None:
    """A file as a coordinator of an older version leaves it in its third epoch, with two attempts in flight."""
    script = "".join(migrations("sqlite")[:version])
    with database(file) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"PRAGMA application_id = {APPLICATION_ID};{script};PRAGMA user_version = {version};")
        connection.execute("INSERT INTO tracker VALUES (1, 'old', 3, 2, 'h', 1, 1.0)")
        connection.execute(
            "INSERT INTO run (run_id, request_id, tags, submit_pool, pool, state, submit_time)"
            " VALUES (1, 'r', '{}', 'p', 'p', 2, 1)"
        )
        connection.execute("INSERT INTO document VALUES (1, 0, 0, ?)", (b"{}",))
        connection.execute("INSERT INTO host VALUES (1, 7, 'h1', 'one')")
        connection.execute(
            "INSERT INTO assignment (run_id, host_key, assign_time, number_list, attempt_list) VALUES (1, 7, 1.0, ?, ?)",
            (pack([0, 1]), pack([1, 2])),
        )


async def test_a_log_that_a_crash_left_is_taken(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "state.db"
    async with opened(file) as tracker:
        await tracker.commit([run_added(), recorded()])
        copy_as_a_crash_leaves_it(file, copy)
    # Cut the log, as if the last commit had not reached the disk.
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


async def test_another_programs_copy_of_one_in_use_does_not_go_on_as_the_same_tracker(file: Path, tmp_path: Path) -> None:
    async with opened(file) as tracker:
        await tracker.commit([run_added()])
        with database(file) as connection, database(tmp_path / "copy.db") as copy:
            connection.backup(copy)
        await tracker.commit([recorded()])
    await refused(tmp_path / "copy.db", "was in use when it was left or copied.*daggyr-server restore --tracker")


def test_the_entry_point() -> None:
    assert isinstance(make_tracker("sqlite:/tmp/state.db"), SqliteTracker)
