"""The sqlite tracker, `--tracker sqlite:PATH`: everything in one file, with the standard library's sqlite3.

One connection writes, one commit after the other. Its statements run in the event loop's thread; only COMMIT, which waits for the
disk, runs in another thread, because a thread beside a busy loop would wait for the interpreter's lock at every row. A commit of
many bytes, and a deletion, run in that thread altogether.

Reading is in sql/tracker.py, over the connections of readers.py; opening, locking and checking the file is in file.py; which rows
a record makes, in sql/batch.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from daggyr.backoff import Backoff
from daggyr_server.core.records import Record
from daggyr_server.trackers.base import LostTracker, Opened, TrackerError
from daggyr_server.trackers.sql.batch import Batch
from daggyr_server.trackers.sql.deletion import Slice
from daggyr_server.trackers.sql.sqlite.file import SqliteFile
from daggyr_server.trackers.sql.sqlite.readers import SQL, SqliteReaders
from daggyr_server.trackers.sql.sqlite.whole import begin_log, commits_of
from daggyr_server.trackers.sql.tracker import MAX_OUTPUT_BYTES, WAIT, SqlTracker

_MANY_BYTES = 1024 * 1024  # a commit with more bytes of documents, output and lists runs in the thread
_BUSY_SECONDS = 2.0  # how long another program that writes, such as a backup, is waited for
_BUSY_POLL = 0.05
_CHECKPOINT_PAGES = 2_000  # of 4 KiB each, in the log, before it is moved into the file; a shorter log writes more pages twice
# Pages that the writing connection keeps in memory. Each run leaves about a kibibyte there until the cache is full, so that the
# memory of a server rises over its first thousands of runs. 600,000 tasks in random order were written no faster with 32 MiB, and
# an eighth slower with 2 MiB.
_CACHE_KIB = 8 * 1024
_SCRUB_PAUSES = (0.1, 5.0)  # seconds between tries to empty the log while somebody reads it: doubled from the first to the last
_MAX_LOG_BYTES = 64 * 1024 * 1024  # a log that a large commit made longer is cut to this

T = TypeVar("T")


class SqliteTracker(SqlTracker):
    """See the head of this file.

    `wait` is how long, in seconds, another coordinator may still hold the file; `output_limit` how many bytes of output are
    kept of a run.
    """

    def __init__(self, address: str, *, wait: float = WAIT, output_limit: int = MAX_OUTPUT_BYTES) -> None:
        path = address.partition(":")[2]
        if not path or "\0" in path:
            raise TrackerError("the sqlite tracker needs a file: write sqlite:/path/of/state.db")
        if path == ":memory:":
            raise TrackerError("the sqlite tracker needs a file; to keep state in memory only, write `memory` instead of it")
        # The real path: another name of the same file has the same lock.
        self._file = SqliteFile(Path(os.path.realpath(path)))
        self._readers: SqliteReaders = SqliteReaders(self._file)
        super().__init__(address, str(self._file.path), self._readers, wait=wait, output_limit=output_limit)
        self._identity: os.stat_result | None = None
        self._writer: sqlite3.Connection | None = None
        self._commits = 0  # of all epochs: those that are durable
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._scrubbing: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file's path, real and absolute."""
        return self._file.path

    @property
    def folder(self) -> Path:
        return self._file.path.parent

    async def open(self) -> Opened:
        await self._file.lock(self._wait)
        try:
            writer, opened = await self._in_thread(self._file.open)
            self._writer, self._opened = writer, opened
            with self._file.in_words(opening=True):
                self._identity = self._file.path.stat()
                self._commits = commits_of(writer)
                self._last_deposit = writer.execute(SQL["last_deposit"]).fetchone()[0] or 0
                writer.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
                writer.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                writer.execute(f"PRAGMA journal_size_limit = {_MAX_LOG_BYTES}")
                self._readers.open()
        except BaseException:
            await self.close()
            raise
        return opened

    async def close(self) -> None:
        scrubbing, self._scrubbing = self._scrubbing, None
        if scrubbing is not None:
            scrubbing.cancel()
            await asyncio.gather(scrubbing, return_exceptions=True)
        async with self._writing:
            writer, self._writer = self._writer, None
            opened, self._opened = self._opened, None
            self._readers.close()
            if writer is not None:
                if opened is not None and self._lost is None and self._is_in_place():
                    await self._in_thread(lambda: self._stop(writer, opened))
                await self._in_thread(writer.close)  # which moves the log into the file
            self._thread.shutdown()
            self._file.unlock()

    def _stop(self, writer: sqlite3.Connection, opened: Opened) -> None:
        """Have the file say that it was stopped. A disk that is full keeps its log, and then the file is as after a crash."""
        with contextlib.suppress(sqlite3.Error, OSError):
            writer.execute(SQL["stop"], (opened.tracker_id, opened.epoch))
            self._commits += 1
            self._file.held.mark_commits(self._commits)
            self._file.held.sync_mark()

    # -- writing ------------------------------------------------------------------------------------------------------

    async def commit(self, records: Sequence[Record]) -> None:
        if records:
            batch = Batch(records, self._own().life)
            await self._transaction(lambda connection: self._write(connection, batch), threaded=batch.bytes > _MANY_BYTES)

    def _write(self, connection: sqlite3.Connection, batch: Batch) -> None:
        for name, parameters in batch.steps:
            connection.execute(SQL[name], parameters)
        for name, rows in batch.tables():
            connection.executemany(SQL[name], rows)
        for run_id in batch.runs_with_output:
            above = connection.execute(SQL["above_limit"], (run_id, self._output_limit)).fetchone()
            if above is not None:
                connection.execute(SQL["drop_oldest"], (run_id, above[0]))

    async def _add_deposit_piece(self, number: int, start: int, data: bytes | memoryview) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.execute(SQL["add_deposit_piece"], (number, start, data))

        await self._transaction(write, threaded=True)

    async def _discard_pieces(self, number: int, limit: int) -> int:
        def discard(connection: sqlite3.Connection) -> int:
            return connection.execute(SQL["discard_deposit"], {"number": number, "limit": limit}).rowcount

        return await self._transaction(discard, threaded=True)

    async def _write_life(self, tracker_id: str, epoch: int, next_run_id: int) -> None:
        await self._transaction(
            lambda connection: connection.execute(SQL["begin_another_life"], (tracker_id, epoch, next_run_id)), threaded=False
        )

    async def delete(self, run_ids: Sequence[int], limit: int) -> bool:
        rows = Slice(run_ids, limit)
        if run_ids:
            more = await self._transaction(lambda connection: _delete(connection, rows), threaded=True)
            if more:
                return True
        async with self._writing:
            connection = self._connection()
            with self._file.in_words():
                return await self._in_thread(lambda: self._give_room_back(connection, max(1, limit)))

    def _give_room_back(self, connection: sqlite3.Connection, pages: int) -> bool:
        """Cut free pages off the file. Returns whether there are more."""
        before = _free_pages(connection)
        # It is a script, so that the interpreter's lock is let go for all pages at once.
        connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        return 0 < _free_pages(connection) < before

    async def scrub(self) -> None:
        """Empty the log, which holds pages as they were before the deletion: it is moved into the file, which is shortened too.

        Somebody who reads (a backup, a person) keeps the log as it is; then this is tried again beside other work.
        """
        if not await self._empty_log() and self._scrubbing is None:
            self._scrubbing = asyncio.create_task(self._go_on_scrubbing(), name="emptying the tracker's log")

    async def _go_on_scrubbing(self) -> None:
        backoff = Backoff(*_SCRUB_PAUSES)
        emptied = False
        while not emptied:
            await asyncio.sleep(backoff.next())
            try:
                emptied = await self._empty_log()
            except LostTracker:
                break
            except TrackerError:
                continue  # commits meet the same error and tell of it
        self._scrubbing = None

    async def _empty_log(self) -> bool:
        """Returns whether the log is empty now. It is not if somebody reads it."""
        async with self._writing:
            connection = self._connection()
            with self._file.in_words():
                return await self._in_thread(lambda: self._empty(connection))

    def _empty(self, connection: sqlite3.Connection) -> bool:
        opened = self._own()
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            begin_log(connection, opened.tracker_id, opened.epoch)
            self._commits += 1
        return not busy

    async def _transaction(self, work: Callable[[sqlite3.Connection], T], *, threaded: bool) -> T:
        """Make all that `work` does durable, or nothing of it. Raises TrackerError."""
        async with self._writing:
            connection = self._connection()
            try:
                with self._file.in_words():
                    await self._begin(connection)
                    self._count(connection)
                    if threaded:
                        return await self._in_thread(lambda: self._work_and_commit(connection, work))
                    result = work(connection)
                    await self._in_thread(lambda: self._commit(connection))
                    return result
            finally:
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        connection.rollback()

    def _connection(self) -> sqlite3.Connection:
        """The connection that writes, as long as the file is this tracker's. Raises TrackerError."""
        self._own()
        assert self._writer is not None  # it is set while the tracker is open
        if not self._is_in_place():
            raise self._lose(f"{self._where} was taken away, or another file was put in its place, while it was in use")
        return self._writer

    def _is_in_place(self) -> bool:
        return self._identity is not None and self._file.is_in_place(self._identity)

    async def _begin(self, connection: sqlite3.Connection) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _BUSY_SECONDS
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or loop.time() >= deadline:
                    raise
            await asyncio.sleep(_BUSY_POLL)

    def _count(self, connection: sqlite3.Connection) -> None:
        """Count the commit that was begun, as long as the tracker is this coordinator's. Raises LostTracker."""
        opened = self._own()
        if connection.execute(SQL["count_commit"], (opened.tracker_id, opened.epoch)).rowcount != 1:
            raise self._taken_over(connection.execute(SQL["tracker"]).fetchone()[3:])

    def _commit(self, connection: sqlite3.Connection) -> None:
        connection.commit()
        self._commits += 1
        self._file.held.mark_commits(self._commits)

    def _work_and_commit(self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        result = work(connection)
        self._commit(connection)
        return result

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread. Even a caller that is cancelled waits for it, because it uses the connection."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()
            raise cancelled
        return future.result()


def _free_pages(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def _delete(connection: sqlite3.Connection, rows: Slice) -> bool:
    """Take rows away. Returns whether there may be more."""
    run_ids = msgspec.json.encode(rows.run_ids).decode()  # a list that SQL can take apart
    while (statement := rows.statement) is not None:
        rows.took(connection.execute(SQL[statement], {"run_ids": run_ids, "limit": rows.limit}).rowcount)
    return rows.more
