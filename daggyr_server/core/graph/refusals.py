"""Why something that a person asks of a run is refused: questions that the machine puts before it changes a task.

Each function returns the refusal as a sentence for the person who asked, or None. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import ENDED, Phase, State

_NAMED = 3  # tasks named in a sentence


def kill_refused(run: Run, numbers: Sequence[int] | None) -> str | None:
    """Why the run, or these of its tasks, cannot be killed."""
    if run.has_ended:
        return f"run {run.run_id} has ended already: it is {run.state.name}"
    if numbers is not None and all(run.phases[number] in ENDED or run.graph.kind(number) for number in numbers):
        return f"nothing to kill: {_named(run, numbers)} ended already"
    return None


def retry_refused(run: Run, named: Sequence[int] | None, numbers: Sequence[int]) -> str | None:
    """Why `numbers` cannot be queued again: the tasks that were `named`, and perhaps those behind them.

    If `named` is None, `numbers` are all tasks that did not complete.
    """
    if not run.has_ended:
        if named is None:
            return f"run {run.run_id} has not ended: it is {run.state.name}"
        if run.killing:
            return f"run {run.run_id} is being killed: wait until it has ended"
    phases = run.phases
    busy = [number for number in numbers if number in run.in_flight]
    if busy:
        return f"{_named(run, busy)} still runs: wait for it, or kill it first"
    unended = [number for number in named or () if phases[number] not in ENDED]
    if unended and not run.has_ended:
        return f"{_named(run, unended)} has not ended: it will run by itself"
    grown = [number for number in numbers if phases[number] == Phase.COMPLETED and _is_generator(run, number)]
    if grown:
        return f"{_named(run, grown)} is a generator whose tasks are part of the run already: submit a new run instead"
    if named is None:
        # What was killed when all its work was done already is COMPLETED after a retry.
        return f"nothing to retry: run {run.run_id} is COMPLETED" if run.state is State.COMPLETED else None
    if all(phases[number] not in ENDED for number in numbers) and not run.counts[Phase.READY] + run.counts[Phase.DELAYED]:
        return f"{_named(run, unended)} waits for tasks that did not complete: retry those"
    return None


def mark_refused(run: Run, numbers: Sequence[int], *, completed: bool) -> str | None:
    """Why these tasks cannot be said to be COMPLETED, or else QUEUED."""
    if run.killing and not run.has_ended:
        return f"run {run.run_id} is being killed: wait until it has ended"
    busy = [number for number in numbers if number in run.in_flight]
    if busy:
        return f"{_named(run, busy)} is with its host: wait for it, or kill it first"
    phases = run.phases
    grown = [number for number in numbers if phases[number] == Phase.COMPLETED and _is_generator(run, number)]
    if grown and not completed:
        return f"{_named(run, grown)} is a generator whose tasks are part of the run already: submit a new run instead"
    return None


def edit_refused(run: Run) -> str | None:
    """Why the run cannot be given another specification now."""
    if run.killing and not run.has_ended:
        return f"run {run.run_id} is being killed: wait until it has ended"
    return None


def _is_generator(run: Run, number: int) -> bool:
    return run.graph.policy(number).is_generator and not run.graph.kind(number)


def _named(run: Run, numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    shown = ", ".join(run.graph.task_id(number) for number in islice(numbers, _NAMED))
    return f"{shown} and {len(numbers) - _NAMED:,} more" if len(numbers) > _NAMED else shown
