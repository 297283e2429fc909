"""The tables that pass between the tasks: CSV files, read and written in one way.

Every script in this folder calls it for its arguments, its input and its output. A file it writes
appears whole or not at all, so a task that was killed half way leaves nothing that a later one could
take for its input. Of what a table holds it knows the month, and no more. A fault of input ends the
script with one line on stderr and exit code 1.
"""

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

MISSING = "NA"
"""What stands in a table for a value that nobody knows."""


def arguments(*names: str) -> list[str]:
    """The script's arguments, one a name; a last name that ends in `...` takes one or more.

    Any other number of them ends the script with its usage and exit code 2.
    """
    given = sys.argv[1:]
    open_ended = names[-1].endswith("...")
    if len(given) == len(names) or (open_ended and len(given) > len(names)):
        return given
    print(f"usage: {Path(sys.argv[0]).name} {' '.join(names)}", file=sys.stderr)
    sys.exit(2)


def fail(message: str) -> NoReturn:
    """Ends the script with `message` on one line of stderr and exit code 1."""
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def header(path: Path) -> list[str]:
    """The names of a table's columns."""
    return next(_lines(path))


def read(path: Path, columns: Sequence[str], month: str | None = None) -> Iterator[list[str]]:
    """The named columns of every row, or of every row whose `month` is the one given."""
    lines = _lines(path)
    names = next(lines)

    def place(column: str) -> int:
        if column not in names:
            fail(f"{path}: no column {column!r}; it has {', '.join(names)}")
        return names.index(column)

    places = [place(column) for column in columns]
    month_place = 0 if month is None else place("month")
    found = False
    for number, line in enumerate(lines, start=1):
        if len(line) != len(names):
            fail(f"{path}: row {number} has {len(line)} values, not {len(names)}")
        if month is None or line[month_place] == month:
            found = True
            yield [line[index] for index in places]
    if not found:
        fail(f"{path}: no rows" if month is None else f"{path}: no rows of month {month!r}")


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Makes the table `path`, and the folder it stands in. The same rows give the same bytes."""
    with whole(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` in one step once the block has ended well."""
    # The process id keeps two attempts of one task apart, should their host have been thought lost.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as fault:
        fail(f"{path}: {fault.strerror}")
    finally:
        with suppress(OSError):
            part.unlink()


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            empty = True
            for line in csv.reader(file, strict=True):
                empty = False
                yield line
    except OSError as fault:
        fail(f"{path}: {fault.strerror}")
    except (csv.Error, UnicodeDecodeError) as fault:
        fail(f"{path}: not a CSV file: {fault}")
    if empty:
        fail(f"{path}: empty, without even the names of columns")
