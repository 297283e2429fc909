"""Writes results to standard output (JSON, columns and raw bytes), and knows whether a stream is a terminal.

Every command writes its results with this file, and all other messages with `notice`, so that standard output has results only.
If the reader goes away (`daggyr tasks last | head`), `Closed` is raised, and `main` ends the command quietly. Colour appears on a
terminal only, and not with NO_COLOR (no-color.org) or TERM=dumb. Control characters in what a user wrote are made visible.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import select
import stat
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from daggyr_server.cli.errors import CommandError
from daggyr_server.cli.words import STATES, printable

Row = Sequence[str]

_STDOUT = 1
# These are parameters of ECMA-48's "select graphic rendition".
_COLOURS = {"QUEUED": "2", "RUNNING": "36", "COMPLETED": "32", "ERRORED": "31", "KILLED": "33", "heading": "1"}


class Closed(Exception):
    """Nobody reads standard output any more."""


def write(data: bytes, descriptor: int = _STDOUT) -> None:
    """Write all of `data` at once, without a buffer. Raises Closed, or CommandError if it cannot be written (a full disk).

    `descriptor` 2 is standard error, for what a task wrote there.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # another program that shares the descriptor made it non-blocking
            select.select([], [descriptor], [])
        except BrokenPipeError:
            raise Closed from None
        except OSError as error:
            if error.errno == errno.EIO and stat.S_ISCHR(os.fstat(descriptor).st_mode):  # the terminal was closed
                raise Closed from None
            where = "output" if descriptor == _STDOUT else "error"
            raise CommandError(f"cannot write to standard {where}: {error.strerror}") from None


def line(text: str = "") -> None:
    """Write a line for a person, in the encoding of standard output. Characters that this does not have become escapes."""
    write((text + "\n").encode(sys.stdout.encoding, "backslashreplace"))


def notice(text: str) -> None:
    """Write lines to standard error. They are lost quietly if nobody reads it. Control characters are made visible."""
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        return


def warn(text: str) -> None:
    """Write a warning about what is valid and most likely not meant. It does not change the exit code."""
    notice(f"warning: {text}")


def is_plain(stream: Any) -> bool:
    """Whether `stream` is not a terminal, or is one that cannot move its cursor."""
    return not stream.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown")


def coloured(stream: Any) -> bool:
    return not is_plain(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, kind: str) -> str:
    """`text` in the colour of a state (or "heading"), if standard output shows colours."""
    code = _COLOURS.get(kind)
    return f"\x1b[{code}m{text}\x1b[0m" if code and coloured(sys.stdout) else text


def document(value: Any) -> None:
    """Write one JSON document, indented so that a person can read it."""
    write((_json(value, indent=2) + "\n").encode())


def json_line(value: Any) -> None:
    write((_json(value) + "\n").encode())


def _json(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which is UTF-8 (RFC 8259). If standard output has another encoding, JSON's escapes make it ASCII."""
    is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    return json.dumps(value, ensure_ascii=not is_utf8, indent=indent)


class JsonList:
    """Writes one JSON list page by page, with an item a line. `end` completes it."""

    def __init__(self) -> None:
        self._before = "[\n"

    def page(self, items: Iterable[Any]) -> None:
        text = ",\n".join(map(_json, items))
        if text:
            write((self._before + text).encode())
            self._before = ",\n"

    def end(self) -> None:
        line("[]" if self._before == "[\n" else "\n]")


class Columns:
    """Writes aligned columns under one heading, page by page. Nothing is cut, so that columns may be wider on later pages."""

    def __init__(self, *names: str, right: Iterable[str] = ()) -> None:
        """`right` names the columns that are aligned to the right, which have numbers."""
        self._names = names
        self._right = [name in set(right) for name in names]
        self._widths = [len(name) for name in names]
        self._begun = False

    def page(self, rows: Iterable[Row]) -> None:
        """Write `rows`, with the heading before the first one. Without rows, nothing is written."""
        shown = [[printable(cell) or "-" for cell in row] for row in rows]
        if not shown:
            return
        self._widths = [
            max(width, *map(_cells, column)) for width, column in zip(self._widths, zip(*shown, strict=True), strict=True)
        ]
        lines = [] if self._begun else [paint(self._aligned(self._names), "heading")]
        lines += [self._aligned(row) for row in shown]
        self._begun = True
        line("\n".join(lines))

    def _aligned(self, row: Row) -> str:
        cells = []
        for cell, width, right in zip(row, self._widths, self._right, strict=True):
            space = " " * (width - _cells(cell))
            cells.append(space + cell if right else (paint(cell, cell) if cell in STATES else cell) + space)
        return "  ".join(cells).rstrip()


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Write names and values, one pair a line. Pairs with an empty value are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        line(f"  {name:<{width}}  {printable(value)}")


def _cells(text: str) -> int:
    """How many cells of a terminal `text` fills."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
