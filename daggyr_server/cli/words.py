"""How numbers, times and counts read for a person: `1.2 s`, `3 h 5 min`, `4 COMPLETED, 1 ERRORED`.

Used by tables, progress lines and summaries; JSON has its own exact forms in `shapes`. Pure: nothing here prints or asks
for the time. It loads no messages, since `daggyr --version` and the options need it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from daggyr.v1.run_pb2 import RunSummary
    from daggyr.v1.runs_pb2 import EditTotals

STATES = ("QUEUED", "RUNNING", "COMPLETED", "ERRORED", "KILLED")

# C0, DEL and C1: a tag or a note must not move the cursor.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def total(run: RunSummary) -> int:
    """How many tasks the run has, structural ones too."""
    return sum(run.task_states.values())


def ended(run: RunSummary) -> int:
    """How many of them have ended, in whatever way."""
    return sum(run.task_states[name] for name in ("COMPLETED", "ERRORED", "KILLED") if name in run.task_states)


def task_states(run: RunSummary) -> dict[str, int]:
    """The states that occur, in the order in which tasks go through them."""
    return {name: run.task_states[name] for name in STATES if run.task_states.get(name)}


def counts(run: RunSummary) -> str:
    """`5 COMPLETED, 1 ERRORED`."""
    return ", ".join(f"{count:,} {name}" for name, count in task_states(run).items()) or "none"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def edit_totals(totals: EditTotals) -> str:
    """What an edit does to how many tasks: `3 tasks unchanged, 1 changed, 0 added, 2 removed`."""
    adjusted = f"{totals.adjusted:,} adjusted, " if totals.adjusted else ""
    rest = f"{totals.changed:,} changed, {totals.added:,} added, {totals.removed:,} removed"
    return f"{plural(totals.unchanged, 'task')} unchanged, {adjusted}{rest}"


def time(stamp: Timestamp | None) -> str:
    """Local time to the second; `-` for none."""
    if stamp is None:
        return "-"
    return moment(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def span(seconds: float) -> str:
    """Two units at most: `12 ms`, `1.2 s`, `4 min 5 s`, `3 h 5 min`, `2 d 3 h`."""
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


def took(run: RunSummary, now: datetime) -> str:
    """From the run's first start (or submission, if it never started) to its end, or to `now`."""
    start = run.start_time if run.HasField("start_time") else run.submit_time
    stop = moment(run.stop_time) if run.HasField("stop_time") else now
    return span((stop - moment(start)).total_seconds())


def size(count: int) -> str:
    """Bytes, in binary units: `512 B`, `1.5 MiB`."""
    if count < 1024:
        return f"{count} B"
    exponent = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**exponent:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[exponent - 1]}"


def pairs(mapping: Mapping[str, object]) -> str:
    """`a=1 b=2`, sorted by name."""
    return " ".join(f"{name}={mapping[name]}" for name in sorted(mapping))


def quantities(used: Mapping[str, int], offered: Mapping[str, int]) -> str:
    """`cores 3/8, memory_mb 0/16000`, sorted by name."""
    names = sorted({*used, *offered})
    return ", ".join(f"{name} {used.get(name, 0)}/{offered.get(name, 0)}" for name in names)


def sentences(texts: Iterable[str]) -> str:
    return "; ".join(text.strip() for text in texts if text.strip())


def printable(text: str) -> str:
    """`text` in one line, control characters as `\\x1b`: what a user wrote must not steer the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)
