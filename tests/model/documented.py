"""What people may ask of a run, as the documents have it: to kill, retry and mark; edits stand in edits.py.

This is written as resting.py is. Each method returns whether what is asked is granted, and does it to the model if so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.edits import Edits
from model.expanded import layout
from model.resting import COMPLETED, ENDED, ERRORED, KILLED, QUEUED


class Run(Edits):
    """See the head of this file."""

    def kill(self, names: Sequence[str] = ()) -> bool:
        """Whether it is granted."""
        if self.ended or (names and all(self.tasks[name].state in ENDED for name in names)):
            return False
        self.asked.append("kill")
        if not names:
            self.killing = True
            self.cancelled.update(self.in_flight())
            return True
        for name in names:
            task = self.tasks[name]
            if task.flying is not None:
                self.cancelled[name] = task.flying
                task.killed = True
            elif task.waits:
                task.state, task.stopped = KILLED, False
        return True

    def retry(self, names: Sequence[str] = (), *, downstream: bool = False, everything: bool = False) -> bool:
        if not self.ended and (not names or self.killing):
            return False
        if names:
            asked = self.layout.descendants(names) if downstream else set(names)
        else:
            asked = {name for name, task in self.tasks.items() if task.state in (ERRORED, KILLED)}
        if any(self.tasks[name].flying is not None for name in asked) or (not names and self.state == COMPLETED):
            return False
        if names and not any(map(self._is_askable, asked)) and not (everything and self._is_left_behind()):
            return False
        grown = {generator for generator, _ in self.printed if generator in asked and self.tasks[generator].state == COMPLETED}
        if grown and not downstream:
            return False
        if names or asked or self._is_left_behind():
            self.asked.append("retry")
        if grown:
            kept = [one for one in self.printed if one[0] not in asked]
            self._take(self.document, layout(self.document, kept), kept, asked=asked, everything=everything)
            return True
        self._go_on(None if everything or not names else asked)
        self._reset(asked)
        return True

    def _is_askable(self, name: str) -> bool:
        """Whether asking for a task that is not in flight changes something."""
        task = self.tasks[name]
        return task.state in ENDED or task.stopped or task.delayed or (self.ended and self.is_ready(name))

    def _is_left_behind(self) -> bool:
        return any(task.stopped for task in self.tasks.values()) or (self.ended and self.can_go_on())

    def mark(self, names: Sequence[str], state: str, *, everything: bool = False) -> bool:
        tasks = [self.tasks[name] for name in names]
        if (self.killing and not self.ended) or any(task.flying is not None for task in tasks):
            return False
        grown = {generator for generator, _ in self.printed}
        if state == QUEUED and any(name in grown and self.tasks[name].state == COMPLETED for name in names):
            return False
        changes = any(task.state != COMPLETED for task in tasks) if state == COMPLETED else any(map(self._is_askable, names))
        if not changes and not everything:
            return True
        if changes:
            self.asked.append("mark")
        self._go_on(None if everything else set(names))
        if state == QUEUED:
            self._reset(names)
            return True
        for task in tasks:
            task.state, task.stopped, task.delayed = COMPLETED, False, False
        return True

    def _go_on(self, asked: set[str] | None) -> None:
        """A run that had ended goes on: with what is asked for, or with all that a kill left behind."""
        if self.ended:
            for name, task in self.tasks.items():
                if asked is not None and name not in asked and self.is_ready(name):
                    task.stopped = True
            self._queue()
            for task in self.tasks.values():
                task.failures, task.delayed = 0, False
        if asked is None:
            for task in self.tasks.values():
                if task.stopped:
                    task.stopped, task.failures = False, 0

    def _reset(self, names: Iterable[str]) -> None:
        for name in names:
            task = self.tasks[name]
            task.failures, task.stopped, task.delayed = 0, False, False
            if task.state in ENDED:
                task.state = QUEUED
        for name, task in self.tasks.items():
            task.delayed = task.delayed and self.is_free(name)
