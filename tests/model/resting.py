"""A run as the documents have it: its states, their order, and the numbers of attempts.

This is written from the documents alone, apart from DaggyR, and imports nothing of it. It holds what is so between two commands,
once every task that may run has been started; `played.py` lets a server come to rest and compares. Attempts end as the case says.
An attempt whose end is asked for is in `cancelled` until the case says how it ended. `edits.py` and `documented.py` add what
people ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.expanded import Document, Printed, Refused, Vertex, layout, with_printed

QUEUED, RUNNING, COMPLETED, ERRORED, KILLED = "QUEUED", "RUNNING", "COMPLETED", "ERRORED", "KILLED"
ENDED = (COMPLETED, ERRORED, KILLED)
RETRIED = ("FAILED", "TIMED_OUT", "OOM_KILLED")


@dataclass
class Attempt:
    """`name` is the task's when it began; with the number, hosts know it by that."""

    name: str
    number: int
    outcome: str | None = None
    is_generator: bool = False  # when it began: what an edit says of that holds from the next attempt on


@dataclass
class Task:
    state: str = QUEUED
    attempts: list[Attempt] = field(default_factory=list)
    last: int = 0  # the number of the last attempt
    failures: int = 0
    delayed: bool = False  # waits for a retry's delay, which no case waits for
    stopped: bool = False  # a kill of the run left it behind
    flying: Attempt | None = None
    renamed: bool = False  # of a name that is not there any more: its task lives on under another
    void: bool = False  # an edit asked for the end of its attempt
    killed: bool = False  # a person did

    @property
    def waits(self) -> bool:
        return self.state == QUEUED and self.flying is None


class Resting:
    """See the head of this file."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.printed: list[Printed] = []
        self.layout = layout(document)
        self.tasks = {name: Task() for name in self.layout.vertices}
        self.gone: dict[str, Task] = {}  # the last of each name that is not there any more
        self.state, self.killing, self.begun = QUEUED, False, False
        self.revision = 1
        self.asked: list[str] = []  # the reasons in its history
        self.cancelled: dict[str, Attempt] = {}  # by the task's name now
        self.orphans: list[Attempt] = []  # attempts of tasks that an edit took away; their ends change nothing else
        self.come_to_rest()

    # -- what is so -----------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def is_free(self, name: str) -> bool:
        """Whether a task waits for no parent."""
        return all(self.tasks[parent].state == COMPLETED for parent in self.layout.vertices[name].parents)

    def is_ready(self, name: str) -> bool:
        task = self.tasks[name]
        return task.waits and not task.stopped and self.is_free(name)

    def can_go_on(self) -> bool:
        return any(map(self.is_ready, self.tasks))

    def in_flight(self) -> dict[str, Attempt]:
        return {name: task.flying for name, task in self.tasks.items() if task.flying is not None}

    def counts(self) -> Counter[str]:
        """How many tasks are in each state, heads and tails too."""
        done = {name for name, task in self.tasks.items() if task.state == COMPLETED}
        heads_and_tails = Counter(COMPLETED if completed else QUEUED for completed in self.layout.structural(done))
        return Counter(task.state for task in self.tasks.values()) + heads_and_tails

    def final_state(self) -> str:
        tasks = self.tasks.values()
        if self.killing or any(task.state == KILLED or task.stopped for task in tasks):
            return KILLED
        return ERRORED if any(task.state == ERRORED for task in tasks) else COMPLETED

    def blockers(self, name: str) -> set[str]:
        """The tasks further up that go on only if a person asks."""
        found: set[str] = set()
        seen, ahead = {name}, [name]
        while ahead:
            for parent in self.layout.vertices[ahead.pop()].parents:
                task = self.tasks[parent]
                if parent in seen or task.state == COMPLETED:
                    continue
                seen.add(parent)
                if task.state in ENDED or task.stopped or (self.ended and self.is_ready(parent)):
                    found.add(parent)
                elif task.waits:
                    ahead.append(parent)
        return found

    def named(self, name: str) -> list[str]:
        """What a plain name means: the task, or all its expansions."""
        return list(self.layout.templates.get(name) or [name])

    # -- what happens -----------------------------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """Start all that may run, and end a run of which nothing can go on.

        A task that waits for a parent again has no delay any more.
        """
        for name, task in self.tasks.items():
            task.delayed = task.delayed and task.waits and self.is_free(name)
        if self.ended or self.cancelled or self.orphans:
            return
        if not self.killing:
            for name, task in self.tasks.items():
                if self.is_ready(name) and not task.delayed:
                    task.last += 1
                    task.flying = Attempt(name, task.last, is_generator=self.layout.vertices[name].is_generator)
                    task.attempts.append(task.flying)
                    task.state = RUNNING
                    self.begun = True
        flying = bool(self.in_flight())
        if not flying and (self.killing or not self.can_go_on()):
            self.state = self.final_state()
        else:
            self.state = RUNNING if self.begun else QUEUED

    def end(self, name: str, outcome: str, printed: Mapping[str, Any] | None = None) -> None:
        """A task's attempt has ended. `printed` is what a generator made; without it, what it wrote was no good."""
        task, vertex = self.tasks[name], self.layout.vertices[name]
        assert task.flying is not None
        task.flying.outcome = outcome
        asked, void, is_generator = name in self.cancelled, task.void, task.flying.is_generator
        task.flying, task.void = None, False
        self.cancelled.pop(name, None)
        if void:
            task.state = KILLED if task.killed else QUEUED
            task.killed = False
            return
        task.killed = False
        good = outcome == "SUCCEEDED"
        if good and is_generator:
            good = printed is not None and self._grow(name, printed)
        if good:
            task.state = COMPLETED
        elif outcome == "REJECTED":
            task.state = ERRORED
        elif asked or outcome == "KILLED":
            task.state = KILLED
        elif task.failures >= vertex.max_retries:
            task.state = ERRORED
        else:
            task.failures += 1
            task.state = QUEUED
            task.delayed = vertex.retry_delay > 0 and self.is_free(name)

    def _grow(self, generator: str, printed: Mapping[str, Any]) -> bool:
        try:
            grown = with_printed(self.layout, generator, printed, self.document.get("parameters", {}))
        except Refused:
            return False
        if printed:
            self.printed.append((generator, printed))
        self._add({name: vertex for name, vertex in grown.vertices.items() if name not in self.tasks})
        self.layout = grown
        self.revision += 1
        return True

    def _add(self, vertices: Mapping[str, Vertex]) -> None:
        """New tasks. One whose name was there before goes on with the numbers and the attempts of that one."""
        for name in vertices:
            before = self.gone.get(name, Task())
            self.tasks[name] = Task(attempts=list(before.attempts), last=before.last)

    def restarted(self) -> None:
        """The server was killed and started again: delays before retries begin again."""
        for name, task in self.tasks.items():
            delay = self.layout.vertices[name].retry_delay
            task.delayed = bool(task.waits and task.failures and delay and self.is_free(name) and not task.stopped)
        self.come_to_rest()

    def _queue(self) -> None:
        self.state, self.killing, self.begun = QUEUED, False, False
