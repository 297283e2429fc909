"""The tracker that forgets: everything in this process's memory, for as long as it lives. The default.

Sized for runs of millions of tasks: ended attempts lie in parallel arrays (about 50 bytes each), and an object exists only for
a result that has more to tell than numbers. Output is bounded over all runs together; the oldest goes first, and readers see
that it is missing by the sizes in the results.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from daggyr.v1.task_pb2 import AttemptResult

from daggyr_server.core.records import AttemptRecorded, OutputKept, Record, RunAdded
from daggyr_server.trackers.base import Opened, Piece, StoredAttempt, Tracker, TrackerError

MAX_OUTPUT_BYTES = 256 * 1024 * 1024
_PIECE_COST = 200  # bytes that keeping one piece costs beside its data
_ABSENT = -(2**31)
_NONE = 2**32 - 1


class AttemptLog:
    """The ended attempts of one run in parallel arrays, linked backwards by task."""

    def __init__(self) -> None:
        self.attempts = array("I")
        self.outcomes = array("B")
        self.exit_codes = array("i")
        self.hosts = array("I")
        self.times = array("d")  # assign, start, stop of each; 0.0 where absent
        self.cpu_seconds = array("f")
        self.max_rss = array("Q")
        self.earlier = array("I")  # position of the task's attempt before
        self.last = array("I")  # by task number: position of its last attempt
        self.more: dict[int, bytes] = {}  # position -> the whole result, serialised, where the arrays do not hold it all
        self.host_names: list[tuple[str, str]] = []
        self._host_index: dict[tuple[str, str], int] = {}

    def add(self, record: AttemptRecorded) -> None:
        result: AttemptResult = record.result
        position = len(self.attempts)
        number = record.number
        if number >= len(self.last):
            self.last.extend([_NONE] * (max(number + 1, 2 * len(self.last)) - len(self.last)))
        self.earlier.append(self.last[number])
        self.last[number] = position
        self.attempts.append(record.attempt)
        self.outcomes.append(record.outcome)
        host = (record.host, record.host_name)
        index = self._host_index.get(host)
        if index is None:
            index = self._host_index[host] = len(self.host_names)
            self.host_names.append(host)
        self.hosts.append(index)
        start, stop = result.start_time, result.stop_time
        self.times.append(record.assign_time)
        self.times.append(start.seconds + start.nanos / 1e9)
        self.times.append(stop.seconds + stop.nanos / 1e9)
        # Proto3 optional fields: absent is not zero.
        self.exit_codes.append(result.exit_code if result.HasField("exit_code") else _ABSENT)
        self.cpu_seconds.append(result.cpu_seconds if result.HasField("cpu_seconds") else -1.0)
        self.max_rss.append(result.max_rss_bytes + 1 if result.HasField("max_rss_bytes") else 0)
        if result.HasField("signal") or result.notes or result.stdout.size_bytes or result.stderr.size_bytes:
            self.more[position] = result.SerializeToString()

    def of(self, number: int) -> list[StoredAttempt]:
        """A task's attempts, oldest first."""
        found = []
        position = self.last[number] if number < len(self.last) else _NONE
        while position != _NONE:
            found.append(self._at(position))
            position = self.earlier[position]
        return found[::-1]

    def _at(self, position: int) -> StoredAttempt:
        host, host_name = self.host_names[self.hosts[position]]
        assign, start, stop = self.times[3 * position : 3 * position + 3]
        whole = self.more.get(position)
        if whole is not None:
            result = AttemptResult.FromString(whole)
        else:
            result = AttemptResult(outcome=self.outcomes[position])  # type: ignore[arg-type]
            if self.exit_codes[position] != _ABSENT:
                result.exit_code = self.exit_codes[position]
            for field, seconds in ((result.start_time, start), (result.stop_time, stop)):
                if seconds:
                    field.FromNanoseconds(round(seconds * 1e9))
            if self.cpu_seconds[position] >= 0:
                result.cpu_seconds = round(self.cpu_seconds[position], 6)
            if self.max_rss[position]:
                result.max_rss_bytes = self.max_rss[position] - 1
        return StoredAttempt(self.attempts[position], host, host_name, assign, result)


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
        pieces = self._output.setdefault(record[:4], {})
        before = pieces.get(record.offset)
        if before is not None and len(before) >= len(record.data):
            return
        self._output_bytes += len(record.data) - len(before) if before is not None else len(record.data) + _PIECE_COST
        pieces[record.offset] = record.data
        while self._output_bytes > MAX_OUTPUT_BYTES:
            oldest = next(iter(self._output))
            self._output_bytes -= sum(len(data) + _PIECE_COST for data in self._output.pop(oldest).values())

    async def attempts(self, run_id: int, number: int) -> list[StoredAttempt]:
        log = self._logs.get(run_id)
        return log.of(number) if log is not None else []

    async def output(self, run_id: int, number: int, attempt: int, stream: int, offset: int, limit: int) -> list[Piece]:
        found: list[Piece] = []
        pieces = self._output.get((run_id, number, attempt, stream), {})
        for start in sorted(pieces):
            data = pieces[start]
            if start + len(data) <= offset:
                continue
            if limit <= 0:
                break
            skipped = max(0, offset - start)
            found.append(Piece(start + skipped, data[skipped:]))
            limit -= len(data) - skipped
        return found

    async def document(self, run_id: int) -> bytes | None:
        return self._documents.get(run_id)

    async def close(self) -> None:
        """Nothing is held but memory."""
