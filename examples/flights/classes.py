"""The classes that the report sorts flights into, by what was measured: visibility, age of the plane.

The transforms ask for the class of a value, the report for the order of the classes. It never reads
or writes a file.
"""

from bisect import bisect_right
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from tables import MISSING, fail


@dataclass(frozen=True)
class Classes:
    """Names of neighbouring classes; each begins at its limit, the first below all limits."""

    limits: tuple[str, ...]
    names: tuple[str, ...]

    def of(self, value: str) -> str:
        """The name of the value's class; of a missing value, the text that says so."""
        if value == MISSING:
            return MISSING
        try:
            number = Decimal(value)
        except InvalidOperation:
            fail(f"{value!r} is neither a number nor {MISSING}")
        return self.names[bisect_right([Decimal(limit) for limit in self.limits], number)]


# In miles. Ten is the most that a station reports.
VISIBILITY = Classes(
    limits=("1", "3", "5", "10"),
    names=("under 1 mile", "1 to 3 miles", "3 to 5 miles", "5 to 10 miles", "10 miles"),
)

# By the year in which the plane was made, for flights in 2013.
PLANE_YEAR = Classes(
    limits=("1993", "1998", "2003", "2008"),
    names=("over 20 years", "16 to 20 years", "11 to 15 years", "6 to 10 years", "up to 5 years"),
)
