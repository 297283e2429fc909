"""Rows of a SQL tracker's tables as the types that `Tracker` returns. sql/tracker.py passes rows as statements.sql has them.

Pure: nothing here knows a database.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

import msgspec
from google.protobuf.message import DecodeError

from daggyr.v1.task_pb2 import AttemptResult
from daggyr_server.core.states import State
from daggyr_server.core.stored import Adopted, Growth, RunRow, TaskRows
from daggyr_server.trackers.base import SHOWN_TASKS, DamagedRun, StateChange, StoredAttempt
from daggyr_server.trackers.sql.readers import Row
from daggyr_server.trackers.task_rows import Assigned, Folding, adopted, unpack

_STATES = frozenset(map(int, State))
_MAX_WORDS = 300
MAX_LIST = 65_536  # numbers in one packed column
COMMANDS = "commands "  # in a run's counts, before the name of a state: counts only tasks that run commands


@contextlib.contextmanager
def making_sense(run_id: int, kind: type[DamagedRun] = DamagedRun) -> Iterator[None]:
    """Raises an error of this kind for what goes wrong with rows of a run that nobody could have written."""
    try:
        yield
    except (ArithmeticError, DecodeError, LookupError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise kind(run_id, f"{type(error).__name__}: {error}"[:_MAX_WORDS]) from None


def shown_row(row: Row) -> RunRow:
    """A run for a list. One whose row is damaged is there too."""
    try:
        with making_sense(row[0]):
            return run_row(row)
    except DamagedRun as damage:
        run_id, _, _, _, state, *times = row
        known = State(state) if state in _STATES else State.ERRORED
        submit, start, stop = (time if isinstance(time, int | float) else None for time in times[:3])
        return RunRow(run_id, "", {}, "", known, submit or 0.0, start, stop, False, {}, damage=str(damage))


def run_row(row: Row) -> RunRow:
    run_id, request_id, tags, pool, state, submit_time, start_time, stop_time, killing, task_states, *more = row
    growths, stopped, ran_seconds, running_time, *_ = more
    counts = msgspec.json.decode(task_states, type=dict[str, int])
    return RunRow(
        run_id=run_id,
        request_id=request_id,
        tags=msgspec.json.decode(tags, type=dict[str, str]),
        pool=pool,
        state=State(state),
        submit_time=submit_time,
        start_time=start_time,
        stop_time=stop_time,
        killing=bool(killing),
        revision=1 + growths,
        stopped=stopped,
        ran_seconds=max(0.0, ran_seconds or 0.0),  # none, as long as it has not begun
        running_time=running_time,
        task_states={State[name]: count for name, count in counts.items() if not name.startswith(COMMANDS)},
        command_states={State[name.removeprefix(COMMANDS)]: count for name, count in counts.items() if name.startswith(COMMANDS)},
    )


def stored_attempt(row: Row) -> StoredAttempt:
    attempt, host, host_name, assign_time, result = row
    return StoredAttempt(attempt, host, host_name, assign_time, AttemptResult.FromString(result))


def growth(row: Row) -> Growth:
    """A growth without its document."""
    revision, number, attempt, pool, kept = row
    return Growth(revision, b"", number, attempt, pool, tuple(unpack(kept)))


def task_history(rows: Iterable[Row], number: int) -> list[StateChange]:
    """Those changes of `rows` that are about a task."""
    return [StateChange(time, number, State(state), reason) for time, state, reason, packed in rows if number in unpack(packed)]


def run_history(rows: Iterable[Row]) -> list[StateChange]:
    """The changes of a run, and what a person moved of its tasks. One move of many tasks may be several rows."""
    found: list[StateChange] = []
    for time, state, reason, packed, count in rows:
        change = StateChange(time, None, State(state), reason, tuple(unpack(packed or b"")), count)
        place = len(found)
        while count and place and found[place - 1].time == time and not found[place - 1].reason:
            place -= 1  # the run moved because of its tasks; in one commit, its own row comes first
        last = found[place - 1] if place else None
        whole = last is not None and last.count > 0 and not last.count % MAX_LIST  # it may go on in the next row
        if last is not None and count and whole and (last.time, last.state, last.reason) == (time, change.state, reason):
            found[place - 1] = replace(last, tasks=(*last.tasks, *change.tasks)[:SHOWN_TASKS], count=last.count + count)
        else:
            found.insert(place, change)
    return found


class TasksFold:
    """A run's tasks, made of its rows by `Folding`. `ended` takes the rows of attempts; call it once for each slice."""

    def __init__(self, hosts: Iterable[Row], assignments: Iterable[Row], changes: Iterable[Row]) -> None:
        folding = Folding()
        names = {key: (host, host_name) for key, host, host_name in hosts}
        self._sent = [
            Assigned(*names[key], time, unpack(numbers), unpack(attempts), life)
            for key, time, numbers, attempts, life in assignments
        ]
        for sent in self._sent:
            folding.assigned(sent.numbers, sent.attempts)
        for state, numbers, attempts in changes:
            folding.moved(state, unpack(numbers), unpack(attempts))
        self.ended = folding.ended
        self._folding = folding

    def result(self) -> tuple[TaskRows, list[Adopted]]:
        rows, in_flight, void = self._folding.rows()
        return rows, adopted(in_flight, void, self._sent)
