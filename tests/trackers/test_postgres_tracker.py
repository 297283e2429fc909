"""What only a postgres tracker can meet: a server that goes away, lost answers, rights, secrets, psycopg missing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psycopg
import pytest
from postgres_databases import Databases
from support.waiting import DEADLINE, until
from tracker_kinds import WAIT
from tracker_records import recorded, run_added

from daggyr_server.core.records import Record
from daggyr_server.trackers.base import LostTracker, Tracker, TrackerError
from daggyr_server.trackers.loader import make_tracker
from daggyr_server.trackers.sql import statements
from daggyr_server.trackers.sql.postgres.address import PostgresAddress
from daggyr_server.trackers.sql.postgres.tracker import PostgresTracker
from daggyr_server.trackers.sql.statements import migrations

PASSWORD = "hunter2/secret"
QUOTED = "hunter2%2Fsecret"


@pytest.fixture
def address(postgres: Databases, tmp_path: Path) -> str:
    return postgres.address(tmp_path)


@contextlib.asynccontextmanager
async def opened(address: str, wait: float = WAIT) -> AsyncIterator[Tracker]:
    tracker = PostgresTracker(address, wait=wait)
    try:
        await tracker.open()
        yield tracker
    finally:
        await tracker.close()


async def run_ids(tracker: Tracker) -> list[int]:
    return [row.run_id for row in await tracker.rows(before=None, limit=100)][::-1]


def cut_connections(postgres: Databases, address: str) -> None:
    """As a network would that is gone for a moment."""
    name = PostgresAddress(address).database
    postgres.server.execute(
        f"SELECT pg_terminate_backend(pid, {DEADLINE * 1000:.0f}) FROM pg_stat_activity WHERE datname = '{name}'"
    )


def change(postgres: Databases, address: str, statement: str) -> None:
    postgres.server.execute(statement, database=PostgresAddress(address).database)


async def until_kept(tracker: Tracker, records: Sequence[Record]) -> None:
    """As the driver does: the same records again, until they are durable."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await tracker.commit(records)
                return
            except LostTracker:
                raise
            except TrackerError:
                await asyncio.sleep(0.02)


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
    """Whoever reads may be cancelled at any turn of the event loop. The garbage collector would close what is left, some time."""
    gc.disable()
    try:
        async with opened(address) as tracker:
            for turns in range(40):
                await tracker.rows(before=None, limit=1)
                reading = [asyncio.create_task(tracker.rows(before=None, limit=1)), asyncio.create_task(tracker.load(1))]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in reading:
                    task.cancel()
                await asyncio.wait(reading)
            assert await run_ids(tracker) == []
        connected = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{PostgresAddress(address).database}'"
        until(lambda: postgres.server.execute(connected) == [(0,)], "nobody is connected to the database any more")
    finally:
        gc.enable()


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
    """The lock is held by nobody that has taken the next epoch: so it is not lost yet."""
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


# -- lost answers -----------------------------------------------------------------------------------------------------


class Wire:
    """Between a tracker and its server: cuts a connection at its next COMMIT, before it or before its answer."""

    def __init__(self, real: Path) -> None:
        self._real = real
        self.cut: str | None = None  # "before", "after"

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self._real)
        back = asyncio.create_task(self._back(server_reader, writer))
        try:
            while data := await reader.read(65_536):
                if b"COMMIT" in data and self.cut is not None:
                    how, self.cut = self.cut, None
                    back.cancel()
                    await asyncio.wait([back])
                    if how == "after":
                        server_writer.write(data)
                        assert b"COMMIT" in await server_reader.read(65_536)
                    return
                server_writer.write(data)
        finally:
            back.cancel()
            await asyncio.wait([back])
            for end in (server_writer, writer):
                end.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def over_a_wire(address: str) -> AsyncIterator[tuple[Wire, Tracker]]:
    with tempfile.TemporaryDirectory(prefix="daggyr-wire-") as folder:
        host = PostgresAddress(address).host
        wire = Wire(Path(host) / ".s.PGSQL.5432")
        listening = await asyncio.start_unix_server(wire.relay, Path(folder) / ".s.PGSQL.5432")
        async with listening, opened(address.replace(host, folder)) as tracker:
            yield wire, tracker


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_commit_whose_answer_was_lost_is_kept_once(address: str, cut: str) -> None:
    async with over_a_wire(address) as (wire, tracker):
        await tracker.commit([run_added(1)])
        records: list[Record] = [run_added(2), recorded(run_id=2)]
        wire.cut = cut
        with pytest.raises(TrackerError, match="cannot be used"):
            await tracker.commit(records)
        assert wire.cut is None
        await until_kept(tracker, [*records, recorded(run_id=2, number=1)])
        await tracker.commit([recorded(run_id=2, number=2)])
        assert await run_ids(tracker) == [1, 2]
        assert [len(await tracker.attempts(2, number)) for number in range(3)] == [1, 1, 1]


