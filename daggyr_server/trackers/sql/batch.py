"""A step's records as rows: what one commit of a SQL tracker writes. Both SQL trackers make a `Batch` for each commit.

The records that change a run itself stay in order, each a statement of its own (`steps`). All others are put together by table
(`tables`), because few large statements cost a fraction of many small ones. The order of records of different tables does not
matter, because a task's state follows from the numbers of attempts, not from when a row came. A tracker writes `steps`, then
`tables`, in one transaction. Pure: nothing here knows a database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

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
from daggyr_server.trackers.pieces import DOCUMENT_PIECE_BYTES, MAX_OFFSET, MAX_PIECE_BYTES, cut
from daggyr_server.trackers.sql.rows import COMMANDS, MAX_LIST
from daggyr_server.trackers.task_rows import pack

Row = tuple[Any, ...]


class Batch:
    """The rows of a commit's records. Their columns are those of the statements in statements.sql."""

    def __init__(self, records: Sequence[Record], life: int) -> None:
        """`life` is that of the start whose records these are."""
        self._life = life
        self.steps: list[tuple[str, Row]] = []  # a statement's name and its parameters, in order
        self._documents: list[Row] = []
        self._assignments: list[Row] = []
        self._attempts: list[Row] = []
        self._changes: list[Row] = []
        self._generated: list[Row] = []
        self.bytes = 0  # of documents, output and lists; many make a commit slow though its rows are few
        self._hosts: dict[tuple[int, int], Row] = {}
        self._output: dict[Row, bytes | memoryview] = {}
        takers: dict[type, Callable[[Any], None]] = {
            RunAdded: self._run_added,
            RunMoved: self._run_moved,
            RunKillAsked: self._run_kill_asked,
            RunEdited: self._run_edited,
            TasksStopped: self._tasks_stopped,
            TasksGenerated: self._tasks_generated,
            AttemptsAssigned: self._attempts_assigned,
            TasksMoved: self._tasks_moved,
            OutputKept: self._output_kept,
            AgentPinned: self._agent_pinned,
            AgentForgotten: self._agent_forgotten,
        }
        attempts, hosts = self._attempts, self._hosts
        for record in records:
            if type(record) is AttemptRecorded:  # most records are, so this is done without a call
                run_id, number, attempt, outcome, host, host_name, assign_time, result, state = record
                key = _host_key(host, host_name)
                if (run_id, key) not in hosts:
                    self._host(run_id, host, host_name)
                attempts.append((run_id, number, attempt, int(outcome), int(state), key, assign_time, result.SerializeToString()))
            else:
                takers[type(record)](record)

    def tables(self) -> list[tuple[str, list[Row]]]:
        """The names of statements, each with the rows that it adds, in the order in which to write them."""
        # Each key of output comes once, with the longest piece, because one statement may not write a row twice.
        output = [(*key, data) for key, data in self._output.items()]
        found = {
            "add_documents": self._documents,
            "add_hosts": list(self._hosts.values()),
            "add_assignments": self._assignments,
            "add_attempts": self._attempts,
            "add_changes": self._changes,
            "add_output": output,
            "keep_generated": self._generated,
        }
        return [(name, rows) for name, rows in found.items() if rows]

    @property
    def runs_with_output(self) -> set[int]:
        return {key[0] for key in self._output}

    def _run_added(self, record: RunAdded) -> None:
        tags = msgspec.json.encode(dict(record.tags)).decode()
        request_id, queued = stored_text(record.request_id), int(State.QUEUED)
        self.steps += [
            ("add_run", (record.run_id, request_id, tags, record.pool, record.pool, queued, record.submit_time)),
            ("take_run_id", (record.run_id,)),
        ]
        self._document(record.run_id, 0, record.document, record.deposit)

    def _run_moved(self, record: RunMoved) -> None:
        state = int(record.state)
        if record.state is State.QUEUED:
            self.steps.append(("queue_run", (state, record.ran_seconds, record.run_id)))
        elif record.state is State.RUNNING:
            self.steps.append(("start_run", (state, record.ran_seconds, record.time, record.time, record.run_id)))
        else:
            counts = {of.name: count for of, count in record.task_states.items()}
            counts |= {COMMANDS + of.name: count for of, count in record.command_states.items()}
            told = msgspec.json.encode(counts).decode()
            self.steps.append(("end_run", (state, record.ran_seconds, record.time, told, record.run_id)))
        self.steps.append(("note_move", (record.run_id, record.time, state)))

    def _run_kill_asked(self, record: RunKillAsked) -> None:
        self.steps += [("kill_run", (record.run_id,)), ("note_asked", (record.time, "kill", record.run_id))]

    def _run_edited(self, record: RunEdited) -> None:
        self.steps += [
            ("edit_run", (msgspec.json.encode(dict(record.tags)).decode(), record.pool, record.run_id)),
            ("add_growth", (record.run_id, record.revision, None, None, record.pool, pack(record.kept))),
            ("note_asked", (record.time, record.reason, record.run_id)),
        ]
        self._document(record.run_id, record.revision, record.document, record.deposit)
        if record.replaced or record.replaced_deposit:
            self._document(record.run_id, -record.revision, record.replaced, record.replaced_deposit)

    def _tasks_stopped(self, record: TasksStopped) -> None:
        self.steps.append(("stop_tasks", (pack(record.numbers), record.run_id)))

    def _tasks_generated(self, record: TasksGenerated) -> None:
        self.steps.append(("add_growth", (record.run_id, record.revision, record.number, record.attempt, "", b"")))
        if record.deposit:
            self._document(record.run_id, record.revision, b"", record.deposit)
        else:
            self._generated.append((record.revision, record.run_id, record.number, record.attempt))

    def _attempts_assigned(self, record: AttemptsAssigned) -> None:
        key = self._host(record.run_id, record.host, record.host_name)
        for first in range(0, len(record.numbers), MAX_LIST):
            numbers, attempts = record.numbers[first : first + MAX_LIST], record.attempts[first : first + MAX_LIST]
            self._assignments.append((record.run_id, key, record.time, pack(numbers), pack(attempts), self._life))

    def _tasks_moved(self, record: TasksMoved) -> None:
        state = int(record.state)
        for first in range(0, len(record.numbers), MAX_LIST):
            numbers, attempts = record.numbers[first : first + MAX_LIST], record.attempts[first : first + MAX_LIST]
            where = (min(numbers), max(numbers), pack(numbers), pack(attempts))
            self._changes.append((record.run_id, record.time, state, record.reason, *where))
            self.bytes += 8 * len(numbers)

    def _output_kept(self, record: OutputKept) -> None:
        if not record.data or record.offset + len(record.data) > MAX_OFFSET:
            return  # such an offset fits no column; no task has written that much
        self.bytes += len(record.data)
        for start, data in cut(record.offset, record.data, MAX_PIECE_BYTES):
            key = (*record[:4], start)
            if len(self._output.get(key, b"")) < len(data):
                self._output[key] = data

    def _agent_pinned(self, record: AgentPinned) -> None:
        self.steps.append(("pin_agent", (stored_text(record.agent_id), stored_text(record.name), record.digest)))

    def _agent_forgotten(self, record: AgentForgotten) -> None:
        self.steps.append(("forget_agent", (stored_text(record.agent_id),)))

    def _document(self, run_id: int, revision: int, document: bytes, deposit: int) -> None:
        if deposit:
            self.steps.append(("claim_deposit", (run_id, revision, deposit)))
            return
        self.bytes += len(document)
        self._documents += [(run_id, revision, start, data) for start, data in cut(0, document, DOCUMENT_PIECE_BYTES)]

    def _host(self, run_id: int, host: str, host_name: str) -> int:
        key = _host_key(host, host_name)
        self._hosts[run_id, key] = (run_id, key, stored_text(host), stored_text(host_name))
        return key


def stored_text(text: str) -> str:
    """A text as databases take it: Postgres allows no NUL in one."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


@lru_cache(maxsize=16_384)
def _host_key(host: str, host_name: str) -> int:
    """A number that stands for the two names in rows. It is the same at each start."""
    digest = blake2b(f"{len(host)} {host}{host_name}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
