"""The postgres tracker, `--tracker postgresql://USER@HOST/DATABASE`: everything in a Postgres database, with psycopg 3.

One connection holds the lock and writes, so that whoever writes has the lock; others read. A commit is one transaction: its
statements go out together, each with whole columns as arrays, then COMMIT. It first counts itself in the tracker's only row, on
condition that the row still has this coordinator's epoch. This fences off an older coordinator, makes the next one wait for a
transaction under way, and tells whether a commit was kept whose answer was lost with the connection. A connection that was lost
is made again by the next commit.

The tables are in a schema of their own, `daggyr`; the only right that is needed is to create it. Reading is in sql/tracker.py,
over the connections of readers.py; which rows a record makes, in sql/batch.py; addresses and their errors are in address.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from daggyr_server.core.records import Record
from daggyr_server.trackers.base import MAX_LIVES, Opened, TrackerError, new_life
from daggyr_server.trackers.sql.batch import Batch, Row
from daggyr_server.trackers.sql.deletion import Slice
from daggyr_server.trackers.sql.lock_holder import LockHolder, in_use
from daggyr_server.trackers.sql.postgres.address import MISSING, PostgresAddress
from daggyr_server.trackers.sql.postgres.pooler import check_session
from daggyr_server.trackers.sql.postgres.readers import SQL, PostgresReaders
from daggyr_server.trackers.sql.postgres.watch import AnswerWatch, within
from daggyr_server.trackers.sql.statements import missing_migrations
from daggyr_server.trackers.sql.tracker import MAX_OUTPUT_BYTES, WAIT, SqlTracker

if MISSING is None:
    import psycopg

    from daggyr_server.trackers.sql.postgres.watch import WatchedConnection

log = logging.getLogger(__name__)

_MAX_ROWS = 5_000  # in one statement
_MAX_BYTES = 16 * 1024 * 1024
_UNLOCK_SECONDS = 1.0
_FINISH_SECONDS = 4.0  # that a commit under way has to end when the task that waits for it is cancelled

T = TypeVar("T")


class PostgresTracker(SqlTracker):
    """See the head of this file.

    `wait` is how long, in seconds, another coordinator may still hold the lock; `output_limit` how many bytes of output are kept
    of a run.
    """

    def __init__(self, address: str, *, wait: float = WAIT, output_limit: int = MAX_OUTPUT_BYTES) -> None:
        self._address = PostgresAddress(address)
        self._watch = AnswerWatch(self._address)
        self._readers: PostgresReaders = PostgresReaders(self._address, self._watch)
        where = str(self._address)
        super().__init__(where, where, self._readers, wait=wait, output_limit=output_limit)
        self._commits = 0
        self._doubtful: tuple[int, list[Record]] | None = None  # a commit whose answer was lost, and its number
        self._kept: list[Record] = []  # the records of such a commit, once it turned out that it was kept
        self._writer: WatchedConnection | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        # /tmp is in memory on many systems; /var/tmp is not, it outlives a restart: https://refspecs.linuxfoundation.org/FHS_3.0
        return Path(os.environ.get("TMPDIR") or "/var/tmp")

    async def open(self) -> Opened:
        self._watch.open()
        try:
            return await self._open(await self._watch.connect())
        except BaseException:
            await self._watch.close()
            raise

    async def _open(self, writer: WatchedConnection) -> Opened:
        try:
            with self._address.in_words(opening=True):
                await check_session(writer, self._watch, self._address)
                await self._lock(writer)
                await self._warn_if_not_durable(writer)
                await _bring_up_to_date(writer, self._where)
                holder = LockHolder.this_process()
                life = new_life()
                async with writer.transaction():
                    await writer.execute(SQL["take_epoch"], (holder.host, holder.pid, holder.since))
                    await writer.execute(SQL["add_life"], (life,))
                tracker_id, epoch, next_run_id, self._commits = await _one(writer, "tracker")
                (first_id,) = await _one(writer, "first_id")
                self._last_deposit = (await _one(writer, "last_deposit"))[0] or 0
                lives = await (await writer.execute(SQL["lives"], (MAX_LIVES,))).fetchall()
        except BaseException:
            await writer.close()
            raise
        self._writer = writer
        self._opened = Opened(
            tracker_id=tracker_id,
            epoch=epoch,
            next_run_id=next_run_id,
            durable=True,
            life=life,
            lives=dict(lives),
            first_id=first_id,
        )
        self._readers.open()
        return self._opened

    async def _lock(self, writer: WatchedConnection) -> None:
        await writer.execute(f"SET lock_timeout = {max(1, round(self._wait * 1000))}")
        try:
            await writer.execute(SQL["lock"])
        except psycopg.errors.LockNotAvailable:
            holder = str(LockHolder(*await _one(writer, "holder"))) if (await _one(writer, "exists"))[0] else "it is starting"
            raise in_use(self._where, holder, "database") from None
        await writer.execute("SET lock_timeout = '10s'")

    async def _warn_if_not_durable(self, writer: WatchedConnection) -> None:
        for setting in ("fsync", "full_page_writes"):
            row = await (await writer.execute(f"SHOW {setting}")).fetchone()
            if row != ("on",):
                log.warning("%s runs with %s = off: what it keeps may not survive power loss", self._where, setting)

    async def close(self) -> None:
        async with self._writing:
            writer, self._writer, self._opened = self._writer, None, None
            if writer is not None:
                # The server may take its time to notice that the connection is gone; the next coordinator need not wait for that.
                if not self._watch.is_silent:
                    with contextlib.suppress(psycopg.Error):
                        await within(_UNLOCK_SECONDS, writer, writer.execute(SQL["unlock"]))
                await writer.close()
            await self._readers.close()
            await self._watch.close()

    # -- writing ------------------------------------------------------------------------------------------------------

    async def commit(self, records: Sequence[Record]) -> None:
        if records:
            await _finished(self._commit(records))

    async def _commit(self, records: Sequence[Record]) -> None:
        async with self._writing:
            writer = await self._held()
            records = self._not_kept(records)
            if not records:
                return
            batch = Batch(records, self._own().life)
            async with self._transaction(writer, self._commits + 1, list(records)):
                async with writer.pipeline():
                    counted = await self._begin(writer, self._commits + 1)
                    for name, parameters in batch.steps:
                        await writer.execute(SQL[name], parameters)
                    for name, rows in batch.tables():
                        for columns in _columns(rows):
                            await writer.execute(SQL[name], columns)
                await self._check_epoch(writer, counted)
                if batch.runs_with_output:
                    await self._keep_limit(writer, batch.runs_with_output)

    async def _keep_limit(self, writer: WatchedConnection, runs: set[int]) -> None:
        above = await writer.execute(SQL["above_limit"], {"limit": self._output_limit, "runs": list(runs)})
        for run_id, excess in await above.fetchall():
            await writer.execute(SQL["drop_oldest"], {"run_id": run_id, "bytes": excess})

    async def _write_life(self, tracker_id: str, epoch: int, next_run_id: int) -> None:
        async with self._writing:
            writer = await self._held()
            with self._address.in_words():
                await writer.execute(SQL["begin_another_life"], (tracker_id, epoch, next_run_id))

    def back_up(self, destination: Path) -> int:
        """Copy the tracker, in use or not, to a new file; returns its size in bytes. It blocks. Raises TrackerError."""
        from daggyr_server.trackers.sql.postgres.copies import back_up

        return back_up(self._address, destination)

    async def exists(self) -> bool:
        """Whether the database holds a tracker. Called before `open`. Raises TrackerError."""
        with self._address.in_words():
            connection = await WatchedConnection.made(None, self._address)
            try:
                return bool((await _one(connection, "exists"))[0])
            finally:
                await connection.close()

    async def delete(self, run_ids: Sequence[int], limit: int) -> bool:
        return await _finished(self._delete(Slice(run_ids, limit))) if run_ids else False

    async def _delete(self, rows: Slice) -> bool:
        async with self._writing:
            writer = await self._held()
            async with self._transaction(writer, self._commits, None):
                await self._check_epoch(writer, await self._begin(writer, self._commits))
                while (statement := rows.statement) is not None:
                    parameters = {"run_ids": rows.run_ids, "limit": rows.limit}
                    rows.took((await writer.execute(SQL[statement], parameters)).rowcount)
            return rows.more  # Postgres gives the room to what comes next by itself

    async def _add_deposit_piece(self, number: int, start: int, data: bytes | memoryview) -> None:
        # A piece that was kept though its answer was lost is not written again: see the statement.
        await _finished(self._alone("add_deposit_piece", (number, start, bytes(data))))

    async def _discard_pieces(self, number: int, limit: int) -> int:
        return await _finished(self._alone("discard_deposit", {"number": number, "limit": limit}))

    async def _alone(self, statement: str, parameters: Row | dict[str, int]) -> int:
        """Commit one statement that is no record's; returns how many rows it wrote or took away."""
        async with self._writing:
            writer = await self._held()
            async with self._transaction(writer, self._commits, None):
                await self._check_epoch(writer, await self._begin(writer, self._commits))
                cursor = await writer.execute(SQL[statement], parameters)
        return cursor.rowcount

    async def _begin(self, writer: WatchedConnection, number: int) -> psycopg.AsyncCursor[Any]:
        assert self._opened is not None
        await writer.execute("BEGIN")
        return await writer.execute(SQL["count_commit"], (number, self._opened.tracker_id, self._opened.epoch))

    async def _check_epoch(self, writer: WatchedConnection, counted: psycopg.AsyncCursor[Any]) -> None:
        if counted.rowcount != 1:
            raise self._taken_over(await _one(writer, "holder"))

    @contextlib.asynccontextmanager
    async def _transaction(self, writer: WatchedConnection, number: int, records: list[Record] | None) -> AsyncIterator[None]:
        """Commits the transaction that was begun within it, durably, or undoes it. Raises TrackerError."""
        committing = False
        try:
            with self._address.in_words():
                yield
                committing = True
                await writer.execute("COMMIT")
                self._commits = number
        except TrackerError:
            if not writer.closed:
                with contextlib.suppress(psycopg.Error):
                    await writer.execute("ROLLBACK")
            if writer.closed and committing and records is not None:
                self._doubtful = (number, records)
            raise
        except BaseException:
            await writer.close()
            if committing and records is not None:
                self._doubtful = (number, records)
            raise

    async def _held(self) -> WatchedConnection:
        """The connection that writes and holds the lock. It is made again if it was lost. Raises TrackerError."""
        opened = self._own()
        assert self._writer is not None  # it is set while the tracker is open
        if self._writer.closed:
            writer = await self._watch.connect()
            try:
                with self._address.in_words():
                    await self._take_up_again(writer, opened)
            except BaseException:
                await writer.close()
                raise
            log.warning("connected with %s again", self._where)
            self._writer = writer
        return self._writer

    async def _take_up_again(self, writer: WatchedConnection, opened: Opened) -> None:
        """Take the lock, and find out whether a commit was kept whose answer was lost."""
        locked, known = (await _one(writer, "try_lock"))[0], (await _one(writer, "exists"))[0]
        if not known:
            raise self._lose(f"the tracker's tables are gone from {self._where}")
        tracker_id, epoch, _, commits = await _one(writer, "tracker")
        expected = {self._commits} if self._doubtful is None else {self._commits, self._doubtful[0]}
        if (tracker_id, epoch) != (opened.tracker_id, opened.epoch):
            raise self._taken_over(await _one(writer, "holder"))
        if locked and commits not in expected:
            raise self._lose(f"the tracker {self._where} does not hold what was committed to it; was an older copy brought back?")
        if not locked:
            raise TrackerError(
                f"the lock of {self._where} is held: perhaps the server has not noticed yet that a connection is gone"
            )
        if self._doubtful is not None and commits == self._doubtful[0]:
            self._commits, self._kept = self._doubtful
        self._doubtful = None

    def _not_kept(self, records: Sequence[Record]) -> Sequence[Record]:
        """`records` without those at their beginning that were kept by a commit whose answer was lost. Raises LostTracker."""
        kept = self._kept
        if list(records[: len(kept)]) != kept:
            raise self._lose(
                f"the tracker {self._where} kept a commit whose answer was lost, and was then asked for another one: what is "
                "durable is not what this coordinator believes"
            )
        self._kept = []
        return records[len(kept) :]


