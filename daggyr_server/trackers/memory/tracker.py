"""The memory tracker, `--tracker memory`, which is the default: it keeps everything in this process and forgets it at the end.

Runs may have millions of tasks, so ended attempts are kept in arrays (attempt_log.py). Output is bounded over all runs together:
the oldest stream is dropped first, and whole. Readers see that it is missing, because the results have the sizes. It writes no
file.
"""

from __future__ import annotations

import asyncio
import secrets
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, repeat
from typing import Any

from daggyr.v1.task_pb2 import STDOUT, AttemptResult
from daggyr_server.core.records import (
    AgentForgotten,
    AgentPinned,
    AttemptRecorded,
    AttemptsAssigned,
    OutputKept,
    Record,
    RunAdded,
    RunEdited,
    RunKillAsked,
    RunMoved,
    TasksGenerated,
    TasksMoved,
    TasksStopped,
)
from daggyr_server.core.states import State
from daggyr_server.core.stored import EVERY_RUN, Growth, RunFilter, RunRow, StoredRun
from daggyr_server.trackers.base import (
    MAX_ATTEMPTS,
    MAX_ROWS_BYTES,
    SHOWN_TASKS,
    Opened,
    Piece,
    StateChange,
    StoredAttempt,
    Tracker,
    TrackerError,
    new_life,
)
from daggyr_server.trackers.memory.attempt_log import AttemptLog
from daggyr_server.trackers.pieces import in_order, joined
from daggyr_server.trackers.task_rows import Assigned, Folding, adopted

MAX_OUTPUT_BYTES = 256 * 1024 * 1024
RUNS_A_TURN = 2_000  # that are looked at before other work has its turn
LOOKED_AT = 1_000  # how many of the oldest streams are searched for one that may be dropped
# What Python takes for a stream, and for each piece of it, beside the data, in bytes; tests/trackers measure it.
_STREAM_COST = 300
_PIECE_COST = 120


class _Kept:
    """A run, and what was recorded of it."""

    def __init__(self, added: RunAdded) -> None:
        self.added = added
        self.tags, self.pool = added.tags, added.pool
        self.state = State.QUEUED
        self.start_time: float | None = None
        self.stop_time: float | None = None
        self.ran_seconds = 0.0
        self.running_time: float | None = None
        self.killing = False
        self.task_states: Mapping[State, int] = {}
        self.command_states: Mapping[State, int] = {}
        self.growths: list[Growth] = []
        self.log = AttemptLog()
        # By task number: the record that assigned the attempt, and the life of the start whose record it is.
        self.in_flight: dict[int, tuple[AttemptsAssigned, int]] = {}
        self.changes: list[StateChange] = []  # of the run itself
        self.moves: list[TasksMoved] = []
        self.stopped: Sequence[int] = ()
        self.streams: set[tuple[int, int, int, int]] = set()  # those of which something is kept

    def row(self) -> RunRow:
        return RunRow(
            run_id=self.added.run_id,
            request_id=self.added.request_id,
            tags=dict(self.tags),
            pool=self.pool,
            state=self.state,
            submit_time=self.added.submit_time,
            start_time=self.start_time,
            stop_time=self.stop_time,
            killing=self.killing,
            task_states=dict(self.task_states),
            command_states=dict(self.command_states),
            revision=1 + len(self.growths),
            stopped=len(self.stopped),
            ran_seconds=self.ran_seconds,
            running_time=self.running_time,
        )

    def move(self, record: RunMoved) -> None:
        self.state, self.ran_seconds = record.state, record.ran_seconds
        self.running_time = record.time if record.state is State.RUNNING else None
        if record.state is State.QUEUED:
            self.stop_time, self.task_states, self.command_states, self.killing = None, {}, {}, False
        elif record.state is State.RUNNING:
            self.start_time = record.time if self.start_time is None else self.start_time
        else:
            self.stop_time, self.task_states, self.command_states = record.time, record.task_states, record.command_states
        self.note(record.time, "")

    def note(self, time: float, reason: str) -> None:
        self.changes.append(StateChange(time, None, self.state, reason))


