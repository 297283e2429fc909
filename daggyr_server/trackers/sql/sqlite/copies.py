"""Copies of a sqlite tracker: one that is made while a coordinator works, and one that is put in a tracker's place again.

`daggyr-server backup` and `restore` call this. A copy is one file without a log. It says of itself that it is a copy, so that no
coordinator goes on with it as it is. Each file is made whole under another name, flushed, and only then given its own: whatever
ends this process, there is the whole file or none. Nothing here changes what a tracker holds but for that word.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from daggyr.whole_file import sync_folder
from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.sql.drafts import draft_beside
from daggyr_server.trackers.sql.sqlite.file import SqliteFile, migrate
from daggyr_server.trackers.sql.sqlite.lock import is_locked
from daggyr_server.trackers.sql.sqlite.whole import STANDING_VERSION, connect_without_log, foreign_log, log_of, standing
from daggyr_server.trackers.sql.statements import statements

_SQL = statements("sqlite")
_PAGES = 2_000  # copied at a time: an interrupt is taken in between


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy holds."""

    size: int  # bytes
    runs: int
    unfinished: int
    tracker_id: str


def back_up(path: Path, destination: Path) -> Copied:
    """Copy a tracker, in use or not, to a new file. Raises TrackerError."""
    file = SqliteFile(path)
    if not path.exists():
        raise TrackerError(f"there is no tracker {path}: name the one that is to be copied with --tracker or --config")
    _check_free(destination)
    _check_apart(path, destination)
    with (
        file.in_words(),
        contextlib.closing(file.look_at_whole()) as source,
        _written(destination),
        draft_beside(destination) as draft,
    ):
        copied = _copy(source, draft, copy_time=time.time())
        _put(draft, destination)
        return copied


def _check_free(destination: Path) -> None:
    if os.path.lexists(destination):
        raise TrackerError(f"{destination} exists, and a copy overwrites nothing: name another file")
    if not destination.parent.is_dir():
        raise TrackerError(f"there is no folder {destination.parent}: make it first: mkdir -p {destination.parent}")


def _check_apart(path: Path, destination: Path) -> None:
    """Refuse the names of files that stand beside the tracker: its next server would take the copy for its log or its lock."""
    if os.path.realpath(destination) in {f"{os.path.realpath(path)}-{end}" for end in ("wal", "shm", "journal", "lock")}:
        raise TrackerError(f"{destination} is the name of a file that belongs to the tracker {path}: name another file")


def _copy(source: sqlite3.Connection, draft: Path, *, copy_time: float | None) -> Copied:
    """Copy one commit's state, check it, and have it say that it is a copy, or, without a time, that it was stopped."""
    # As long as this transaction lasts, all pages are those of one commit, and nobody who writes waits for it.
    source.execute("BEGIN")
    source.execute("SELECT count(*) FROM sqlite_master").fetchone()
    with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        source.backup(connection, pages=_PAGES, sleep=0)
        source.execute("ROLLBACK")
        connection.execute("PRAGMA journal_mode = DELETE")
        found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise TrackerError(f"what was copied is damaged ({' '.join(found[0].split())}): copy a tracker from before")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if copy_time is not None:
            if version < STANDING_VERSION:  # else the copy could not say that it is one
                migrate(connection, draft)
            connection.execute(_SQL["make_copy"], (copy_time,))
        elif version >= STANDING_VERSION:
            connection.execute(_SQL["take_copy"])
        (tracker_id, *_) = connection.execute(_SQL["tracker"]).fetchone()
        runs, unfinished = connection.execute(_SQL["holdings"]).fetchone()
    return Copied(draft.stat().st_size, runs, unfinished, tracker_id)


@contextlib.contextmanager
def _written(place: Path) -> Iterator[None]:
    """Turns what the disk of a new file refuses into TrackerError. What is copied may lie on another disk, which is well."""
    try:
        yield
    except OSError as error:
        raise TrackerError(f"cannot write {place}: {error.strerror}") from None
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
            raise
        raise TrackerError(f"cannot write {place}: its disk is full; make room, and try again") from None


