"""What only a postgres tracker can meet: a server that goes away, lost answers, rights, secrets, psycopg missing."""

from __future__ import annotations

import asyncio
import gc

import psycopg
import pytest
from old_moves import OLD_MOVE, OLD_MOVES
from postgres_databases import Databases
from postgres_trackers import opened, run_ids, until_kept
from support.waiting import DEADLINE, until
from tracker_records import recorded, run_added

from daggyr_server.trackers.base import LostTracker, TrackerError
from daggyr_server.trackers.sql import statements
from daggyr_server.trackers.sql.postgres.address import PostgresAddress
from daggyr_server.trackers.sql.postgres.watch import WatchedConnection
from daggyr_server.trackers.sql.statements import migrations


def cut_connections(postgres: Databases, address: str) -> None:
    """Cut all connections, as a network does that is gone for a moment."""
    name = PostgresAddress(address).database
    postgres.server.execute(
        f"SELECT pg_terminate_backend(pid, {DEADLINE * 1000:.0f}) FROM pg_stat_activity WHERE datname = '{name}'"
    )


def change(postgres: Databases, address: str, statement: str) -> None:
    postgres.server.execute(statement, database=PostgresAddress(address).database)


# -- a server that goes away ------------------------------------------------------------------------------------------


async def test_a_server_that_is_away_for_a_while(postgres: Databases, address: str) -> None:
    async with opened(address) as tracker:
        await tracker.commit([run_added(1)])
        postgres.server.stop()
        try:
            for _ in range(2):
                with pytest.raises(TrackerError, match="cannot be used"):
                    await tracker.commit([run_added(2)])
                with pytest.raises(TrackerError):
                    await tracker.rows(before=None, limit=10)
        finally:
            postgres.server.start()
        await tracker.commit([run_added(2)])
        assert await run_ids(tracker) == [1, 2]
    async with opened(address) as tracker:
        assert await run_ids(tracker) == [1, 2]


async def test_a_server_that_crashes_loses_and_doubles_no_commit(postgres: Databases, address: str) -> None:
    async with opened(address) as tracker:
        await tracker.commit([run_added()])
        last = 0
        enough = False

        async def write() -> None:
            nonlocal last
            while not enough:
                number = last + 1
                await until_kept(tracker, [recorded(number=number), recorded(number=number, attempt=2)])
                last = number

        async def fifty_more() -> None:
            goal = last + 50
            while last < goal and not writing.done():
                await asyncio.sleep(0.001)

        writing = asyncio.create_task(write())
        for _ in range(2):
            await fifty_more()
            postgres.server.kill()
            postgres.server.start()
        await fifty_more()
        enough = True
        await writing
        stored = await tracker.load(1)
        assert stored is not None
        assert list(stored.tasks.numbers) == list(range(1, last + 1))
        assert set(stored.tasks.attempts) == {2}


async def test_reading_goes_on_after_connections_were_cut(postgres: Databases, address: str) -> None:
    async with opened(address) as tracker:
        await tracker.commit([run_added(1)])
        await asyncio.gather(*(tracker.rows(before=None, limit=1) for _ in range(10)))
        cut_connections(postgres, address)
        assert await run_ids(tracker) == [1]
        await until_kept(tracker, [run_added(2)])
        assert await run_ids(tracker) == [1, 2]


async def test_whoever_stops_reading_leaves_no_connection(postgres: Databases, address: str) -> None:
    """A reader may be cancelled at any turn of the event loop. A connection that is left to the garbage collector warns."""

    async def stop_after(turns: int) -> None:
        reading = [asyncio.create_task(tracker.rows(before=None, limit=1)), asyncio.create_task(tracker.load(1))]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)

    async with opened(address) as tracker:
        for turns in range(30):
            await tracker.rows(before=None, limit=1)
            await stop_after(turns)
        assert await run_ids(tracker) == []
    gc.collect()
    connected = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{PostgresAddress(address).database}'"
    until(lambda: postgres.server.execute(connected) == [(0,)], "nobody is connected to the database any more")


async def test_a_tracker_that_was_taken_over_meanwhile_is_lost(postgres: Databases, address: str) -> None:
    async with opened(address) as first:
        await first.commit([run_added(1)])
        cut_connections(postgres, address)
        async with opened(address) as second:
            with pytest.raises(LostTracker, match="taken over by another coordinator: process"):
                await until_kept(first, [run_added(2)])
            await second.commit([run_added(3)])
            assert await run_ids(second) == [1, 3]