class MemoryTracker(Tracker):
    """See the head of this file. It has a new tracker_id at each start, because nothing of a start before is left."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        if address != "memory":
            raise TrackerError(f"the memory tracker takes no path: write `memory`, not {address!r}")
        self._life = 0  # of the start whose records are committed now
        self._runs: dict[int, _Kept] = {}
        self._ids: list[int] = []  # the keys of `_runs`, ascending
        self._requests: dict[str, int] = {}
        self._output: dict[tuple[int, int, int, int], dict[int, bytes]] = {}  # (run, task, attempt, stream) -> by offset
        self._output_bytes = 0
        self._pins: dict[str, AgentPinned] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            RunAdded: self._run_added,
            RunMoved: self._run_moved,
            RunKillAsked: self._run_kill_asked,
            RunEdited: self._run_edited,
            TasksStopped: self._tasks_stopped,
            TasksGenerated: self._tasks_generated,
            AttemptsAssigned: self._attempts_assigned,
            AttemptRecorded: self._attempt_recorded,
            TasksMoved: self._tasks_moved,
            OutputKept: self._output_kept,
            AgentPinned: self._agent_pinned,
            AgentForgotten: self._agent_forgotten,
        }

    async def open(self) -> Opened:
        life = self._life = new_life()
        return Opened(tracker_id=secrets.token_hex(16), epoch=1, next_run_id=1, durable=False, life=life, lives={1: life})

    async def close(self) -> None:
        """Do nothing: the tracker holds nothing but memory."""

    # -- records ------------------------------------------------------------------------------------------------------

    async def commit(self, records: Sequence[Record]) -> None:
        handlers = self._handlers
        later = []  # what a generator printed may come after this record in the same commit
        for record in records:
            if type(record) is TasksGenerated:
                later.append(record)
            else:
                handlers[type(record)](record)
        for generated in later:
            self._tasks_generated(generated)

    def _run_added(self, record: RunAdded) -> None:
        if record.run_id not in self._runs:
            insort(self._ids, record.run_id)  # nearly always at the end, because ids grow
        self._runs[record.run_id] = _Kept(record)
        self._requests[record.request_id] = record.run_id

    def _run_moved(self, record: RunMoved) -> None:
        self._runs[record.run_id].move(record)

    def _run_kill_asked(self, record: RunKillAsked) -> None:
        run = self._runs[record.run_id]
        run.killing = True
        run.note(record.time, "kill")

    def _run_edited(self, record: RunEdited) -> None:
        run = self._runs[record.run_id]
        run.tags, run.pool = record.tags, record.pool
        run.growths.append(Growth(record.revision, record.document, None, None, record.pool, record.kept))
        run.note(record.time, record.reason)

    def _tasks_stopped(self, record: TasksStopped) -> None:
        self._runs[record.run_id].stopped = array("I", record.numbers)

    def _tasks_generated(self, record: TasksGenerated) -> None:
        printed = self._output.get((record.run_id, record.number, record.attempt, int(STDOUT)), {})
        document = joined((start, printed[start]) for start in sorted(printed))
        self._runs[record.run_id].growths.append(Growth(record.revision, document, record.number, record.attempt))

    def _attempts_assigned(self, record: AttemptsAssigned) -> None:
        self._runs[record.run_id].in_flight.update(zip(record.numbers, repeat((record, self._life))))

    def _attempt_recorded(self, record: AttemptRecorded) -> None:
        run = self._runs[record.run_id]
        run.log.add(record)
        run.in_flight.pop(record.number, None)

    def _tasks_moved(self, record: TasksMoved) -> None:
        packed = replace(record, numbers=array("I", record.numbers), attempts=array("I", record.attempts))
        run = self._runs[record.run_id]
        run.moves.append(packed)
        if record.reason != "edit":
            first = tuple(record.numbers[:SHOWN_TASKS])
            run.changes.append(StateChange(record.time, None, record.state, record.reason, first, len(record.numbers)))

    def _output_kept(self, record: OutputKept) -> None:
        stream = record[:4]
        pieces = self._output.get(stream)
        if pieces is None:
            pieces = self._output[stream] = {}
            self._runs[record.run_id].streams.add(stream)
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
            # What a generator prints is needed until it has ended, so streams of attempts that have ended go first.
            oldest = list(islice(self._output, LOOKED_AT))
            self._drop(next((stream for stream in oldest if not self._is_in_flight(stream)), oldest[0]))

    def _is_in_flight(self, stream: tuple[int, int, int, int]) -> bool:
        run = self._runs.get(stream[0])
        return run is not None and stream[1] in run.in_flight

    def _drop(self, stream: tuple[int, int, int, int]) -> None:
        pieces = self._output.pop(stream)
        self._runs[stream[0]].streams.discard(stream)
        self._output_bytes -= _STREAM_COST + sum(_PIECE_COST + len(data) for data in pieces.values())

    def _agent_pinned(self, record: AgentPinned) -> None:
        self._pins[record.agent_id] = record

    def _agent_forgotten(self, record: AgentForgotten) -> None:
        self._pins.pop(record.agent_id, None)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def attempts(
        self, run_id: int, number: int, *, before: int | None = None, limit: int = MAX_ATTEMPTS
    ) -> list[StoredAttempt]:
        run = self._runs.get(run_id)
        return run.log.of(number, before, limit) if run is not None else []

    async def results(self, run_id: int, attempts: Sequence[tuple[int, int]]) -> dict[tuple[int, int], AttemptResult]:
        run = self._runs.get(run_id)
        found = ((key, run.log.result(*key)) for key in attempts) if run is not None else ()
        return {key: result for key, result in found if result is not None}

    async def output(self, run_id: int, number: int, attempt: int, stream: int, offset: int, limit: int) -> list[Piece]:
        pieces = self._output.get((run_id, number, attempt, stream), {})
        return in_order(((start, pieces[start]) for start in sorted(pieces)), offset, limit)

    async def document(self, run_id: int, revision: int = 0) -> bytes | None:
        run = self._runs.get(run_id)
        if run is None or not revision:
            return run.added.document if run is not None else None
        return next((growth.document for growth in run.growths if growth.revision == revision), None)

    async def unfinished(self) -> list[int]:
        return sorted(run_id for run_id, run in self._runs.items() if run.state in (State.QUEUED, State.RUNNING))

    async def load(self, run_id: int) -> StoredRun | None:
        run = self._runs.get(run_id)
        if run is None:
            return None
        folding = Folding()
        sent = [
            Assigned(record.host, record.host_name, record.time, record.numbers, record.attempts, life)
            for record, life in {id(entry[0]): entry for entry in run.in_flight.values()}.values()
        ]
        for of_one in sent:
            folding.assigned(of_one.numbers, of_one.attempts)
        for move in run.moves:
            folding.moved(move.state, move.numbers, move.attempts)
        folding.ended(run.log.ended())
        tasks, in_flight, void = folding.rows()
        growths = sorted(run.growths, key=lambda growth: growth.revision)
        document, pool, flying = run.added.document, run.added.pool, adopted(in_flight, void, sent)
        return StoredRun(run.row(), document, pool, growths, tasks, flying, stopped=run.stopped)

    async def find_request(self, request_id: str) -> int | None:
        return self._requests.get(request_id)

    async def rows(self, *, before: int | None, limit: int, wanted: RunFilter = EVERY_RUN) -> list[RunRow]:
        end = len(self._ids) if before is None else bisect_left(self._ids, before)
        found: list[RunRow] = []
        size = 0
        while end and len(found) < limit and size < MAX_ROWS_BYTES:
            turn = self._ids[max(0, end - (limit if wanted.is_open else RUNS_A_TURN)) : end]
            for run_id in reversed(turn):
                run = self._runs[run_id]
                if wanted.admits(run.tags, run.state, run.added.submit_time, run.stop_time):
                    row = run.row()
                    size += sum(len(name) + len(value) for name, value in row.tags.items())
                    found.append(row)
                    if len(found) >= limit or size >= MAX_ROWS_BYTES:
                        return found
            if not found:
                await asyncio.sleep(0)
            end = bisect_left(self._ids, turn[0])  # Meanwhile, some may have come or gone.
        return found

    async def pins(self) -> list[AgentPinned]:
        return list(self._pins.values())

    async def history(self, run_id: int, number: int | None) -> list[StateChange]:
        run = self._runs.get(run_id)
        if run is None:
            return []
        if number is None:
            return list(run.changes)
        return [StateChange(move.time, number, move.state, move.reason) for move in run.moves if number in move.numbers]

    # -- deleting -----------------------------------------------------------------------------------------------------

    async def delete(self, run_ids: Sequence[int], limit: int) -> bool:
        """The whole runs go at once, because that takes no time in memory."""
        for run_id in run_ids:
            run = self._runs.get(run_id)
            if run is not None:
                for stream in list(run.streams):
                    self._drop(stream)
                del self._runs[run_id]
                del self._ids[bisect_left(self._ids, run_id)]
                del self._requests[run.added.request_id]
        return False

    async def deleting(self) -> list[int]:
        return []
