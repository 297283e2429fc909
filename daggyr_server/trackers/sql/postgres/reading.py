"""The half of the postgres tracker that reads: with connections of its own, as many as are asked at once, up to a bound.

They are kept while they work. `PostgresTracker` in postgres.py is the other half; how rows are read is in stored_rows.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from daggyr_server.core.records import AgentPinned
from daggyr_server.core.stored import RunRow, StoredRun
from daggyr_server.trackers.base import (
    MAX_ATTEMPTS,
    MAX_ROWS_BYTES,
    Opened,
    Piece,
    StateChange,
    StoredAttempt,
    Tracker,
    TrackerError,
)
from daggyr_server.trackers.pieces import MAX_OFFSET, in_order, joined
from daggyr_server.trackers.sql.batch import stored_text
from daggyr_server.trackers.sql.postgres.address import MISSING, PostgresAddress
from daggyr_server.trackers.sql.statements import statements
from daggyr_server.trackers.sql.stored_rows import TasksFold, growth, history, run_row, stored_attempt

if MISSING is None:
    import psycopg
    from psycopg.pq import TransactionStatus

SQL = {name: text.encode() for name, text in statements("postgres").items()}
_ROWS_A_TURN = 5_000  # read at once
_MAX_READERS = 4


class PostgresReading(Tracker):
    """See the head of this file. It reads while `_opened` is set."""

    def __init__(self, address: str) -> None:
        self._where = PostgresAddress(address)
        super().__init__(str(self._where))
        self._opened: Opened | None = None
        self._idle: list[psycopg.AsyncConnection[Any]] = []
        self._reading = asyncio.Semaphore(_MAX_READERS)

    async def attempts(
        self, run_id: int, number: int, *, before: int | None = None, limit: int = MAX_ATTEMPTS
    ) -> list[StoredAttempt]:
        which = {"run_id": run_id, "number": number, "before": MAX_OFFSET if before is None else before, "limit": limit}
        rows = await self._rows("attempts", which, of=run_id)
        return [stored_attempt(row) for row in rows]

    async def output(self, run_id: int, number: int, attempt: int, stream: int, offset: int, limit: int) -> list[Piece]:
        if offset > MAX_OFFSET:
            return []
        where = {"run_id": run_id, "number": number, "attempt": attempt, "stream": stream, "offset": offset, "limit": limit}
        return in_order(await self._rows("output", where, of=run_id), offset, limit)

    async def document(self, run_id: int, revision: int = 0) -> bytes | None:
        async with self._snapshot() as reader:
            if await (await reader.execute(SQL["known"], (run_id,))).fetchone() is None:
                return None
            growths = await (await reader.execute(SQL["growths"], (run_id,), binary=True)).fetchall()
            if revision and all(row[0] != revision for row in growths):
                return None
            return await _document(reader, run_id, revision)

    async def unfinished(self) -> list[int]:
        return [run_id for (run_id,) in await self._rows("unfinished")]

    async def find_request(self, request_id: str) -> int | None:
        for (run_id,) in await self._rows("find_request", (stored_text(request_id),)):
            return int(run_id)
        return None

    async def rows(self, *, before: int | None, limit: int) -> list[RunRow]:
        which = {"before": MAX_OFFSET if before is None else before, "limit": limit, "most": MAX_ROWS_BYTES}
        rows = await self._rows("rows", which)
        return [run_row(row) for row in rows]

    async def history(self, run_id: int, number: int | None) -> list[StateChange]:
        name = "run_history" if number is None else "task_history"
        return history(await self._rows(name, {"run_id": run_id, "number": number}, of=run_id), number)

    async def pins(self) -> list[AgentPinned]:
        return [AgentPinned(*row) for row in await self._rows("pins")]

    async def deleting(self) -> list[int]:
        return [run_id for (run_id,) in await self._rows("deleting")]

    async def load(self, run_id: int) -> StoredRun | None:
        async with self._snapshot() as reader:

            async def select(name: str) -> list[Any]:
                return await (await reader.execute(SQL[name], (run_id,), binary=True)).fetchall()

            runs = await select("run")
            if not runs:
                return None
            fold = TasksFold(await select("hosts"), await select("assignments"), await select("task_changes"))
            async for rows in _in_turns(reader, "ended", (run_id,), _ROWS_A_TURN):
                fold.ended(rows)
            growths = [growth(row, await _document(reader, run_id, row[0])) for row in await select("growths")]
            return StoredRun(run_row(runs[0]), await _document(reader, run_id, 0), runs[0][-1], growths, *fold.result())

    async def _rows(self, name: str, parameters: Any = (), *, of: int | None = None) -> list[Any]:
        """All rows; none if they are `of` a run that is not known."""
        async with self._reader() as reader:
            if of is not None and await (await reader.execute(SQL["known"], (of,))).fetchone() is None:
                return []
            return await (await reader.execute(SQL[name], parameters, binary=True)).fetchall()

    @contextlib.asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection that sees one commit's state for as long as the context lasts."""
        async with self._reader() as reader:
            await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield reader
            await reader.execute("COMMIT")

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        if self._opened is None:
            raise TrackerError(f"the tracker {self._where} is closed")
        async with self._reading:
            reader = await self._idle_reader() or await self._where.connect()
            try:
                with self._in_words():
                    yield reader
            finally:
                if self._opened is not None and reader.info.transaction_status == TransactionStatus.IDLE:
                    self._idle.append(reader)
                else:
                    await reader.close()

    async def _idle_reader(self) -> psycopg.AsyncConnection[Any] | None:
        """One that is still connected."""
        while self._idle:
            reader = self._idle.pop()
            try:
                await reader.execute("")
                return reader
            except psycopg.Error:
                await reader.close()
        return None

    async def _close_readers(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """Turns psycopg's errors into TrackerError."""
        try:
            yield
        except psycopg.Error as error:
            raise self._where.error(error) from None


async def _document(reader: psycopg.AsyncConnection[Any], run_id: int, revision: int) -> bytes:
    pieces: list[tuple[int, bytes]] = []
    async for rows in _in_turns(reader, "document", (run_id, revision), 4):
        pieces += rows
    return joined(pieces)


async def _in_turns(
    reader: psycopg.AsyncConnection[Any], name: str, parameters: Sequence[object], size: int
) -> AsyncIterator[list[Any]]:
    """All rows, `size` at a time; others have their turn in between. Within a transaction."""
    async with reader.cursor(name=name, binary=True) as cursor:
        await cursor.execute(SQL[name], parameters)
        while rows := await cursor.fetchmany(size):
            yield rows
            await asyncio.sleep(0)