async def test_a_connection_that_the_server_still_sees_is_waited_for(postgres: Databases, address: str) -> None:
    """Nobody who holds the lock has taken the next epoch, so the tracker is not lost yet."""
    async with opened(address) as tracker:
        await tracker.commit([run_added(1)])
        async with await psycopg.AsyncConnection.connect(address, autocommit=True) as other:
            waiting = asyncio.create_task(other.execute("SELECT pg_advisory_lock(1684105063, 1)"))
            name = PostgresAddress(address).database
            async with asyncio.timeout(DEADLINE):
                while not postgres.waiting(name):
                    await asyncio.sleep(0.01)
            postgres.server.execute(
                f"SELECT pg_terminate_backend(pid, {DEADLINE * 1000:.0f}) FROM pg_locks JOIN pg_stat_activity USING (pid) "
                f"WHERE locktype = 'advisory' AND granted AND datname = '{name}'"
            )
            await waiting
            with pytest.raises(TrackerError):
                await tracker.commit([run_added(2)])
            with pytest.raises(TrackerError, match=r"lock of .* is held") as raised:
                await tracker.commit([run_added(2)])
            assert not isinstance(raised.value, LostTracker)
        await until_kept(tracker, [run_added(2)])
        assert await run_ids(tracker) == [1, 2]


async def test_tables_that_are_gone(postgres: Databases, address: str) -> None:
    async with opened(address) as tracker:
        await tracker.commit([run_added(1)])
        change(postgres, address, "DROP SCHEMA daggyr CASCADE")
        with pytest.raises(TrackerError, match="does not exist"):
            await tracker.commit([run_added(2)])
        cut_connections(postgres, address)
        with pytest.raises(LostTracker, match="tables are gone"):
            await until_kept(tracker, [run_added(2)])


async def test_an_older_copy_that_was_brought_back(postgres: Databases, address: str) -> None:
    async with opened(address) as tracker:
        await tracker.commit([run_added(1)])
        change(postgres, address, "UPDATE daggyr.tracker SET commits = commits - 1; DELETE FROM daggyr.run")
        cut_connections(postgres, address)
        with pytest.raises(LostTracker, match="older copy"):
            await until_kept(tracker, [run_added(2)])


# -- the database -----------------------------------------------------------------------------------------------------


async def test_commits_are_durable_whatever_the_user_s_default(postgres: Databases, address: str) -> None:
    postgres.server.execute("ALTER ROLE tester SET synchronous_commit = off")
    try:
        connection = await WatchedConnection.made(None, PostgresAddress(address))
        assert await (await connection.execute("SHOW synchronous_commit")).fetchone() == ("on",)
        await connection.close()
    finally:
        postgres.server.execute("ALTER ROLE tester RESET synchronous_commit")


async def test_a_server_that_is_not_durable_is_told_of(
    postgres: Databases, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(address):
        assert "may not survive" not in caplog.text
    postgres.server.execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    try:
        until(lambda: postgres.server.execute("SHOW fsync") == [("off",)], "the setting is read")
        async with opened(address):
            assert "runs with fsync = off: what it keeps may not survive power loss" in caplog.text
    finally:
        postgres.server.execute("ALTER SYSTEM RESET fsync", "SELECT pg_reload_conf()")
        until(lambda: postgres.server.execute("SHOW fsync") == [("on",)], "the setting is read")


async def test_a_user_without_the_right_to_make_the_schema(postgres: Databases, address: str) -> None:
    postgres.server.execute("CREATE ROLE stranger LOGIN")
    with pytest.raises(TrackerError, match=r"permission denied .*GRANT CREATE ON DATABASE"):
        async with opened(address.replace("tester@", "stranger@")):
            pass


async def test_a_night_before_an_older_version_s_run_was_queued_again_does_not_count(postgres: Databases, address: str) -> None:
    (migration,) = [text for text in migrations("postgres") if "WHERE ran_seconds IS NULL" in text]
    async with opened(address) as tracker:
        await tracker.commit([run_added(1)])
        with psycopg.connect(address, autocommit=True, options="-c search_path=daggyr") as connection:
            connection.execute("UPDATE run SET state = 2, start_time = 100, ran_seconds = NULL")
            connection.cursor().executemany(OLD_MOVE.replace("?", "%s").encode(), OLD_MOVES)
            connection.execute(migration.encode())
        (row,) = await tracker.rows(before=None, limit=1)
        assert (row.ran_seconds, row.running_time) == (8.0, 40_000.0)


async def test_a_newer_version(postgres: Databases, address: str) -> None:
    async with opened(address):
        pass
    change(postgres, address, "UPDATE daggyr.tracker SET version = 99")
    newest = len(migrations("postgres"))
    with pytest.raises(TrackerError, match=rf"made by a newer DaggyR \(its tables are version 99, this one knows {newest}\)"):
        async with opened(address):
            pass
    change(postgres, address, f"UPDATE daggyr.tracker SET version = {newest}")
    async with opened(address):
        pass


async def test_a_migration_is_applied_once_and_whole_or_not_at_all(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_second(text: str) -> None:
        monkeypatch.setattr(statements, "migrations", lambda kind: [*migrations(kind), text])

    async with opened(address) as tracker:
        await tracker.commit([run_added()])
    with_second("CREATE TABLE daggyr.more (x integer); INSERT INTO daggyr.missing VALUES (1)")
    with pytest.raises(TrackerError, match=r'"daggyr\.missing" does not exist'):
        async with opened(address):
            pass
    with_second("CREATE TABLE daggyr.more (x integer); INSERT INTO daggyr.more VALUES (1)")
    for _ in range(2):
        async with opened(address) as tracker:
            assert await tracker.document(1) == b"{}"
