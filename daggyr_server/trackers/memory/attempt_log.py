"""The ended attempts of one run in memory, about 60 bytes each. The memory tracker keeps one log for each run.

An attempt is an entry in parallel arrays, because a run may have millions. A result that the arrays cannot hold, such as one with
notes, is kept as the bytes of its message beside them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from daggyr.v1.task_pb2 import AttemptResult
from daggyr_server.core.records import AttemptRecorded
from daggyr_server.trackers.base import StoredAttempt

_NONE = 2**32 - 1  # stands for no number and for no position
_NO_EXIT_CODE = -(2**31)
_MAX_SECONDS = 2**32  # in 2106; of later times, a double does not hold the microseconds


class _Numbers(NamedTuple):
    """A result as the arrays hold it, with times to the microsecond."""

    exit_code: int = _NO_EXIT_CODE
    start: float = math.nan  # seconds since the epoch; NaN where absent
    stop: float = math.nan
    cpu_microseconds: int = _NONE
    max_rss: int = 0  # bytes plus one; 0 where absent


_NOTHING = _Numbers()


class AttemptLog:
    """The ended attempts of one run in parallel arrays, linked backwards by task."""

    def __init__(self) -> None:
        self._attempts = array("I")
        self._outcomes = array("B")
        self._states = array("B")
        self._exit_codes = array("i")
        self._hosts = array("I")
        self._times = array("d")  # assign, start, stop of each
        self._cpu_microseconds = array("I")
        self._max_rss = array("Q")
        self._earlier = array("I")  # position of the attempt before of the same task
        self._last = array("I")  # by task number: position of the task's last attempt
        self._whole: dict[int, bytes] = {}  # by position: a result that the arrays cannot hold, serialised
        self._host_names: list[tuple[str, str]] = []
        self._host_index: dict[tuple[str, str], int] = {}

    def add(self, record: AttemptRecorded) -> None:
        """Append an attempt."""
        position = len(self._attempts)
        number = record.number
        if number >= len(self._last):
            self._last.extend(array("I", (_NONE,)) * (max(number + 1, 2 * len(self._last)) - len(self._last)))
        host = (record.host, record.host_name)
        index = self._host_index.get(host)
        if index is None:
            index = self._host_index[host] = len(self._host_names)
            self._host_names.append(host)
        numbers = _numbers(record.result)
        if numbers is None:
            self._whole[position] = record.result.SerializeToString()
            numbers = _NOTHING
        self._earlier.append(self._last[number])
        self._last[number] = position
        self._attempts.append(record.attempt)
        self._outcomes.append(record.outcome)
        self._states.append(record.state)
        self._hosts.append(index)
        self._times.extend((record.assign_time, numbers.start, numbers.stop))
        self._exit_codes.append(numbers.exit_code)
        self._cpu_microseconds.append(numbers.cpu_microseconds)
        self._max_rss.append(numbers.max_rss)

    def of(self, number: int, before: int | None, limit: int) -> list[StoredAttempt]:
        """The last `limit` of a task's attempts whose numbers are below `before`, oldest first. None means no such bound."""
        found: list[StoredAttempt] = []
        position = self._last[number] if number < len(self._last) else _NONE
        while position != _NONE and len(found) < limit:
            if before is None or self._attempts[position] < before:
                found.append(self._at(position))
            position = self._earlier[position]
        return found[::-1]

    def result(self, number: int, attempt: int) -> AttemptResult | None:
        """The result of a task's attempt, if it has ended."""
        position = self._last[number] if number < len(self._last) else _NONE
        while position != _NONE and self._attempts[position] != attempt:
            position = self._earlier[position]
        return self._at(position).result if position != _NONE else None

    def ended(self) -> Iterator[tuple[int, int, int, int]]:
        """Number, attempt, outcome and state of all attempts, ascending by number, then attempt."""
        for number, last in enumerate(self._last):
            chain = []
            position = last
            while position != _NONE:
                chain.append(position)
                position = self._earlier[position]
            for position in reversed(chain):
                yield number, self._attempts[position], self._outcomes[position], self._states[position]

    def _at(self, position: int) -> StoredAttempt:
        host, host_name = self._host_names[self._hosts[position]]
        assign, start, stop = self._times[3 * position : 3 * position + 3]
        whole = self._whole.get(position)
        if whole is not None:
            result = AttemptResult.FromString(whole)
        else:
            result = AttemptResult(outcome=self._outcomes[position])  # type: ignore[arg-type]
            if self._exit_codes[position] != _NO_EXIT_CODE:
                result.exit_code = self._exit_codes[position]
            if not math.isnan(start):
                result.start_time.FromMicroseconds(round(start * 1e6))
            if not math.isnan(stop):
                result.stop_time.FromMicroseconds(round(stop * 1e6))
            if self._cpu_microseconds[position] != _NONE:
                result.cpu_seconds = self._cpu_microseconds[position] / 1e6
            if self._max_rss[position]:
                result.max_rss_bytes = self._max_rss[position] - 1
        return StoredAttempt(self._attempts[position], host, host_name, assign, result)


def _numbers(result: AttemptResult) -> _Numbers | None:
    """The result as numbers. None if it says more than numbers do, or if a number does not fit its array. Absent is not zero."""
    if result.notes or result.HasField("signal") or result.HasField("stdout") or result.HasField("stderr"):
        return None
    exit_code, start, stop, cpu_microseconds, max_rss = _NOTHING
    if result.HasField("exit_code"):
        exit_code = result.exit_code
        if exit_code == _NO_EXIT_CODE:
            return None
    if result.HasField("start_time"):
        time = result.start_time
        start = time.seconds + time.nanos / 1e9
        if not 0 <= start < _MAX_SECONDS:
            return None
    if result.HasField("stop_time"):
        time = result.stop_time
        stop = time.seconds + time.nanos / 1e9
        if not 0 <= stop < _MAX_SECONDS:
            return None
    if result.HasField("cpu_seconds"):
        if not 0 <= result.cpu_seconds < 4_294:
            return None
        cpu_microseconds = round(result.cpu_seconds * 1e6)
    if result.HasField("max_rss_bytes"):
        max_rss = result.max_rss_bytes + 1
        if max_rss >= 2**64:
            return None
    return _Numbers(exit_code, start, stop, cpu_microseconds, max_rss)
