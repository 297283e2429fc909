"""Takes one month out of the flights, and of it the columns that the report needs.

The task `transform_flights` calls it, once a month. Every flight of the month stays, cancelled ones
too: those have no departure delay. It never looks at weather or planes.
"""

from collections.abc import Iterator
from pathlib import Path

from tables import MISSING, arguments, fail, read, write

COLUMNS = ["month", "carrier", "origin", "time_hour", "tailnum", "dep_delay"]


def main() -> None:
    """Writes the flights of the month that the arguments name."""
    source, month, target = arguments("FLIGHTS", "MONTH", "TARGET")
    write(Path(target), COLUMNS, transform(Path(source), month))


def transform(source: Path, month: str) -> Iterator[list[str]]:
    """The month's flights. A delay that is neither whole minutes nor missing is a fault."""
    for flight in read(source, COLUMNS, month):
        delay = flight[-1]
        if delay != MISSING and not delay.removeprefix("-").isdecimal():
            fail(f"{source}: a departure delay is {delay!r}, neither whole minutes nor {MISSING}")
        yield flight


if __name__ == "__main__":
    main()
