"""Why something that a person asks of a run is refused: questions that the machine puts before it changes a task.

Each function returns the refusal as a sentence for the person who asked, or None. Nothing here changes anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import ENDED, STATE_OF, Phase, State

MAX_LOOKED_AT = 10_000  # tasks further up, in order to say what one waits for
_NAMED = 3  # tasks named in a sentence


def kill_refused(run: Run, numbers: Sequence[int] | None) -> str | None:
    """Why the run, or these of its tasks, cannot be killed."""
    if run.has_ended:
        return f"run {run.run_id} has ended already: it is {run.state.name}"
    if numbers is not None and all(run.phases[number] in ENDED or run.graph.kind(number) for number in numbers):
        return f"nothing to kill: {_named(run, numbers)} ended already"
    return None


def retry_refused(run: Run, named: Sequence[int] | None, numbers: Sequence[int], *, everything: bool = False) -> str | None:
    """Why `numbers` cannot be queued again: the tasks that were `named`, and perhaps those behind them.

    If `named` is None, `numbers` are all tasks that did not complete. `everything` also lets go on what a kill left behind.
    """
    if not run.has_ended:
        if named is None:
            return f"run {run.run_id} has not ended: it is {run.state.name}"
        if run.killing:
            return f"run {run.run_id} is being killed: wait until it has ended"
    busy = [number for number in numbers if number in run.in_flight]
    if busy:
        return f"{_named(run, busy)} still runs: wait for it, or kill it first"
    if named is None:
        # What was killed when all its work was done already is COMPLETED after a retry.
        return f"nothing to retry: run {run.run_id} is COMPLETED" if run.state is State.COMPLETED else None
    if any(can_be_asked_for(run, number) for number in numbers) or (everything and (run.stopped or _left_behind(run))):
        return None
    return _waits(run, named)


def can_be_asked_for(run: Run, number: int) -> bool:
    """Whether asking for a task that is not in flight changes something: it has ended, was stopped, or waits for a delay."""
    phase = run.phases[number]
    if phase in ENDED:
        return not run.graph.kind(number)
    return number in run.stopped or phase == Phase.DELAYED or (phase == Phase.READY and run.has_ended)


def _left_behind(run: Run) -> bool:
    return run.has_ended and run.can_go_on


def _waits(run: Run, named: Sequence[int]) -> str:
    """What tasks wait for that asking for them does not change."""
    for number in named:
        if run.phases[number] == Phase.BLOCKED:
            found = blockers(run, number)
            if found:
                task, state = run.graph.task_id(found[0]), state_of(run, found[0])
                more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
                return f"{run.graph.task_id(number)} waits for {task}{more}, which is {state}: retry that"
    return f"{_named(run, named)} has not ended: it will run by itself"


def blockers(run: Run, number: int) -> list[int]:
    """The tasks which a BLOCKED task waits for and that go on only if a person asks, the nearest first.

    They ended otherwise than COMPLETED, or a kill of their run left them behind. At most MAX_LOOKED_AT tasks are looked at.
    """
    phases, found, seen = run.phases, list[int](), {number}
    ahead = deque([number])
    while ahead and len(seen) < MAX_LOOKED_AT:
        for parent in run.graph.parents(ahead.popleft()):
            phase = phases[parent]
            if parent in seen or phase == Phase.COMPLETED:
                continue
            seen.add(parent)
            if phase in ENDED or parent in run.stopped or (phase in (Phase.READY, Phase.DELAYED) and run.has_ended):
                found.append(parent)
            elif phase == Phase.BLOCKED:
                ahead.append(parent)
    return found


def state_of(run: Run, number: int) -> str:
    """The state of a task that only goes on if a person asks, in words."""
    phase = Phase(run.phases[number])
    return STATE_OF[phase].name if phase in ENDED else "QUEUED since the run was killed"


def mark_refused(run: Run, numbers: Sequence[int], *, completed: bool) -> str | None:
    """Why these tasks cannot be said to be COMPLETED, or else QUEUED."""
    if run.killing and not run.has_ended:
        return f"run {run.run_id} is being killed: wait until it has ended"
    busy = [number for number in numbers if number in run.in_flight]
    if busy:
        return f"{_named(run, busy)} is with its host: wait for it, or kill it first"
    return None if completed else generators_refused(run, numbers, downstream=False)


def generators_refused(run: Run, numbers: Sequence[int], *, downstream: bool) -> str | None:
    """Why those of `numbers` that are generators cannot be queued again as they are: tasks that they made are in the run.

    With `downstream`, these tasks are to go first, which takes an edit.
    """
    printed = frozenset(run.printed.values())
    grown = [number for number in numbers if number in printed and run.phases[number] == Phase.COMPLETED]
    if not grown:
        return None
    if downstream:
        return f"{_named(run, grown)} has made tasks that are to go first"
    return (
        f"{_named(run, grown)} is a generator whose tasks are part of the run: to take them away and run it again, "
        f"daggyr retry {run.run_id} --task {run.graph.task_id(grown[0])} --downstream"
    )


def edit_refused(run: Run) -> str | None:
    """Why the run cannot be given another specification now."""
    if run.killing and not run.has_ended:
        return f"run {run.run_id} is being killed: wait until it has ended"
    return None


def _named(run: Run, numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    shown = ", ".join(run.graph.task_id(number) for number in islice(numbers, _NAMED))
    return f"{shown} and {len(numbers) - _NAMED:,} more" if len(numbers) > _NAMED else shown
