"""The SQL of a tracker, as text in files: statements by name, and migrations by number.

`sql/KIND/statements.sql` holds one statement after each line `-- name: NAME`; `sql/KIND/NNN_*.sql` are the migrations, which are
applied in order of their numbers from 1, each once. The sqlite and the postgres tracker read them. Nothing here runs SQL.
"""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable

from daggyr_server.trackers.base import TrackerError

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)


def statements(kind: str) -> dict[str, str]:
    """The statements of a kind of tracker, by name, without comments."""
    pieces = _NAME.split((_folder(kind) / "statements.sql").read_text(encoding="utf-8"))
    return {name: _COMMENT.sub("", text + "\n").strip() for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}


def migrations(kind: str) -> list[str]:
    """The migrations of a kind of tracker; the first one, number 1, makes the tables."""
    found = sorted(
        (entry.name, entry.read_text(encoding="utf-8")) for entry in _folder(kind).iterdir() if entry.name[0].isdigit()
    )
    return [text for _, text in found]


def missing_migrations(kind: str, version: int, where: object, another: str) -> list[tuple[int, str]]:
    """The migrations that tables of a version lack, with their numbers; version 0 is a database without tables.

    Raises TrackerError if the version is newer than all migrations; `another` is what to name instead, a file or a database.
    """
    known = migrations(kind)
    if version > len(known):
        raise TrackerError(
            f"the tracker {where} was made by a newer DaggyR (its tables are version {version}, this one knows {len(known)}): "
            f"start that one, or name another {another}"
        )
    return list(enumerate(known[version:], version + 1))


def _folder(kind: str) -> Traversable:
    return files(__package__) / kind
