"""Takes one month out of the weather, and of it the class of visibility by airport and hour.

The task `transform_weather` calls it, once a month. Both tables count months in local time, so a
flight and its weather are always in the same one, whatever `time_hour`, which is UTC, says.
"""

from pathlib import Path

from classes import VISIBILITY
from tables import arguments, read, write


def main() -> None:
    """Writes the weather of the month that the arguments name."""
    source, month, target = arguments("WEATHER", "MONTH", "TARGET")
    weather = read(Path(source), ["origin", "time_hour", "visib"], month)
    classed = ([origin, hour, VISIBILITY.of(miles)] for origin, hour, miles in weather)
    write(Path(target), ["origin", "time_hour", "visibility"], classed)


if __name__ == "__main__":
    main()
