"""Faults of DaggyR itself in the graph of a run, and the text that a person can put into a bug report.

`tasks.py` and `run.py` raise these; the machine adds what it was doing, and nobody catches them to go on. The text is made
when the fault is raised and never before, so a run in which all is well pays nothing for it. It holds no command, no
environment, no output and no document of a person.
"""

from __future__ import annotations

from collections.abc import Iterable

from daggyr_server.core.states import Phase, State

_ADVICE = (
    "This is a fault of DaggyR and not of the run. Nothing of this step is stored or told to anybody: a coordinator that is "
    "started again goes on from what its tracker holds. Please report this whole text."
)


class IllegalTransition(Exception):
    """Something asked for a move that no table of `states.py` has. The move was not made.

    The moves before it in the same step were, so a machine that raised this is good for nothing more: build it again from the
    tracker. The text tells the task's story, as far as it is known.
    """

    def __init__(self, what: str, facts: Iterable[str]) -> None:
        super().__init__(what)
        self.what = what
        self.facts = list(facts)

    def add(self, facts: Iterable[str]) -> None:
        """Tell more of what happened; each fact is a line."""
        self.facts += facts

    def __str__(self) -> str:
        return "\n".join((self.what, *(f"  {fact}" for fact in self.facts), _ADVICE))


class IllegalTaskMove(IllegalTransition):
    """Of a task's phase."""

    def __init__(
        self, run_id: int, task_id: str, number: int, before: Phase, after: Phase, attempt: int, facts: Iterable[str]
    ) -> None:
        super().__init__(
            f"task {task_id} (number {number}) of run {run_id}, attempt {attempt}: "
            f"it cannot go from {before.name} to {after.name}",
            facts,
        )
        self.run_id = run_id
        self.task_id = task_id
        self.number = number
        self.before = before
        self.after = after
        self.attempt = attempt


class IllegalRunMove(IllegalTransition):
    """Of a run's state."""

    def __init__(self, run_id: int, before: State, after: State, facts: Iterable[str]) -> None:
        super().__init__(f"run {run_id}: it cannot go from {before.name} to {after.name}", facts)
        self.run_id = run_id
        self.before = before
        self.after = after


class StaleAddition(Exception):
    """A fault of ours: new tasks were made for a graph that has grown since. The run that refuses them is as it was."""
