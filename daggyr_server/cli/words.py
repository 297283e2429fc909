"""Words numbers, times and counts for a person: `1.2 s`, `3 h 5 min`, `4 COMPLETED, 1 ERRORED`.

Tables, progress lines and messages use this; `shapes` has the exact forms for JSON. Nothing here prints or asks for the time. No
messages are loaded at run time, because the options use this too and must load fast.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from daggyr.v1.run_pb2 import RunSummary
    from daggyr.v1.runs_pb2 import EditTotals

STATES = ("QUEUED", "RUNNING", "COMPLETED", "ERRORED", "KILLED")
_QUEUED, _RUNNING = 1, 2  # the contract's numbers

# C0, DEL and C1 are here because a tag or a note must not move the cursor; line separators and marks of direction (UAX 9),
# because a name must not look like another one. Surrogates are bytes of a path that is not UTF-8 (PEP 383).
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_UTC = re.compile(r"\b(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC(?![\w+-])", re.ASCII)  # a time in a sentence of the server's


def total(run: RunSummary) -> int:
    """How many tasks the run has that run commands."""
    return sum(command_states(run).values())


def ended(run: RunSummary) -> int:
    """How many of these tasks have ended, in whatever way."""
    return sum(count for name, count in command_states(run).items() if name in ("COMPLETED", "ERRORED", "KILLED"))


def command_states(run: RunSummary) -> dict[str, int]:
    """Like `task_states`, for the tasks that run commands. A server before 0.2 sends the counts of all tasks only."""
    states = run.command_states or run.task_states
    return {name: states[name] for name in STATES if states.get(name)}


def task_states(run: RunSummary) -> dict[str, int]:
    """How many tasks are in each state that occurs, in the order of the states. Structural tasks count as well."""
    return {name: run.task_states[name] for name in STATES if run.task_states.get(name)}


def counts(run: RunSummary) -> str:
    """The states of the tasks that run commands, as `5 COMPLETED, 1 ERRORED`."""
    return ", ".join(f"{count:,} {name}" for name, count in command_states(run).items()) or "none"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def first_of(shown: Sequence[str], count: int) -> str:
    """`a, b, c and 4 more`; empty for none."""
    more = f" and {count - len(shown):,} more" if count > len(shown) else ""
    return ", ".join(shown) + more


def edit_totals(totals: EditTotals) -> str:
    """How many tasks an edit changes, as `3 tasks unchanged, 1 changed, 0 added, 2 removed`."""
    adjusted = f"{totals.adjusted:,} adjusted, " if totals.adjusted else ""
    rest = f"{totals.changed:,} changed, {totals.added:,} added, {totals.removed:,} removed"
    return f"{plural(totals.unchanged, 'task')} unchanged, {adjusted}{rest}"


def time(stamp: Timestamp | None) -> str:
    """A time as local time to the second, or `-` if there is none."""
    if stamp is None:
        return "-"
    try:
        return moment(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):  # the local time is in the year 10000
        return "-"


def moment(stamp: Timestamp) -> datetime:
    """A timestamp as a datetime. A server of an older version may send a time that does not exist; it becomes the latest time."""
    try:
        instant: datetime = stamp.ToDatetime(tzinfo=UTC)  # for some versions of protobuf's types it is Any
    except (OverflowError, ValueError):
        return datetime.max.replace(tzinfo=UTC)
    return instant


def said(text: str) -> str:
    """What a server says, in one line, with its times as local times: a table beside it has no others."""
    return printable(_UTC.sub(_local, text))


def _local(told: re.Match[str]) -> str:
    try:
        return datetime.fromisoformat(f"{told[1]}+00:00").astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):  # there is no such time
        return told[0]


def span(seconds: float) -> str:
    """A duration in two units at most: `12 ms`, `1.2 s`, `4 min 5 s`, `3 h 5 min`, `2 d 3 h`."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def took(run: RunSummary, passed: float = 0.0) -> str:
    """For how long the run was RUNNING, or `-` if it has not been so far. `passed` are the seconds since its summary came.

    The server measures it. This host's clock may show another time than the server's, and is not asked.
    """
    if not run.HasField("ran_seconds"):  # A server before 0.2 tells only when a run began first, and when it ended.
        ended = run.HasField("start_time") and run.HasField("stop_time")
        return span((moment(run.stop_time) - moment(run.start_time)).total_seconds()) if ended else "-"
    if not run.ran_seconds and run.state == _QUEUED:
        return "-"
    return span(run.ran_seconds + (passed if run.state == _RUNNING else 0.0))


def size(count: int) -> str:
    """A number of bytes in binary units: `512 B`, `1.5 MiB`."""
    if count < 1024:
        return f"{count} B"
    exponent = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**exponent:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[exponent - 1]}"


def pairs(mapping: Mapping[str, object]) -> str:
    """A mapping as `a=1 b=2`, sorted by name."""
    return " ".join(f"{name}={mapping[name]}" for name in sorted(mapping))


def quantities(used: Mapping[str, int], offered: Mapping[str, int]) -> str:
    """Used and offered resources as `cores 3/8, memory_mb 0/16000`, sorted by name."""
    names = sorted({*used, *offered})
    return ", ".join(f"{name} {used.get(name, 0)}/{offered.get(name, 0)}" for name in names)


def sentences(texts: Iterable[str]) -> str:
    return "; ".join(said(text.strip()) for text in texts if text.strip())


def printable(text: str) -> str:
    """`text` in one line, with control characters as `\\x1b`, because what a user wrote must not control the terminal."""
    return _CONTROL.sub(lambda match: _escaped(ord(match.group())), text)


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # this is the path's byte
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"
