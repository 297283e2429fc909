"""The file of a sqlite tracker: how it is made, locked, checked and brought up to date, and its errors in words.

`SqliteTracker` opens it and `SqliteReaders` connect to it. No commit is written here.

A file that is damaged, that is no tracker, or that a newer version made is refused and left as it is. So is one that lost some of
its newest state (whole.py). So is a file of another user, or one that others may write, and so are the files beside it (PATH-wal,
PATH-shm, PATH-lock): who writes them decides what is run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from daggyr_server.trackers.base import MAX_LIVES, Opened, TrackerError, new_life
from daggyr_server.trackers.sql.lock_holder import LockHolder, in_use
from daggyr_server.trackers.sql.sqlite.lock import SqliteLock
from daggyr_server.trackers.sql.sqlite.whole import (
    begin_log,
    check_not_missing,
    check_whole,
    commits_of,
    connect_without_log,
    has_log,
)
from daggyr_server.trackers.sql.statements import missing_migrations, statements

APPLICATION_ID = 0x44616767  # in the header of each file; https://sqlite.org/fileformat2.html#application_id
_MAGIC = b"SQLite format 3\0"  # at the beginning of each file
CHECKED_BYTES = 64 * 1024 * 1024  # a file up to this size is checked whole when it is opened, which takes half a second
# Deleted rows are overwritten in pages that are written anyhow; free pages go when the file is cut (SqliteTracker.scrub).
SECURE_DELETE = "FAST"
_SQL = statements("sqlite")


class SqliteFile:
    """A database by its path, real and absolute."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = SqliteLock(path)

    def error(self, error: Exception, *, opening: bool = False) -> TrackerError:
        """What went wrong, in words for a person. A tracker that works goes on by itself; at its `opening` the server ends."""
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith("SQLITE_FULL"):
            then = "and try again" if opening else "it goes on by itself then"
            return TrackerError(f"the disk of {self.path} is full: make room, {then}")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return self.damaged(str(error))
        if name.startswith("SQLITE_BUSY"):
            then = "try again" if opening else "it goes on by itself"
            return TrackerError(f"another program is writing to {self.path}: {then} once that has ended")
        return TrackerError(f"the tracker {self.path} cannot be used: {error}{f' ({name})' if name else ''}")

    @contextlib.contextmanager
    def in_words(self, *, opening: bool = False) -> Iterator[None]:
        """Turns sqlite's errors into TrackerError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self.error(error, opening=opening) from None

    def damaged(self, what: str) -> TrackerError:
        return TrackerError(
            f"the tracker {self.path} is damaged ({what}); it was left as it is. If the system's log says that the disk fails, "
            f"mend that first: it may be whole. Otherwise copy it and {self.path.name}-wal aside, then bring back a copy from "
            "before, save what can be read with sqlite3's `.recover`, or name another file to begin anew"
        )

    # -- the lock -----------------------------------------------------------------------------------------------------

    async def lock(self, wait: float) -> None:
        """Take the lock for this process. Raises TrackerError, naming the holder, if another keeps it for `wait` seconds."""
        if self.path.is_dir():
            raise TrackerError(f"{self.path} is a folder: name a file in it, such as sqlite:{self.path}/state.db")
        self._check_kind()
        for path in (
            self.path,
            self.held.file,
            *(self.path.with_name(f"{self.path.name}-{end}") for end in ("wal", "shm", "journal")),
        ):
            _check_owner(path)
        try:
            await self.held.take(wait, self._make, lambda: in_use(self.path, self._holder(), "file"))
        except OSError as error:
            if not self.path.parent.exists():
                raise self._no_file(self.path, error) from None
            raise TrackerError(f"cannot lock {self.path}: {error.strerror}") from None

    def _check_kind(self) -> None:
        """Refuse what is surely no tracker, before a lock is made beside it, or advice is given about its owner."""
        try:
            if not self.path.is_file() and self.path.exists():
                raise TrackerError(f"{self.path} is a device, a pipe or a socket: name a file")
            with self.path.open("rb") as file:
                beginning = file.read(len(_MAGIC))
        except OSError:  # if there is none, it is made; other errors are told when it is opened
            return
        if beginning and beginning != _MAGIC:
            raise self._no_database()

    def _no_database(self) -> TrackerError:
        return TrackerError(
            f"{self.path} is no sqlite database, or its beginning is damaged; it was left as it is. Name another file, "
            "or bring back a copy from before"
        )

    def unlock(self) -> None:
        self.held.release()

    def _holder(self) -> str:
        """Who holds the lock, as the database tells. The database is in use, so that an error here is none."""
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._connect_to_look()) as connection:
            row = connection.execute(_SQL["tracker"]).fetchone()
            return str(LockHolder(*row[3:]))
        return "a process that has not told who it is"

    # -- opening ------------------------------------------------------------------------------------------------------

    def open(self) -> tuple[sqlite3.Connection, Opened]:
        """The connection that writes, and the next epoch. It blocks. Call it with the lock held. Raises TrackerError."""
        check_not_missing(self.path)
        with self.in_words(opening=True):
            # The check uses a connection that writes nothing, not even a log that a crash left.
            with contextlib.closing(self._connect_to_look()) as connection:
                self._check(connection)
            connection = self.connect()
            try:
                self._bring_up_to_date(connection)
                opened = self._begin_epoch(connection)
                # The file itself says from now on that it is in use. A crash may have left what was deleted in the log, too.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                begin_log(connection, opened.tracker_id, opened.epoch)
                self.held.begin_mark(opened.tracker_id, opened.epoch, commits_of(connection))
                return connection, opened
            except BaseException:
                connection.close()
                raise

    def connect(self) -> sqlite3.Connection:
        """A new connection, whose commits are durable: https://sqlite.org/pragma.html#pragma_synchronous."""
        # It does not wait for a lock, because that would block the event loop: who needs one that is held asks again.
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=0)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA secure_delete = {SECURE_DELETE}")
        return connection

    def look(self) -> sqlite3.Connection:
        """A connection that writes nothing, to a tracker that may have lost something. Raises TrackerError, sqlite3.Error."""
        self._check_kind()
        connection = self._connect_to_look()
        try:
            self._check_tables(connection, empty=False)
        except BaseException:
            connection.close()
            raise
        return connection

    def look_at_whole(self) -> sqlite3.Connection:
        """The same, to a tracker that holds all that it ever held. Raises TrackerError, sqlite3.Error."""
        mark = self.held.look_at_mark()  # read first: a coordinator may go on meanwhile
        connection = self.look()
        try:
            check_whole(self.path, connection, mark)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_to_look(self) -> sqlite3.Connection:
        """A connection that writes nothing. sqlite would leave an empty log behind where there is none."""
        if not has_log(self.path):
            return connect_without_log(self.path)
        return sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True, timeout=1.0)

    def is_in_place(self, opened: os.stat_result) -> bool:
        """Whether the path still names the file that was opened."""
        try:
            return os.path.samestat(self.path.stat(), opened)
        except OSError:
            return False

    def _make(self) -> None:
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)  # the file's name is durable as well
            finally:
                os.close(folder)
        except OSError as error:
            raise self._no_file(self.path, error) from None

    def _no_file(self, path: Path, error: OSError) -> TrackerError:
        if not path.parent.exists():
            return TrackerError(f"cannot make {path}: its folder does not exist; make it first: mkdir -p {path.parent}")
        return TrackerError(f"cannot open {path}: {error.strerror}")

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse a file that is no tracker, or a damaged one. Nothing is written before this."""
        if not self._check_tables(connection, empty=True):
            return
        check_whole(self.path, connection, self.held.mark())
        if self.path.stat().st_size <= CHECKED_BYTES:
            found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
            if found != ["ok"]:
                raise self.damaged(" ".join(found[0].replace("*** in database main ***", "").split()))

    def _check_tables(self, connection: sqlite3.Connection, *, empty: bool) -> bool:
        """Refuse a file that is no tracker of a version that is known, or, unless it may be `empty`, an empty one.

        Returns whether there are tables.
        """
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorname == "SQLITE_NOTADB":
                raise self._no_database() from None
            raise
        if tables == 0 and empty:
            return False
        if tables == 0:
            raise TrackerError(f"{self.path} is empty")
        if application != APPLICATION_ID:
            raise TrackerError(f"{self.path} is a database of another program; name another file")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        missing_migrations("sqlite", version, self.path, "file")
        return True

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes hold in an empty file only, before its first page
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise TrackerError(f"{self.path} cannot have a write-ahead log there; name a file on a local disk")
        migrate(connection, self.path)

    def _begin_epoch(self, connection: sqlite3.Connection) -> Opened:
        holder = LockHolder.this_process()
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute(_SQL["tracker"]).fetchone() is None:
            connection.execute(_SQL["add_tracker"], (secrets.token_hex(16),))
        connection.execute(_SQL["take_epoch"], (holder.host, holder.pid, holder.since))
        life = new_life()
        connection.execute(_SQL["add_life"], (life,))
        tracker_id, epoch, next_run_id, *_ = connection.execute(_SQL["tracker"]).fetchone()
        lives = dict(connection.execute(_SQL["lives"], (MAX_LIVES,)))
        (first_id,) = connection.execute(_SQL["first_id"]).fetchone()
        connection.execute("COMMIT")
        return Opened(
            tracker_id=tracker_id,
            epoch=epoch,
            next_run_id=next_run_id,
            durable=True,
            life=life,
            lives=lives,
            first_id=first_id,
        )


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the tables up to this version's. Raises TrackerError, sqlite3.Error."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, migration in missing_migrations("sqlite", version, path, "file"):
        if number == 1:
            migration = f"PRAGMA application_id = {APPLICATION_ID};\n{migration}"
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{migration}\nPRAGMA user_version = {number};\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _check_owner(path: Path) -> None:
    """Raises TrackerError if the file exists and somebody else owns it or may write it."""
    try:
        status = path.stat()
    except OSError:  # if there is none, it is made or not needed; other errors are told when it is opened
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        raise TrackerError(
            f"{path} belongs to another user (uid {status.st_uid}), who decides what stands in it: start the server as that "
            f"user, or chown {os.geteuid()} {path}, or name another file"
        )
    if mode & 0o022:
        raise TrackerError(f"{path} may be written by others (mode {mode:04o}): chmod go-w {path}, or name another file")
