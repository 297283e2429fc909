"""What an edit does to a run, as the documents have it, and what `edit --plan` tells of it.

This is written as resting.py is. `documented.py` adds the other things that people ask.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from model.expanded import Document, Layout, Printed, Refused, layout
from model.resting import COMPLETED, QUEUED, Resting


@dataclass
class Plan:
    """What `edit --plan` tells: names by what becomes of the tasks."""

    changed: set[str]
    added: set[str]
    removed: set[str]
    again: set[str]
    adjusted: set[str]
    unchanged: int


class Edits(Resting):
    """See the head of this file."""

    def _over(self, after: Layout) -> dict[str, tuple[str, bool]]:
        """Which task goes over to which: by new name, the old one and whether it does the same."""
        by_binding = {(vertex.template, vertex.binding): vertex for vertex in self.layout.vertices.values()}
        found = {}
        for vertex in after.vertices.values():
            before = by_binding.get((vertex.template, vertex.binding))
            named = self.layout.vertices.get(vertex.name)
            if before is None and named is not None and named.plain and vertex.plain:
                before = named
            if before is not None:
                found[vertex.name] = before.name, before.does == vertex.does
        return found

    def _planned(self, document: Document, *, downstream: bool) -> tuple[Layout, list[Printed], set[str]]:
        """What a run would have with another specification, and which unchanged tasks would be queued again. Raises Refused."""
        kept = list(self.printed)
        while True:
            staying: list[Printed] = []
            for generator, tasks in kept:
                so_far = layout(document, staying)
                if self._over(so_far).get(generator, ("", False))[1]:
                    staying.append((generator, tasks))
            after = layout(document, staying)
            over = self._over(after)
            again: set[str] = set()
            if downstream:
                done = [name for name, (old, same) in over.items() if not same and self.tasks[old].state == COMPLETED]
                again = {name for name in after.descendants(done) if name in over and over[name][1]}
            repeated = {over[name][0] for name in again}
            if not any(generator in repeated for generator, _ in staying):
                return after, staying, again
            kept = [one for one in kept if one[0] not in repeated]

    def plan(self, document: Document, *, downstream: bool) -> Plan | None:
        """None if the specification is refused."""
        try:
            after, _, again = self._planned(document, downstream=downstream)
        except Refused:
            return None
        over = self._over(after)
        changed = {name for name, (_, same) in over.items() if not same}
        begun = {name for name in again if not self.tasks[over[name][0]].waits}
        before = self.layout.vertices
        adjusted = {name for name, (old, same) in over.items() if same and before[old].terms != after.vertices[name].terms}
        return Plan(
            changed,
            set(after.vertices) - set(over),
            set(before) - {old for old, _ in over.values()},
            begun,
            adjusted,
            len(over) - len(changed) - len(adjusted),
        )

    def edit(self, document: Document, *, downstream: bool = False, remove: bool = False, everything: bool = False) -> bool:
        plan = self.plan(document, downstream=downstream)
        if plan is None or (self.killing and not self.ended):
            return False
        own = {name for name in plan.removed if self.layout.vertices[name].source is None}
        if not remove and any(self.tasks[name].last for name in own):
            return False
        after, staying, again = self._planned(document, downstream=downstream)
        self.asked.append("edit")
        self._take(document, after, staying, asked=again, everything=everything)
        return True

    def _take(self, document: Document, after: Layout, printed: list[Printed], *, asked: set[str], everything: bool) -> None:
        """Give the run other tasks. `asked` are unchanged ones that are queued again."""
        over = self._over(after)
        old_tasks, before = self.tasks, self.counts()
        left = {name for name, task in old_tasks.items() if task.stopped or (self.ended and self.is_ready(name))}
        for name, task in old_tasks.items():
            if name not in over or over[name][0] != name:
                self.gone[name] = copy.copy(task)
                self.gone[name].attempts = list(task.attempts)
                self.gone[name].renamed = any(old == name for old, _ in over.values())
        self.tasks = {}
        for name in after.vertices:
            if name not in over:
                self._add({name: after.vertices[name]})
                continue
            old, same = over[name]
            task = self.tasks[name] = old_tasks[old]
            if old != name and name in self.gone:
                task.last = max(task.last, self.gone[name].last)
            task.delayed = task.delayed and not self.ended
            task.stopped = same and old in left and name not in asked and not everything
            if same and name not in asked:
                continue
            if same and task.waits:
                if task.delayed:
                    task.failures, task.delayed = 0, False
                continue
            task.failures, task.delayed, task.killed = 0, False, False
            if task.flying is not None:
                self.cancelled[name] = task.flying
                task.void = True
            else:
                task.state = QUEUED
        staying = {old for old, _ in over.values()}
        self.orphans = [task.flying for name, task in old_tasks.items() if name not in staying and task.flying is not None]
        self.document, self.layout, self.printed = document, after, printed
        self.revision += 1
        if self.ended:
            same_end = (self.final_state(), self.counts()) == (self.state, before)
            if self.can_go_on() or not same_end:
                self._queue()
