"""Results on standard output: JSON, columns and raw bytes; and whether anything is a terminal.

Every command writes its results through here and all else through `notice`, so that standard output holds results only. A
reader that goes away (`daggyr tasks last | head`) ends the output quietly: `Closed`. Colour appears on a terminal only, and
not with NO_COLOR (no-color.org) or TERM=dumb. What a user wrote is printed with its control characters made visible.
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
# ECMA-48 "select graphic rendition" parameters.
_COLOURS = {"QUEUED": "2", "RUNNING": "36", "COMPLETED": "32", "ERRORED": "31", "KILLED": "33", "heading": "1"}


class Closed(Exception):
    """Nobody reads standard output any more."""


def write(data: bytes, descriptor: int = _STDOUT) -> None:
    """All of `data`, at once and unbuffered. Raises Closed, or CommandError if it cannot be written (a full disk).

    Standard error is `descriptor` 2, for what a task wrote there.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # someone who shares the descriptor made it non-blocking
            select.select([], [descriptor], [])
        except BrokenPipeError:
            raise Closed from None
        except OSError as error:
            if error.errno == errno.EIO and stat.S_ISCHR(os.fstat(descriptor).st_mode):  # a terminal that was closed
                raise Closed from None
            where = "output" if descriptor == _STDOUT else "error"
            raise CommandError(f"cannot write to standard {where}: {error.strerror}") from None


def line(text: str = "") -> None:
    """A line for a person, in the encoding of standard output; characters that it does not have become escapes."""
    write((text + "\n").encode(sys.stdout.encoding, "backslashreplace"))


def notice(text: str) -> None:
    """Lines on standard error; lost quietly if nobody reads it. Whatever a name holds does not steer the terminal."""
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        return


def warn(text: str) -> None:
    """What is valid and most likely not meant. Exit codes know nothing of it."""
    notice(f"warning: {text}")


def is_plain(stream: Any) -> bool:
    """Whether `stream` is no terminal, or one that cannot move its cursor."""
    return not stream.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown")


def coloured(stream: Any) -> bool:
    return not is_plain(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, kind: str) -> str:
    """`text` in the colour of a state (or "heading"), if standard output shows colours."""
    code = _COLOURS.get(kind)
    return f"\x1b[{code}m{text}\x1b[0m" if code and coloured(sys.stdout) else text


def document(value: Any) -> None:
    """One JSON document, for a person to read too."""
    write((_json(value, indent=2) + "\n").encode())


def json_line(value: Any) -> None:
    write((_json(value) + "\n").encode())


def _json(value: Any, indent: int | None = None) -> str:
    """JSON is UTF-8 (RFC 8259); where standard output is said to be anything else, JSON's own escapes make it ASCII."""
    is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    return json.dumps(value, ensure_ascii=not is_utf8, indent=indent)


class JsonList:
    """One JSON list, an item a line, written page by page; `end` completes it."""

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
    """Aligned columns under one heading, page by page; nothing is cut, and widths only grow from page to page."""

    def __init__(self, *names: str, right: Iterable[str] = ()) -> None:
        """`right`: the columns of numbers."""
        self._names = names
        self._right = [name in set(right) for name in names]
        self._widths = [len(name) for name in names]
        self._begun = False

    def page(self, rows: Iterable[Row]) -> None:
        """Prints `rows`, the heading before the first. Nothing at all for no rows."""
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
    """Names and values, one pair a line, those with an empty value left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        line(f"  {name:<{width}}  {printable(value)}")


def _cells(text: str) -> int:
    """How many cells of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
