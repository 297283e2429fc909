"""Joins two tables: to each row on the left, what the right says about the same key.

The tasks `join_weather` and `join_planes` call it. Every row on the left comes out exactly once and
in its place: where the right has nothing, `NA` stands; where it has a key twice, which would count
flights twice, the join fails.
"""

from collections.abc import Sequence
from pathlib import Path

from tables import MISSING, arguments, fail, header, read, write


def main() -> None:
    """Joins the two tables that the arguments name."""
    left, right, target, *key = arguments("LEFT", "RIGHT", "TARGET", "KEY...")
    left_columns = header(Path(left))
    added_columns = [column for column in header(Path(right)) if column not in key]
    known = by_key(Path(right), key, added_columns)
    unknown = [MISSING] * len(added_columns)
    rows = ([*row[len(key) :], *known.get(tuple(row[: len(key)]), unknown)] for row in read(Path(left), [*key, *left_columns]))
    write(Path(target), [*left_columns, *added_columns], rows)


def by_key(table: Path, key: Sequence[str], columns: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    """The named columns of the table's rows, by their key."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in read(table, [*key, *columns]):
        row_key = tuple(row[: len(key)])
        if row_key in found:
            fail(f"{table}: more than one row for {', '.join(row_key)}")
        found[row_key] = row[len(key) :]
    return found


if __name__ == "__main__":
    main()
