"""Tells of each plane how old it was in 2013, as a class of ages.

The task `transform_planes` calls it, once. It never looks at flights.
"""

from pathlib import Path

from classes import PLANE_YEAR
from tables import arguments, read, write


def main() -> None:
    """Writes the ages of all planes."""
    source, target = map(Path, arguments("PLANES", "TARGET"))
    planes = ([tail, PLANE_YEAR.of(year)] for tail, year in read(source, ["tailnum", "year"]))
    write(target, ["tailnum", "plane_age"], planes)


if __name__ == "__main__":
    main()
