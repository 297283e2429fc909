"""The connections of a sqlite tracker that read. In WAL mode a reader sees what was committed, and waits for nobody.

Short statements run at once over one connection. A snapshot, which may be of a large run, has a connection of its own and is read
in turns, all in the event loop's thread: a thread beside a busy loop would wait for the interpreter's lock at every row.
`SqliteTracker` opens and closes them; what is read is asked for in sql/tracker.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator

import msgspec

from daggyr_server.core.stored import RunFilter
from daggyr_server.trackers.base import MAX_ROWS_BYTES, TrackerError
from daggyr_server.trackers.sql.readers import Readers, Row, tag_texts, unwanted_states
from daggyr_server.trackers.sql.sqlite.file import SqliteFile
from daggyr_server.trackers.sql.statements import statements

SQL = statements("sqlite")


class SqliteReaders(Readers):
    """See the head of this file."""

    rows_a_turn = 2_000  # a millisecond or two

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Raises sqlite3.Error."""
        self._connection = self._connect()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def rows(self, statement: str, **parameters: object) -> list[Row]:
        with self._file.in_words():
            # All of them at once: a statement that is not at its end would keep the log from being moved into the file.
            return self._open().execute(SQL[statement], parameters).fetchall()

    async def runs(self, before: int, lowest: int, limit: int, wanted: RunFilter) -> list[Row]:
        parameters: dict[str, object] = {"before": before, "limit": limit}
        statement = "runs"
        if not wanted.is_open:
            statement = "wanted_runs"
            parameters |= {"lowest": lowest, "since": wanted.since, "until": wanted.until, "ended_before": wanted.ended_before}
            parameters["unwanted"] = msgspec.json.encode(unwanted_states(wanted)).decode()
            parameters["tags"] = msgspec.json.encode(tag_texts(wanted)).decode()
        found, size = [], 0
        with self._file.in_words(), contextlib.closing(self._open().cursor()) as cursor:
            for row in cursor.execute(SQL[statement], parameters):
                found.append(row)
                size += len(row[2])
                if size >= MAX_ROWS_BYTES:
                    break
        return found

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[SqliteSnapshot]:
        self._open()
        with self._file.in_words(), contextlib.closing(self._connect()) as connection:
            connection.execute("BEGIN")
            yield SqliteSnapshot(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = self._file.connect()
        connection.execute("PRAGMA query_only = 1")
        connection.text_factory = _text
        return connection

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise TrackerError(f"the tracker {self._file.path} is closed")
        return self._connection


def _text(data: bytes) -> str:
    """A text; one that a flipped bit has made no UTF-8 is still read, so that it hides no other row."""
    return data.decode("utf-8", "backslashreplace")


class SqliteSnapshot:
    """A `Snapshot`: a connection within a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def rows(self, statement: str, **parameters: object) -> list[Row]:
        return self._connection.execute(SQL[statement], parameters).fetchall()

    async def in_turns(self, statement: str, size: int, **parameters: object) -> AsyncIterator[list[Row]]:
        cursor = self._connection.execute(SQL[statement], parameters)
        while rows := cursor.fetchmany(size):
            yield rows
            await asyncio.sleep(0)