def _put(draft: Path, destination: Path) -> None:
    """Give a draft its name, which nobody else has, durably. Raises TrackerError, OSError."""
    _sync(draft)
    try:
        destination.hardlink_to(draft)
    except FileExistsError:
        raise TrackerError(f"{destination} exists, and a copy overwrites nothing: name another file") from None
    sync_folder(destination.parent)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CopyOnItsWay:
    """A copy on its way to be a tracker: `draft` may be opened as one, and `put` gives it the tracker's place.

    `copy` and `target` are real and absolute paths, and may be the same: then a tracker is taken as it is, and what was there is
    set aside.
    """

    def __init__(self, copy: Path, target: Path) -> None:
        self.copy = copy
        self.target = target
        self.aside: Path | None = None  # what was in the tracker's place, once it is set aside
        self.dropped_log = ""  # why the log beside the copy was not taken; empty if it was
        self._file = SqliteFile(target)
        self._was_empty = False
        self._locked = False
        self._exit = contextlib.ExitStack()
        self.draft = target

    async def begin(self) -> Copied:
        """Take the lock of the place, and copy. Raises TrackerError; then nothing has changed."""
        self._check()
        try:
            with _written(self.target):
                # It is there before the place is: if this process is killed, no server takes the place for an empty tracker.
                draft = self._exit.enter_context(draft_beside(self.target))
            with self._file.in_words():
                self._was_empty = not self.target.exists() or not self.target.stat().st_size
                await self._file.lock(0.0)
                self._locked = True
            with SqliteFile(self.copy).in_words(), contextlib.closing(self._source()) as source, _written(self.target):
                copied = _copy(source, draft, copy_time=None)
            self.draft = draft
            return copied
        except BaseException:
            self.end()
            raise

    def _check(self) -> None:
        if not self.copy.is_file():
            if self.copy == self.target:
                raise TrackerError(
                    f"there is no tracker {self.target}: bring its files back, or name the copy it is to be made of"
                )
            raise TrackerError(f"there is no copy {self.copy}")
        if self.copy != self.target:
            if self.target.exists() and self.target.stat().st_size:
                move = f"mv {self.target} {self.target}.old"
                if log_of(self.target).exists():
                    move += f"; mv {log_of(self.target)} {self.target}.old-wal"
                raise TrackerError(f"{self.target} exists: move it away first, with its -wal, if it has one: {move}")
            if is_locked(self.copy):
                raise TrackerError(f"a server uses {self.copy}: make a copy of it with `daggyr-server backup`, and restore that")
        if self.copy != self.target and log_of(self.target).exists():
            raise TrackerError(f"the log {log_of(self.target)} of another tracker is there: move it away first")

    def _source(self) -> sqlite3.Connection:
        """What is copied: the file with its log, or without a log that is another's."""
        file = SqliteFile(self.copy)
        connection = file.look()
        found = standing(connection)
        self.dropped_log = foreign_log(self.copy, found) if found is not None else ""
        if not self.dropped_log:
            return connection
        connection.close()
        return connect_without_log(self.copy)

    def put(self) -> None:
        """Give the draft, closed, the tracker's place. Raises TrackerError."""
        with self._file.in_words(), _written(self.target):
            _sync(self.draft)
            if not self._was_empty:
                self._set_aside()
            self.draft.replace(self.target)
            # Until it goes, it is another tracker's log, with which no coordinator takes the file, and `restore` does without.
            log_of(self.target).unlink(missing_ok=True)
            sync_folder(self.target.parent)
            self._was_empty = False

    def _set_aside(self) -> None:
        """Give what is in the tracker's place other names too, so that it is whole in its place until the draft has it."""
        number = 1
        while os.path.lexists(aside := self._aside(number)) or os.path.lexists(log_of(aside)):
            number += 1
        aside.hardlink_to(self.target)
        if log_of(self.target).exists():
            log_of(aside).hardlink_to(log_of(self.target))
        self.target.with_name(f"{self.target.name}-shm").unlink(missing_ok=True)
        self.aside = aside

    def _aside(self, number: int) -> Path:
        return self.target.with_name(f"{self.target.name}.before-{number}")

    def end(self) -> None:
        """Let go of everything. A place that was empty is empty again, unless the draft was put there."""
        if self._locked and self._was_empty:
            self.target.unlink(missing_ok=True)
        self._exit.close()
        self._file.unlock()
