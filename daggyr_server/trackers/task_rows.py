"""Makes the states and counts that `Tracker.load` returns of what is stored about a run's attempts and moves.

All trackers use it. It needs no more than which attempts were assigned last, how attempts ended, and which tasks a person moved.
The rule by which these give a task's state stands with `TasksMoved` in core/records.py. Pure: it reads no database.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from daggyr_server.core.states import Outcome, State
from daggyr_server.core.stored import Adopted, TaskRows

_FAILURES = frozenset({int(Outcome.FAILED), int(Outcome.TIMED_OUT), int(Outcome.OOM_KILLED)})
_SUCCEEDED, _LOST, _QUEUED = int(Outcome.SUCCEEDED), int(Outcome.LOST), int(State.QUEUED)
_COMPLETED = int(State.COMPLETED)


class Assigned(NamedTuple):
    """Attempts that were sent to a host together; `numbers` and `attempts` are parallel."""

    host: str
    host_name: str
    assign_time: float
    numbers: Sequence[int]
    attempts: Sequence[int]
    life: int  # of the start that assigned them


class Folding:
    """Folds one run, and is used once. Call `assigned` and `moved` as records came, then `ended`, and in the end `rows`."""

    def __init__(self) -> None:
        # By task number: the last attempt that was assigned. One that has ended is taken out; in the end the rest are in flight.
        self._assigned: dict[int, int] = {}
        # The last move, as 8 * attempts + state: how many attempts the task had had, and to which state it was moved.
        self._moved: dict[int, int] = {}
        self._requeued: dict[int, int] = {}  # how many attempts the task had had at its last move to QUEUED
        self._rows = TaskRows(array("I"), bytearray(), array("I"), array("I"), array("I"), array("I"))
        self._task = (-1, 0, 0, 0, 0)  # the task whose rows `ended` is reading: number, attempt, state, failures, losses

    def assigned(self, numbers: Sequence[int], attempts: Sequence[int]) -> None:
        """Attempts were about to be sent. The lists are parallel."""
        self._assigned.update(zip(numbers, attempts, strict=True))

    def moved(self, state: int, numbers: Sequence[int], attempts: Sequence[int]) -> None:
        """Tasks were moved; `attempts` says how many each had had. The lists are parallel."""
        self._moved.update(zip(numbers, [attempt << 3 | state for attempt in attempts], strict=True))
        if state == _QUEUED:
            self._requeued.update(zip(numbers, attempts, strict=True))

    def ended(self, rows: Iterable[tuple[int, int, int, int]]) -> None:
        """Attempts ended: a row is number, attempt, outcome and state. They ascend by number, then attempt, also from one call to
        the next."""
        requeued = self._requeued
        number, attempt, state, failures, losses = self._task
        counted_from = requeued.get(number, 0)
        for row_number, row_attempt, outcome, row_state in rows:
            if row_number != number:
                if number >= 0:
                    self._add(number, attempt, state, failures, losses)
                number, failures, losses = row_number, 0, 0
                counted_from = requeued.get(number, 0) if requeued else 0
            attempt, state = row_attempt, row_state
            if (outcome != _SUCCEEDED or row_state != _COMPLETED) and attempt > counted_from:
                if outcome in _FAILURES or outcome == _SUCCEEDED:  # a generator whose document was refused has failed as well
                    failures += 1
                elif outcome == _LOST:
                    losses += 1
        self._task = (number, attempt, state, failures, losses)

    def _add(self, number: int, attempt: int, state: int, failures: int, losses: int) -> None:
        assigned = self._assigned.get(number, 0)
        if assigned <= attempt:
            self._assigned.pop(number, None)
        moved = self._moved.get(number, 0) if self._moved else 0
        if moved and moved >> 3 >= attempt:
            state = moved & 7
        rows = self._rows
        rows.numbers.append(number)
        rows.states.append(state)
        rows.attempts.append(max(assigned, attempt))
        rows.failures.append(failures)
        rows.losses.append(losses)

    def rows(self) -> tuple[TaskRows, dict[int, int], set[int]]:
        """The tasks; the attempts in flight, as number to attempt; and of these the numbers that are void."""
        number, attempt, state, failures, losses = self._task
        if number >= 0:
            self._add(number, attempt, state, failures, losses)
        known = len(self._rows.numbers)
        in_flight = self._assigned
        ended = set(self._rows.numbers) if in_flight or self._moved else frozenset()
        for number in in_flight.keys() | self._moved.keys():
            if number not in ended:
                self._add(number, 0, _QUEUED, 0, 0)
        if len(self._rows.numbers) > known:
            self._sort()
        self._rows.requeued.extend(sorted(self._requeued))
        void = {number for number, attempt in in_flight.items() if self._moved.get(number) == attempt << 3 | _QUEUED}
        return self._rows, in_flight, void

    def _sort(self) -> None:
        rows = self._rows
        order = sorted(range(len(rows.numbers)), key=rows.numbers.__getitem__)
        self._rows = TaskRows(
            array("I", [rows.numbers[i] for i in order]),
            bytearray(rows.states[i] for i in order),
            array("I", [rows.attempts[i] for i in order]),
            array("I", [rows.failures[i] for i in order]),
            array("I", [rows.losses[i] for i in order]),
            array("I"),
        )


def adopted(in_flight: dict[int, int], void: Container[int], sent: Sequence[Assigned]) -> list[Adopted]:
    """The attempts of `in_flight` (number to attempt), ascending by number, with where they were sent. `sent` is in order."""
    found: dict[int, Adopted] = {}
    for host, host_name, time, numbers, attempts, life in reversed(sent):
        if len(found) == len(in_flight):
            break  # all are found; what was sent earlier has ended
        for number, attempt in zip(numbers, attempts, strict=True):
            if in_flight.get(number) == attempt:
                found[number] = Adopted(number, attempt, host, host_name, time, number in void, life)
    return [found[number] for number in sorted(found)]


def pack(numbers: Sequence[int]) -> bytes:
    """Numbers below 2**32 as bytes, little-endian."""
    packed = array("I", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(packed: bytes) -> array[int]:
    """The numbers that `pack` was given."""
    numbers = array("I")
    numbers.frombytes(packed)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
