"""The connections of a postgres tracker that read: as many as are asked for at once, up to a bound.

They are kept while they work, and made again when they are needed. `PostgresTracker` opens and closes them; what is read is asked
for in sql/tracker.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from daggyr_server.core.stored import RunFilter
from daggyr_server.trackers.base import MAX_ROWS_BYTES, TrackerError
from daggyr_server.trackers.sql.postgres.address import MISSING, PostgresAddress
from daggyr_server.trackers.sql.postgres.watch import AnswerWatch
from daggyr_server.trackers.sql.readers import Readers, Row, tag_texts, unwanted_states
from daggyr_server.trackers.sql.statements import statements

if MISSING is None:
    import psycopg
    from psycopg.pq import TransactionStatus

    from daggyr_server.trackers.sql.postgres.watch import WatchedConnection

SQL = {name: text.encode() for name, text in statements("postgres").items()}
_MAX_CONNECTIONS = 4


class PostgresReaders(Readers):
    """See the head of this file."""

    rows_a_turn = 5_000

    def __init__(self, where: PostgresAddress, watch: AnswerWatch) -> None:
        self._where = where
        self._watch = watch
        self._is_open = False
        self._idle: list[WatchedConnection] = []
        self._places = asyncio.Semaphore(_MAX_CONNECTIONS)

    def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        """Those that are in use are closed by whoever uses them."""
        self._is_open = False
        while self._idle:
            await self._idle.pop().close()

    async def rows(self, statement: str, **parameters: object) -> list[Row]:
        async with self._connection() as connection:
            return await (await connection.execute(SQL[statement], parameters, binary=True)).fetchall()

    async def runs(self, before: int, lowest: int, limit: int, wanted: RunFilter) -> list[Row]:
        if wanted.is_open:
            return await self.rows("runs", before=before, limit=limit, most=MAX_ROWS_BYTES)
        return await self.rows(
            "wanted_runs",
            before=before,
            lowest=lowest,
            limit=limit,
            most=MAX_ROWS_BYTES,
            unwanted=unwanted_states(wanted),
            tags=tag_texts(wanted),
            since=wanted.since,
            until=wanted.until,
            ended_before=wanted.ended_before,
        )

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[PostgresSnapshot]:
        async with self._connection() as connection:
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield PostgresSnapshot(connection)
            await connection.execute("COMMIT")

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[WatchedConnection]:
        if not self._is_open:
            raise TrackerError(f"the tracker {self._where} is closed")
        async with self._places:
            self._watch.check()
            connection = await self._idle_connection() or await self._watch.connect()
            try:
                with self._where.in_words():
                    yield connection
            finally:
                if self._is_open and connection.info.transaction_status == TransactionStatus.IDLE:
                    self._idle.append(connection)
                else:
                    await connection.close()

    async def _idle_connection(self) -> WatchedConnection | None:
        """One that still works."""
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.execute("")
                return connection
            except BaseException as error:  # it may be cancelled: the connection would be nobody's then
                await connection.close()
                if not isinstance(error, psycopg.Error):
                    raise
        return None


class PostgresSnapshot:
    """A `Snapshot`: a connection within a transaction."""

    def __init__(self, connection: WatchedConnection) -> None:
        self._connection = connection

    async def rows(self, statement: str, **parameters: object) -> list[Row]:
        return await (await self._connection.execute(SQL[statement], parameters, binary=True)).fetchall()

    async def in_turns(self, statement: str, size: int, **parameters: object) -> AsyncIterator[list[Row]]:
        async with self._connection.cursor(name=statement, binary=True) as cursor:
            await cursor.execute(SQL[statement], parameters)
            while rows := await cursor.fetchmany(size):
                yield rows
                await asyncio.sleep(0)