async def _bring_up_to_date(writer: WatchedConnection, where: str) -> None:
    """Apply the migrations that are missing, and make the tracker's row. Raises TrackerError, psycopg.Error."""
    async with writer.transaction():
        version = (await _one(writer, "version"))[0] if (await _one(writer, "exists"))[0] else 0
        for number, migration in missing_migrations("postgres", version, where, "database"):
            await writer.execute(migration.encode())
            if number == 1:
                await writer.execute(SQL["add_tracker"], (secrets.token_hex(16),))
            await writer.execute(SQL["set_version"], (number,))


async def _one(connection: WatchedConnection, name: str) -> Any:
    """The one row that a statement gives."""
    return await (await connection.execute(SQL[name])).fetchone()


def _columns(rows: list[Row]) -> Iterator[list[list[Any]]]:
    """The rows as columns, as many at a time as one statement takes well."""
    first, size = 0, 0
    for beyond, row in enumerate(rows, 1):
        size += sum(len(value) for value in row if isinstance(value, bytes | memoryview))
        if size >= _MAX_BYTES or beyond - first >= _MAX_ROWS or beyond == len(rows):
            # psycopg takes no mixed types in an array.
            yield [
                [bytes(value) for value in column] if isinstance(column[0], bytes | memoryview) else list(column)
                for column in zip(*rows[first:beyond], strict=True)
            ]
            first, size = beyond, 0


async def _finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If the caller is cancelled, `work` has _FINISH_SECONDS to end, because to break it off in the middle
    costs the connection."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_FINISH_SECONDS)
        task.cancel()
        await asyncio.wait([task], timeout=_FINISH_SECONDS)
        if task.done() and not task.cancelled():
            task.exception()  # so that asyncio does not complain that nobody asked for it
        raise
