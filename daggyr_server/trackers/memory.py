"""The tracker that forgets: everything in this process's memory, for as long as it lives. The default.

Sized for runs of millions of tasks: ended attempts lie in parallel arrays (about 60 bytes each), and an object exists only for
a result that has more to tell than numbers. Output is bounded over all runs together; the oldest streams go first and whole, and
readers see that they are missing by the sizes in the results.
"""

from __future__ import annotations

import math
import secrets
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from daggyr.v1.task_pb2 import AttemptResult
from daggyr_server.core.records import AttemptRecorded, OutputKept, Record, RunAdded
from daggyr_server.trackers.base import Opened, Piece, StoredAttempt, Tracker, TrackerError

MAX_OUTPUT_BYTES = 256 * 1024 * 1024
# What keeping a stream, and each piece of it, costs beside the data, in bytes (measured: tests/trackers).
_STREAM_COST = 300
_PIECE_COST = 120
_NONE = 2**32 - 1  # no number, no position
_NO_EXIT_CODE = -(2**31)
_MAX_SECONDS = 253_402_300_800  # the year 10000, where a Timestamp ends


class _Numbers(NamedTuple):
    """A result that an AttemptLog's arrays hold whole, times to the microsecond."""

    exit_code: int = _NO_EXIT_CODE
    start: float = math.nan  # seconds since the epoch; NaN where absent
    stop: float = math.nan
    cpu_microseconds: int = _NONE
    max_rss: int = 0  # bytes, and 1; 0 where absent


_NOTHING = _Numbers()


class AttemptLog:
    """The ended attempts of one run in parallel arrays, linked backwards by task."""

    def __init__(self) -> None:
        self._attempts = array("I")
        self._outcomes = array("B")
        self._exit_codes = array("i")
        self._hosts = array("I")
        self._times = array("d")  # assign, start, stop of each
        self._cpu_microseconds = array("I")
        self._max_rss = array("Q")
        self._earlier = array("I")  # position of the task's attempt before
        self._last = array("I")  # by task number: position of its last attempt
        self._whole: dict[int, bytes] = {}  # position -> the result, serialised, where the arrays cannot hold it
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
        self._hosts.append(index)
        self._times.extend((record.assign_time, numbers.start, numbers.stop))
        self._exit_codes.append(numbers.exit_code)
        self._cpu_microseconds.append(numbers.cpu_microseconds)
        self._max_rss.append(numbers.max_rss)

    def of(self, number: int) -> list[StoredAttempt]:
        """A task's attempts, oldest first."""
        found = []
        position = self._last[number] if number < len(self._last) else _NONE
        while position != _NONE:
            found.append(self._at(position))
            position = self._earlier[position]
        return found[::-1]

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
    """The result as numbers, or None if it has more to tell, or a number that no array could take. Absent is not zero."""
    if result.notes or result.HasField("signal") or result.HasField("stdout") or result.HasField("stderr"):
        return None
    exit_code, start, stop, cpu_microseconds, max_rss = _NOTHING
    if result.HasField("exit_code"):
        exit_code = result.exit_code
        if exit_code == _NO_EXIT_CODE:
            return None
    if result.HasField("start_time"):
        start = result.start_time.seconds + result.start_time.nanos / 1e9
        if not 0 <= start < _MAX_SECONDS:
            return None
    if result.HasField("stop_time"):
        stop = result.stop_time.seconds + result.stop_time.nanos / 1e9
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


class MemoryTracker(Tracker):
    """See the head of this file. A new tracker_id at each start; nothing can be recovered."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        if address != "memory":
            raise TrackerError(f"the memory tracker takes no path: write `memory`, not {address!r}")
        self._documents: dict[int, bytes] = {}
        self._logs: dict[int, AttemptLog] = {}
        self._output: dict[tuple[int, int, int, int], dict[int, bytes]] = {}  # (run, task, attempt, stream) -> by offset
        self._output_bytes = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            RunAdded: self._run_added,
            AttemptRecorded: self._attempt_recorded,
            OutputKept: self._output_kept,
        }

    async def open(self) -> Opened:
        return Opened(tracker_id=secrets.token_hex(16), epoch=1, next_run_id=1, durable=False)

    async def commit(self, records: Sequence[Record]) -> None:
        handlers = self._handlers
        for record in records:
            handler = handlers.get(type(record))
            if handler is not None:  # the state of runs and tasks is the machine's alone here
                handler(record)

    def _run_added(self, record: RunAdded) -> None:
        self._documents[record.run_id] = record.document
        self._logs[record.run_id] = AttemptLog()

    def _attempt_recorded(self, record: AttemptRecorded) -> None:
        self._logs[record.run_id].add(record)

    def _output_kept(self, record: OutputKept) -> None:
        stream = record[:4]
        pieces = self._output.get(stream)
        if pieces is None:
            pieces = self._output[stream] = {}
            self._output_bytes += _STREAM_COST
        before = pieces.get(record.offset)
        if before is None:
            self._output_bytes += _PIECE_COST + len(record.data)
        elif len(before) < len(record.data):
            self._output_bytes += len(record.data) - len(before)
        else:
            return
        pieces[record.offset] = record.data
        while self._output_bytes > MAX_OUTPUT_BYTES:
            dropped = self._output.pop(next(iter(self._output)))
            self._output_bytes -= _STREAM_COST + sum(_PIECE_COST + len(data) for data in dropped.values())

    async def attempts(self, run_id: int, number: int) -> list[StoredAttempt]:
        log = self._logs.get(run_id)
        return log.of(number) if log is not None else []

    async def output(self, run_id: int, number: int, attempt: int, stream: int, offset: int, limit: int) -> list[Piece]:
        found: list[Piece] = []
        pieces = self._output.get((run_id, number, attempt, stream), {})
        for start in sorted(pieces):
            skipped = max(0, offset - start)
            data = pieces[start][skipped:] if skipped else pieces[start]
            if not data:
                continue  # an earlier piece told it already, or nobody asked for it
            if found and len(data) > limit:
                break
            found.append(Piece(start + skipped, data))
            limit -= len(data)
            offset = start + skipped + len(data)
        return found

    async def document(self, run_id: int) -> bytes | None:
        return self._documents.get(run_id)

    async def close(self) -> None:
        """Nothing is held but memory."""
