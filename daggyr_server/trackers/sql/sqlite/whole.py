"""Whether a sqlite tracker's file holds all that was ever durable in it, as far as the files themselves can tell.

`SqliteFile` asks before it writes anything. sqlite takes any log (PATH-wal) whose checksums are right, drops what comes after
the first frame that is not, and takes a file without a log for a whole one. So a live copy without its log, a lost log, one with
a flipped bit and one of another tracker would each be an emptier tracker. Four things tell:

- **The count of commits** is in the file, raised by each commit. The mark beside the file (lock.py) is never above it.
- **The standing** says whether a coordinator has stopped. While one works, its log is never empty, which `begin_log` sees to.
- **The file without its log** has the id and the count of an earlier moment of the same tracker.
- **A copy** that `daggyr-server backup` made says that it is one.

What is refused is left as it is, and the message says how to go on. Nothing here writes but `begin_log`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.sql.drafts import was_interrupted
from daggyr_server.trackers.sql.sqlite.lock import Mark, boot_id
from daggyr_server.trackers.sql.statements import statements

_SQL = statements("sqlite")
STANDING_VERSION = 4  # of the tables, from which on they tell this
STOPPED, IN_USE, COPY = 0, 1, 2


class Standing(NamedTuple):
    """What a file tells about itself."""

    tracker_id: str
    epoch: int
    commits: int
    standing: int


def log_of(path: Path) -> Path:
    """sqlite's log of a database."""
    return path.with_name(f"{path.name}-wal")


def has_log(path: Path) -> bool:
    """Whether a database has a log with something in it."""
    return _size(log_of(path)) > 0


def begin_log(connection: sqlite3.Connection, tracker_id: str, epoch: int) -> None:
    """Put a commit into a log that was just emptied: while the tracker is in use, an empty log is a lost one.

    Raises sqlite3.Error.
    """
    connection.execute(_SQL["count_commit"], (tracker_id, epoch))


def standing(connection: sqlite3.Connection) -> Standing | None:
    """What a database of this version's tables tells; None of older tables, or of none. Raises sqlite3.Error."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    row = connection.execute(_SQL["standing"]).fetchone() if version >= STANDING_VERSION else None
    return Standing(*row) if row else None


def commits_of(connection: sqlite3.Connection) -> int:
    """How many commits a tracker of this version's tables has seen. Raises sqlite3.Error."""
    return int(connection.execute(_SQL["standing"]).fetchone()[2])


def check_not_missing(path: Path) -> None:
    """Refuse a database that is not there, or empty, while its log or a copy of it on its way is. Raises TrackerError.

    A new one would take the log away, or the copy's place.
    """
    if has_log(path) and not _size(path):
        raise TrackerError(
            f"{path} is missing or empty, but its log {log_of(path).name} is there: bring {path.name} back, beside the log; "
            "or move the log away, to begin anew"
        )
    if not _size(path) and was_interrupted(path):
        raise TrackerError(
            f"{path} is empty, because `daggyr-server restore` was interrupted before it was done: call it again; or remove "
            f"what it left beside it, to begin anew: rm {path.parent}/.{path.name}.*"
        )


def check_whole(path: Path, connection: sqlite3.Connection, mark: Mark | None) -> None:
    """Refuse a tracker that lost some of its newest state. Raises TrackerError, sqlite3.Error.

    `connection` sees the log. `mark` is what this host has seen of the tracker at this path, or of another one there before.
    """
    found = standing(connection)
    if found is None:
        return
    if found.standing == COPY:
        raise TrackerError(
            f"{path} is a copy that `daggyr-server backup` made: a server on it would give ids of runs and attempts out "
            f"again that were given out since. {_go_on(path)}"
        )
    if mark is not None and mark.tracker_id != found.tracker_id:
        mark = None
    if mark is not None and (found.commits < mark.commits or found.epoch < mark.epoch):
        raise TrackerError(
            f"{path} is behind what this host has seen of it: it holds {found.commits} commits of {found.epoch} starts, and "
            f"there were {mark.commits} of {mark.epoch}. An older copy was put in its place, or its log "
            f"({log_of(path).name}) was lost, damaged or exchanged. {_go_on(path)}"
        )
    if not has_log(path):
        # After a crash, a program that looked at the file may have moved the log into it: then nothing is missing.
        nothing_missing = mark is not None and mark.boot == boot_id() != ""
        if found.standing == IN_USE and not nothing_missing:
            raise TrackerError(
                f"{path} was in use when it was left or copied, and its log ({log_of(path).name}), which holds its newest state, "
                f"is not there. {_go_on(path)}"
            )
        return
    whose = foreign_log(path, found)
    if whose:
        raise TrackerError(
            f"the log {log_of(path).name} beside {path} is not the one that belongs to it: it is {whose}. {_go_on(path)}"
        )


def foreign_log(path: Path, found: Standing) -> str:
    """Whose the log is that was seen with a database; empty if it is the database's own. Raises nothing."""
    before = _without_log(path)
    if before is None or (before.tracker_id == found.tracker_id and before.commits <= found.commits):
        return ""
    return "of another tracker" if before.tracker_id != found.tracker_id else "of an earlier time"


def _go_on(path: Path) -> str:
    return (
        "It was left as it is. Bring the newest files back, all of them; or go on with what is there, as another life of the "
        f"tracker: daggyr-server restore --tracker sqlite:{path}"
    )


def connect_without_log(path: Path) -> sqlite3.Connection:
    """A connection that sees the file as it is without its log, and writes nothing (https://sqlite.org/uri.html, `immutable`)."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)


def _without_log(path: Path) -> Standing | None:
    # A crash may have left a page half written, which the log then mends: an error here is none.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect_without_log(path)) as connection:
        return standing(connection)
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
