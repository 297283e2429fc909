"""A run is given another specification: what is unchanged keeps its state, what is changed or new is QUEUED, what is gone ends.

The machine calls `edited`, after it has checked that the edit was made for the run as it is; restoring a run repeats its edits
with `take_edit`. Nothing here decides which tasks are unchanged: that is the edit's `carry`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from daggyr_server.core.graph.carry import Carry
from daggyr_server.core.graph.graph import Edit
from daggyr_server.core.graph.held import hold_back
from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.run import Run
from daggyr_server.core.moment import Moment
from daggyr_server.core.states import ENDED, Phase

_BLOCKED, _COMPLETED, _KILLED = int(Phase.BLOCKED), int(Phase.COMPLETED), int(Phase.KILLED)
_ASSIGNED, _RUNNING = int(Phase.ASSIGNED), int(Phase.RUNNING)
_ENDED_ONLY = bytes(phase if phase < len(Phase) and Phase(phase) in ENDED else _BLOCKED for phase in range(256))
T = TypeVar("T")


def edited(run: Run, edit: Edit, repeated: Sequence[int], now: Moment, *, everything: bool) -> tuple[list[int], list[int]]:
    """Give a run another specification. Unchanged tasks keep their state and budget; changed and new ones are QUEUED.

    An attempt in flight whose task is changed, or gone, does not count any more: it is to be ended. `repeated` are unchanged
    tasks, with the numbers that they get, which are QUEUED as well. Unchanged tasks that a kill of the run left behind are
    stopped, unless `everything` is to go on. Returns the tasks that are QUEUED and were not, and the tasks
    of the attempts that are to be ended; all numbers are those from now on.
    """
    kept = run.phases.translate(_ENDED_ONLY)
    for number, attempt in run.in_flight.items():
        if attempt.killed:
            kept[number] = _KILLED  # as it will be, unless it is changed
    stopped_before = [] if everything else [*run.stopped, *(run.ready_or_delayed() if run.has_ended else ())]
    delayed, before, lost_on = run.delayed, run.in_flight, run.lost_on
    ended_as = run.task_states() if run.has_ended else None
    take_edit(run, edit)
    run.printed = edit.printed_after(run.printed)
    kept += bytes(run.graph.size - len(kept))
    for new, old, count, same in edit.carry:
        run.attempts[new : new + count] = run.attempts[old : old + count]
        if same:
            kept[new : new + count] = kept[old : old + count]
    for addition in edit.additions:
        run.count_on(addition.after)
    staying = {over[0] for number in before if (over := edit.carry.forward(number)) is not None}
    waiting = _carried({number: due for due, number in delayed}, edit.carry)
    again = [number for number in repeated if kept[number] or number in staying or number in waiting]
    for number in again:
        kept[number] = _BLOCKED
    ended = [new + offset for new, old, count, same in edit.carry if not same for offset in range(count) if kept[old + offset]]
    run.failures, run.losses = _carried(run.failures, edit.carry), _carried(run.losses, edit.carry)
    run.comebacks = _carried(run.comebacks, edit.carry)
    run.forgive(again)
    queued = set(again)
    stopped = _carry_attempts(run, before, edit.carry, queued)
    in_flight = {
        number: _ASSIGNED if attempt.start_time is None else _RUNNING
        for number, attempt in run.in_flight.items()
        if number >= run.graph.live
    }
    # What a kill left behind is stopped, or goes on at once: no delay is waited for then.
    still = [] if ended_as is not None else [(due, number) for number, due in waiting.items() if number not in queued]
    run.lost_on = {number: host for number, host in _carried(lost_on, edit.carry).items() if number not in queued and still}
    run.put_back(kept, in_flight, still)
    staying_stopped = (edit.carry.forward(number) for number in stopped_before)
    asked = frozenset(repeated)
    run.stop(sorted(over[0] for over in staying_stopped if over is not None and over[1] and over[0] not in asked))
    stopped += hold_back(run)
    # A run that had ended goes on, unless all is as it was.
    same_end = (run.final_state, run.task_states()) == (run.state, ended_as)
    if ended_as is not None and (run.in_flight or run.can_go_on or not same_end):
        run.queue(now)
    told = sorted({*again, *ended})
    run.changed += told
    return told, [number for number in stopped if number in run.in_flight]


def take_edit(run: Run, edit: Edit) -> None:
    """Put the tasks of an edit in the place of all that a run has. They are fresh; nothing goes over to them yet."""
    revision = run.revision
    run.specified_in = revision + 1
    run.retire(edit.carry)
    for addition in edit.additions:
        run.extend(addition)
    run.revision = revision + 1


def changed_completed(carry: Carry, phases: Sequence[int]) -> list[int]:
    """The changed tasks that are COMPLETED, with the numbers that they get; `phases` are those of before, by number."""
    return [
        new + offset
        for new, old, count, same in carry
        if not same
        for offset in range(count)
        if phases[old + offset] == _COMPLETED
    ]


def _carry_attempts(run: Run, before: dict[int, InFlight], carry: Carry, queued: set[int]) -> list[int]:
    """Give attempts in flight the numbers of their tasks from now on. Returns the tasks of those that are to be ended."""
    run.in_flight, run.renumbered, run.orphans = {}, {}, set()
    stopped = []
    for number, attempt in before.items():
        over = carry.forward(number) if not attempt.held else None
        if over is None:
            number, attempt.held, attempt.killed = attempt.number, False, False
        else:
            number = over[0]
            if not over[1] or number in queued:
                attempt.void, attempt.killed = True, False
        run.put_in_flight(number, attempt)
        if attempt.void or over is None:
            stopped.append(number)
    return stopped


def _carried(kept: Mapping[int, T], carry: Carry) -> dict[int, T]:
    """What is kept of tasks, by their numbers from then on; only of those that do the same."""
    return {over[0]: value for number, value in kept.items() if (over := carry.forward(number)) is not None and over[1]}
