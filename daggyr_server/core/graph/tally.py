"""How many runs and tasks are in which state, over all runs. The counts are kept as runs go, so that nobody has to walk them.

The machine notes each run that a step has touched, once a step, however many of its tasks moved. Whoever watches the coordinator
reads the counts. Nothing is decided by them.
"""

from __future__ import annotations

from collections.abc import Sequence

from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import State

_SIZE = max(State) + 1
_NONE = (0,) * _SIZE


class Tally:
    """Of one machine. Public attributes are for reading, between calls of `handle`; they are indexed by State."""

    def __init__(self) -> None:
        self.runs = [0] * _SIZE  # in memory
        self.tasks = [0] * _SIZE  # of those that have not ended, structural ones included
        self._noted: dict[int, tuple[int, Sequence[int]]] = {}  # with which state and which counts each run is counted

    def note(self, run: Run) -> None:
        """Count a run as it is now, and no longer as it was when it was noted last."""
        known = self._noted.get(run.run_id)
        state, counts = run.state, _NONE if run.has_ended else _by_state(run.counts)
        if known is None:
            self.runs[state] += 1
        elif known[0] != state:
            self.runs[known[0]] -= 1
            self.runs[state] += 1
        self._count(known[1] if known is not None else _NONE, counts)
        self._noted[run.run_id] = state, counts

    def forget(self, run_id: int) -> None:
        """Stop counting a run, because it has left memory."""
        known = self._noted.pop(run_id, None)
        if known is not None:
            self.runs[known[0]] -= 1
            self._count(known[1], _NONE)

    def _count(self, before: Sequence[int], now: Sequence[int]) -> None:
        if before != now:
            self.tasks = [count - was + is_now for count, was, is_now in zip(self.tasks, before, now, strict=True)]


def _by_state(counts: Sequence[int]) -> Sequence[int]:
    """Counts by state, of counts by phase. By state, because a run is not noted whenever a task moves from one QUEUED phase to
    another."""
    blocked, ready, delayed, assigned, running, completed, errored, killed = counts
    return 0, blocked + ready + delayed + assigned, running, completed, errored, killed
