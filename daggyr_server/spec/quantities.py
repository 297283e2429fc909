"""Times and memory with units: what `5m` and `4GB` are as numbers.

`document` has the patterns for its types, and `policies` asks for the numbers. A number without a unit is what it was before
there were units: seconds, and megabytes of 2^20 bytes, as hosts count their `memory_mb`. Nothing here adds faults.
"""

from __future__ import annotations

import math

# The numbers of digits keep every time below MAX_SECONDS, and every size below MAX_UNITS. Python's `$` also matches before a
# newline at the end, and a JSON Schema's patterns (ECMA-262) have nothing else for the end, so `(?!\n)` is there.
_PART = r"(?:\.[0-9]{1,9})?"
TIME = rf"^(?:[0-9]{{1,9}}{_PART}s|[0-9]{{1,7}}{_PART}m|[0-9]{{1,5}}{_PART}h|[0-9]{{1,4}}{_PART}d)(?!\n)$"
MEMORY = rf"^[0-9]{{1,9}}{_PART}[KMGT]i?B(?!\n)$"

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MEGABYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}


def seconds(time: float | str) -> float:
    """A time in seconds: a number as it is, a text that TIME matches by its unit."""
    return float(time[:-1]) * _SECONDS[time[-1]] if isinstance(time, str) else time


def megabytes(size: int | str) -> int:
    """A size in megabytes of 2^20 bytes: a number as it is, a text that MEMORY matches by its unit, rounded up."""
    if isinstance(size, int):
        return size
    number = size.rstrip("KMGTiB")
    return math.ceil(float(number) * _MEGABYTES[size[len(number)]])


def unit_hint(resource: str) -> str:
    """What to write instead of a number with a unit for a resource that takes none."""
    return "memory is called `memory_mb`" if resource.lower().startswith("mem") else "write a whole number, without a unit"
