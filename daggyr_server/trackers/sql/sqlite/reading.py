"""The half of the sqlite tracker that reads. In WAL mode a reader sees what was committed, and waits for nobody.

Short questions are answered at once by one connection; a run or a document, which may be large, is read in turns by a connection
of its own. `SqliteTracker` in sqlite.py is the other half; how rows are read is in stored_rows.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from typing import Any

from daggyr_server.core.records import AgentPinned
from daggyr_server.core.stored import RunRow, StoredRun
from daggyr_server.trackers.base import MAX_ATTEMPTS, MAX_ROWS_BYTES, Piece, StateChange, StoredAttempt, Tracker, TrackerError
from daggyr_server.trackers.pieces import MAX_OFFSET, in_order, joined
from daggyr_server.trackers.sql.batch import stored_text
from daggyr_server.trackers.sql.sqlite.file import SqliteFile
from daggyr_server.trackers.sql.statements import statements
from daggyr_server.trackers.sql.stored_rows import TasksFold, growth, history, run_row, stored_attempt

SQL = statements("sqlite")
_ROWS_A_TURN = 2_000  # read at once, in the event loop's thread: a millisecond or two


class SqliteReading(Tracker):
    """See the head of this file. It reads while `_reader` is set."""

    def __init__(self, address: str, file: SqliteFile) -> None:
        super().__init__(address)
        self._file = file
        self._reader: sqlite3.Connection | None = None

    async def attempts(
        self, run_id: int, number: int, *, before: int | None = None, limit: int = MAX_ATTEMPTS
    ) -> list[StoredAttempt]:
        below = MAX_OFFSET if before is None else before
        rows = self._rows("attempts", run_id, number, below, limit) if self._knows(run_id) else []
        return [stored_attempt(row) for row in rows]

    async def output(self, run_id: int, number: int, attempt: int, stream: int, offset: int, limit: int) -> list[Piece]:
        if offset > MAX_OFFSET or not self._knows(run_id):
            return []
        return in_order(self._rows("output", run_id, number, attempt, stream, offset, limit), offset, limit)

    async def document(self, run_id: int, revision: int = 0) -> bytes | None:
        async with self._snapshot() as connection:
            if connection.execute(SQL["known"], (run_id,)).fetchone() is None:
                return None
            growths = connection.execute(SQL["growths"], (run_id,)).fetchall()
            if revision and all(row[0] != revision for row in growths):
                return None
            return await _document(connection, run_id, revision)

    async def unfinished(self) -> list[int]:
        return [run_id for (run_id,) in self._rows("unfinished")]

    async def find_request(self, request_id: str) -> int | None:
        for (run_id,) in self._rows("find_request", stored_text(request_id)):
            return int(run_id)
        return None

    async def rows(self, *, before: int | None, limit: int) -> list[RunRow]:
        found, size = [], 0
        with self._in_words(), contextlib.closing(self._open_reader().cursor()) as cursor:
            for row in cursor.execute(SQL["rows"], (MAX_OFFSET if before is None else before, limit)):
                found.append(run_row(row))
                size += len(row[2])
                if size >= MAX_ROWS_BYTES:
                    break
        return found

    async def history(self, run_id: int, number: int | None) -> list[StateChange]:
        if not self._knows(run_id):
            return []
        rows = self._rows("run_history", run_id) if number is None else self._rows("task_history", run_id, number)
        return history(rows, number)

    async def pins(self) -> list[AgentPinned]:
        return [AgentPinned(*row) for row in self._rows("pins")]

    async def deleting(self) -> list[int]:
        return [run_id for (run_id,) in self._rows("deleting")]

    async def load(self, run_id: int) -> StoredRun | None:
        async with self._snapshot() as connection:

            def select(name: str) -> sqlite3.Cursor:
                return connection.execute(SQL[name], (run_id,))

            row = select("run").fetchone()
            if row is None:
                return None
            fold = TasksFold(select("hosts"), select("assignments"), select("task_changes"))
            async for rows in _in_turns(select("ended"), _ROWS_A_TURN):
                fold.ended(rows)
            growths = [growth(row, await _document(connection, run_id, row[0])) for row in select("growths").fetchall()]
            return StoredRun(run_row(row), await _document(connection, run_id, 0), row[-1], growths, *fold.result())

    @contextlib.asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[sqlite3.Connection]:
        """A connection that sees one commit's state for as long as the context lasts."""
        self._open_reader()
        with self._in_words(), contextlib.closing(self._connect_reader()) as connection:
            connection.execute("BEGIN")
            yield connection

    def _connect_reader(self) -> sqlite3.Connection:
        connection = self._file.connect()
        connection.execute("PRAGMA query_only = 1")
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        if self._reader is None:
            raise TrackerError(f"the tracker {self._file.path} is closed")
        return self._reader

    def _rows(self, name: str, *parameters: object) -> list[Any]:
        with self._in_words():
            # All of them at once: a statement that is not at its end would keep the log from being moved into the file.
            return self._open_reader().execute(SQL[name], parameters).fetchall()

    def _knows(self, run_id: int) -> bool:
        return bool(self._rows("known", run_id))

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """Turns sqlite's errors into TrackerError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._file.error(error) from None


async def _document(connection: sqlite3.Connection, run_id: int, revision: int) -> bytes:
    pieces: list[tuple[int, bytes]] = []
    async for rows in _in_turns(connection.execute(SQL["document"], (run_id, revision)), 4):
        pieces += rows
    return joined(pieces)


async def _in_turns(cursor: sqlite3.Cursor, size: int) -> AsyncIterator[list[Any]]:
    """All rows, `size` at a time; others have their turn in between."""
    while rows := cursor.fetchmany(size):
        yield rows
        await asyncio.sleep(0)
