"""How many runs and tasks are in which state, over all runs: kept as they go, so that whoever asks need not walk them.

The machine notes each run that a step has touched, once a step and however many of its tasks moved; whoever watches the
coordinator reads. Nothing is decided by it.
"""

from __future__ import annotations

from daggyr_server.core.run import Run
from daggyr_server.core.states import Phase, State

_RUNNING, _COMPLETED, _ERRORED, _KILLED = Phase.RUNNING, Phase.COMPLETED, Phase.ERRORED, Phase.KILLED
_NONE = (0, 0, 0, 0, 0)
_Counts = tuple[int, int, int, int, int]  # tasks in each State, in its order


class Tally:
    """Of one machine. Public attributes are for reading, between calls of `handle`; each has all states."""

    def __init__(self) -> None:
        self.runs = dict.fromkeys(State, 0)  # in memory
        self.tasks = dict.fromkeys(State, 0)  # of those that have not ended, structural ones included
        self._noted: dict[int, tuple[State, _Counts]] = {}  # what each run counts for

    def note(self, run: Run) -> None:
        """Count a run as it is now, in the place of what it counted for."""
        known = self._noted.get(run.run_id)
        state, counts = run.state, _NONE if run.has_ended else _by_state(run.counts)
        if known is None:
            self.runs[state] += 1
        elif known[0] is not state:
            self.runs[known[0]] -= 1
            self.runs[state] += 1
        self._count(known[1] if known is not None else _NONE, counts)
        self._noted[run.run_id] = state, counts

    def forget(self, run_id: int) -> None:
        """A run is not in memory any more."""
        known = self._noted.pop(run_id, None)
        if known is not None:
            self.runs[known[0]] -= 1
            self._count(known[1], _NONE)

    def _count(self, before: _Counts, now: _Counts) -> None:
        if before != now:
            tasks = self.tasks
            for state, was, is_now in zip(State, before, now, strict=True):
                tasks[state] += is_now - was


def _by_state(counts: list[int]) -> _Counts:
    """What a run counts by phase, by state: its tasks move among the phases that are QUEUED without anybody noting it."""
    queued = counts[Phase.BLOCKED] + counts[Phase.READY] + counts[Phase.DELAYED] + counts[Phase.ASSIGNED]
    return queued, counts[_RUNNING], counts[_COMPLETED], counts[_ERRORED], counts[_KILLED]