async def test_other_records_after_a_commit_that_was_kept_are_refused(address: str) -> None:
    """The coordinator believes that it was not kept: it must start again from what is durable."""
    async with over_a_wire(address) as (wire, tracker):
        wire.cut = "after"
        with pytest.raises(TrackerError):
            await tracker.commit([run_added(1)])
        with pytest.raises(LostTracker, match="whose answer was lost"):
            await until_kept(tracker, [run_added(2)])
        with pytest.raises(LostTracker):
            await tracker.commit([run_added(1)])
    async with opened(address) as tracker:
        assert await run_ids(tracker) == [1]


async def test_deleting_goes_on_after_a_lost_answer(address: str) -> None:
    async with over_a_wire(address) as (wire, tracker):
        records = [run_added(1)]
        await tracker.commit([run_added(2), run_added(3)])
        wire.cut = "after"
        with pytest.raises(TrackerError):
            await tracker.commit(records)
        while await delete_again(tracker, 2):
            pass
        wire.cut = "after"
        while await delete_again(tracker, 3):
            pass
        await until_kept(tracker, records)
        assert await run_ids(tracker) == [1]


async def delete_again(tracker: Tracker, run_id: int) -> bool:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await tracker.delete(run_id, 100)
            except LostTracker:
                raise
            except TrackerError:
                await asyncio.sleep(0.02)


# -- the database -----------------------------------------------------------------------------------------------------


async def test_commits_are_durable_whatever_the_user_s_default(postgres: Databases, address: str) -> None:
    postgres.server.execute("ALTER ROLE tester SET synchronous_commit = off")
    try:
        connection = await PostgresAddress(address).connect()
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


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://user:{QUOTED}@127.0.0.1:1/state",
        f"postgresql://user@127.0.0.1:1/state?password={QUOTED}",
        f"postgresql://user:{QUOTED}@/state?host=/nowhere",
        f"postgresql://user:{QUOTED}@127.0.0.1:1/state?sslmode=nonsense",
        f"postgresql://user:{QUOTED}@127.0.0.1:x/state",
        f"postgresql://user:{QUOTED}@[127.0.0.1/state",
        f"postgresql://user:{PASSWORD}@127.0.0.1/state",
        f"postgresql://user:@{PASSWORD}@127.0.0.1/state",
        f"postgres:{PASSWORD}",
    ],
)
async def test_no_password_is_ever_told(address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(TrackerError) as raised:
        tracker = make_tracker(address)
        assert "hunter2" not in tracker.address
        await tracker.open()
    shown = f"{raised.value} {raised.value!r} {raised.value.__cause__} {caplog.text}"
    assert "hunter2" not in shown
    assert "secret" not in shown


async def test_a_wrong_password_is_not_told_either(postgres: Databases, address: str) -> None:
    """The server's own words are searched for it."""
    where = PostgresAddress(address.replace("tester@", f"tester:{QUOTED}@"))
    error = where.error(psycopg.OperationalError(f"no: password={PASSWORD}"))
    assert str(error) == f"the tracker {where} cannot be used: no: password=***"


def test_what_an_address_shows() -> None:
    shown = {
        "postgresql://user:pass@db.example:5433/state?sslmode=require": "postgresql://user@db.example:5433/state",
        "postgres://a,b:5433/state": "postgresql://a,b:,5433/state",
        "postgresql:///state?host=/run/postgresql&user=u": "postgresql://u@/run/postgresql/state",
        "postgresql://": "postgresql:///",
    }
    assert {address: str(PostgresAddress(address)) for address in shown} == shown
    for kind in ("postgres", "postgresql"):
        assert isinstance(make_tracker(f"{kind}://host/state"), PostgresTracker)


def test_psycopg_missing_is_told_with_what_to_install() -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from daggyr_server.trackers.base import TrackerError\n"
        "from daggyr_server.trackers.loader import make_tracker\n"
        "try: make_tracker('postgresql://host/state')\n"
        "except TrackerError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "needs psycopg" in done.stdout
    assert "pip install 'daggyr[postgres]'" in done.stdout
