"""Counts the flights and their departure delays, and writes the report: CSV files and a page of text.

The task `report` calls it, last. Counts include the cancelled flights, which have no departure delay;
means are over the delays that are there, from whole minutes, so that no order of adding up changes
them. It never writes what depends on the time or the host: the same tables give the same bytes.
"""

import calendar
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from classes import PLANE_YEAR, VISIBILITY
from tables import MISSING, arguments, fail, read, whole, write

LABEL_WIDTH = 32


@dataclass(slots=True)
class Delays:
    """Flights, how many of them have a departure delay, and the sum of those delays in minutes."""

    flights: int = 0
    known: int = 0
    minutes: int = 0

    def add(self, delay: str) -> None:
        """Counts one flight, with its delay as the tables write it."""
        self.flights += 1
        if delay != MISSING:
            self.known += 1
            self.minutes += int(delay)

    @property
    def mean(self) -> Decimal | None:
        """The mean delay in minutes, to two decimals, half to even; None where there is no delay."""
        if not self.known:
            return None
        # Adding zero makes 0.00 of -0.00.
        return (Decimal(self.minutes) / self.known).quantize(Decimal("0.01")) + 0


Groups = defaultdict[str, Delays]


@dataclass
class Counts:
    """The delays of all flights, and of each group of them."""

    total: Delays = field(default_factory=Delays)
    carrier: Groups = field(default_factory=lambda: Groups(Delays))
    month: Groups = field(default_factory=lambda: Groups(Delays))
    visibility: Groups = field(default_factory=lambda: Groups(Delays))
    plane_age: Groups = field(default_factory=lambda: Groups(Delays))


@dataclass(frozen=True)
class Line:
    """One line of the report: what names the group in the CSV file, what in the page, its delays."""

    names: Sequence[str]
    label: str
    delays: Delays


@dataclass(frozen=True)
class Chapter:
    """One table of the report."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Line]


def main() -> None:
    """Counts, and writes a CSV file for each chapter and one page of them all."""
    airlines, folder, target = map(Path, arguments("AIRLINES", "FLIGHTS-FOLDER", "TARGET-FOLDER"))
    counts = count(folder)
    chapters = {
        "by_carrier.csv": by_carrier(counts.carrier, dict(read(airlines, ["carrier", "name"]))),
        "by_month.csv": by_month(counts.month),
        "by_visibility.csv": by_class("visibility", counts.visibility, VISIBILITY.names, unknown="no weather"),
        "by_plane_age.csv": by_class("plane_age", counts.plane_age, PLANE_YEAR.names, unknown="unknown"),
    }
    for file_name, chapter in chapters.items():
        rows = ([*line.names, line.delays.flights, shown(line.delays)] for line in chapter.lines)
        write(target / file_name, [*chapter.columns, "flights", "mean_dep_delay"], rows)
    with whole(target / "report.txt") as part:
        text = "\n".join(page(counts.total, chapters.values()))
        part.write_text(text + "\n", encoding="utf-8", newline="\n")


def count(folder: Path) -> Counts:
    """Counts every flight of every table in the folder."""
    counts = Counts()
    for table in sorted(folder.glob("*.csv")):
        columns = ["carrier", "month", "visibility", "plane_age", "dep_delay"]
        for carrier, month, visibility, plane_age, delay in read(table, columns):
            counts.total.add(delay)
            counts.carrier[carrier].add(delay)
            counts.month[month].add(delay)
            counts.visibility[visibility].add(delay)
            counts.plane_age[plane_age].add(delay)
    if not counts.total.flights:
        fail(f"{folder}: no flights in it")
    return counts


def by_carrier(groups: Groups, names: dict[str, str]) -> Chapter:
    """The carriers, those with the most flights first."""
    nameless = sorted(groups.keys() - names.keys())
    if nameless:
        fail(f"the airlines have no name for {', '.join(nameless)}")
    codes = sorted(groups, key=lambda code: (-groups[code].flights, code))
    lines = [Line((code, names[code]), f"{code}  {names[code]}", groups[code]) for code in codes]
    return Chapter("By carrier", ["carrier", "name"], lines)


def by_month(groups: Groups) -> Chapter:
    """The months in their order."""
    months = sorted(groups, key=int)
    lines = [Line([month], calendar.month_name[int(month)], groups[month]) for month in months]
    return Chapter("By month", ["month"], lines)


def by_class(column: str, groups: Groups, order: Sequence[str], unknown: str) -> Chapter:
    """The classes in their order, and last, named `unknown`, the flights that have none."""
    names = {name: name for name in order} | {MISSING: unknown}
    lines = [Line([names[key]], names[key], groups[key]) for key in names if key in groups]
    return Chapter(f"By {column.replace('_', ' ')}", [column], lines)


def page(total: Delays, chapters: Iterable[Chapter]) -> Iterator[str]:
    """The lines of the text page."""
    title = "Flights that left New York in 2013, and their departure delays"
    yield from (title, "=" * len(title))
    yield f"{total.flights:,} flights with a mean delay of {shown(total)} minutes. Of them,"
    yield f"{total.flights - total.known:,} were cancelled: they are counted, but have no delay."
    yield "A bar has one # for each minute of the mean delay."
    for chapter in chapters:
        yield from ("", f"{chapter.title:{LABEL_WIDTH}}{'flights':>9}{'minutes':>9}")
        for line in chapter.lines:
            numbers = f"{line.delays.flights:9,}{shown(line.delays):>9}"
            # Flights that leave early in the mean get no bar: a string times a negative number is empty.
            bar = "#" * round(line.delays.mean or 0)
            yield f"{line.label:{LABEL_WIDTH}}{numbers}  {bar}".rstrip()


def shown(delays: Delays) -> str:
    """The mean delay as text."""
    return MISSING if delays.mean is None else str(delays.mean)


if __name__ == "__main__":
    main()
