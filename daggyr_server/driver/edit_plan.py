"""What an edit would do to a run: a plan, which a person is shown or the machine carries out.

`Editing` takes a snapshot of a run between two steps and has the plan made in a thread. The API shows a plan, or the machine is
asked to carry it out; if the run has gone on meanwhile in a way that matters, the machine refuses and another plan is made. Pure;
nothing here changes a run.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from daggyr_server.core.graph.edit import changed_completed
from daggyr_server.core.graph.graph import Edit, Graph
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping, Kind, PlainSegment
from daggyr_server.core.states import ENDED, STATE_OF, Phase, State
from daggyr_server.spec import PoolLimits, Printed, RunSpec, Stretch, differences, expand_edit, terms


class Change(Enum):
    """What becomes of a task."""

    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"
    QUEUED_AGAIN = "queued again"
    ADJUSTED = "adjusted"


@dataclass(frozen=True, slots=True)
class TaskEdit:
    """What an edit does to one task."""

    task_id: str
    change: Change
    state: State | None  # the task's state now; None for a task that is added
    fields: Sequence[str] = ()  # the fields of its specification that are changed


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run as it was when a plan was made for it."""

    graph: Graph
    live: int  # the first task number of the specification that the run has
    revision: int
    phases: bytes
    attempts: array[int]  # the number of each task's last attempt; 0 if it had none

    @classmethod
    def of(cls, run: Run) -> RunSnapshot:
        return cls(run.graph.frozen(), run.graph.live, run.revision, bytes(run.phases), run.attempts[:])


class Totals(NamedTuple):
    """How many tasks an edit leaves alone, adjusts, changes, adds and removes."""

    unchanged: int
    adjusted: int
    changed: int
    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """An edit that was not carried out so far. `graph` is the graph that the run would have."""

    snapshot: RunSnapshot
    edit: Edit
    graph: Graph
    completed: Sequence[int] | None  # the changed tasks that are COMPLETED now; None if that does not matter
    again: Sequence[int]  # the unchanged tasks that are queued again because of what they depend on
    adjusted: Sequence[Stretch]
    warnings: Sequence[str]  # about the specification

    def totals(self) -> Totals:
        """How many tasks the edit does something to."""
        same = sum(count for _, _, count, same in self.edit.carry if same)
        changed = sum(count for _, _, count, same in self.edit.carry if not same)
        adjusted = sum(count for _, _, count in self.adjusted)
        added, removed = (_tasks(graph) - same - changed for graph in (self.graph, self.snapshot.graph))
        return Totals(same - adjusted, adjusted, changed, added, removed)

    def removed_after_attempts(self) -> list[str]:
        """The names of tasks that ran or run and that the specification does not have any more.

        Tasks that a generator made are not among them, because they go with the generator as it was.
        """
        names = []
        graph, attempts = self.snapshot.graph, self.snapshot.attempts
        number, beyond = graph.live, _first_generated(graph)
        for old, count in [*sorted((old, count) for _, old, count, _ in self.edit.carry), (graph.size, 0)]:
            for gone in range(number, min(old, beyond)):
                if attempts[gone]:
                    names.append(graph.task_id(gone))
            number = old + count
        return names

    def tasks(self) -> Iterator[TaskEdit]:
        """Every task that the edit does something to, by number; removed tasks come last. Unchanged stretches cost nothing."""
        before, after, carry = self.snapshot.graph, self.graph, self.edit.carry
        number = after.live
        for new, old, count, same in carry:
            yield from self._added(number, new)
            if same:
                yield from self._same(new, old, count)
            else:
                for offset in range(count):
                    fields = differences(before.details(old + offset), after.details(new + offset))
                    fields += terms(before, old + offset, after, new + offset)
                    yield TaskEdit(after.task_id(new + offset), Change.CHANGED, self._state(old + offset), fields)
            number = new + count
        yield from self._added(number, after.size)
        number = before.live
        for old, count in sorted((old, count) for _, old, count, _ in carry):
            yield from self._removed(number, old)
            number = old + count
        yield from self._removed(number, before.size)

    def _added(self, start: int, beyond: int) -> Iterator[TaskEdit]:
        for number in range(start, beyond):
            if self.graph.kind(number) is Kind.TASK:
                yield TaskEdit(self.graph.task_id(number), Change.ADDED, None)

    def _removed(self, start: int, beyond: int) -> Iterator[TaskEdit]:
        graph = self.snapshot.graph
        for number in range(start, beyond):
            if graph.kind(number) is Kind.TASK:
                yield TaskEdit(graph.task_id(number), Change.REMOVED, self._state(number))

    def _same(self, new: int, old: int, count: int) -> Iterator[TaskEdit]:
        """The tasks of an unchanged stretch that are queued again or adjusted."""
        again = self.again[bisect_left(self.again, new) : bisect_left(self.again, new + count)]
        queued = [number for number in again if self._has_begun(old + number - new)]
        known = frozenset(queued)
        for number in heapq.merge(queued, self._adjusted(new, count, known)):
            before = old + number - new
            if number in known:
                yield TaskEdit(self.graph.task_id(number), Change.QUEUED_AGAIN, self._state(before))
                continue
            fields = terms(self.snapshot.graph, before, self.graph, number)
            if fields:
                yield TaskEdit(self.graph.task_id(number), Change.ADJUSTED, self._state(before), fields)

    def _adjusted(self, new: int, count: int, queued: Collection[int]) -> Iterator[int]:
        """The numbers of the adjusted tasks of a stretch, without those in `queued`."""
        first = max(bisect_right(self.adjusted, new, key=itemgetter(0)) - 1, 0)
        for start, _, length in islice(self.adjusted, first, None):
            if start >= new + count:
                return
            yield from (number for number in range(max(start, new), min(start + length, new + count)) if number not in queued)

    def _state(self, number: int) -> State:
        return STATE_OF[Phase(self.snapshot.phases[number])]

    def _has_begun(self, number: int) -> bool:
        phase = Phase(self.snapshot.phases[number])
        return phase in ENDED or phase in (Phase.ASSIGNED, Phase.RUNNING)


def _tasks(graph: Graph) -> int:
    """How many tasks of the newest specification run something."""
    return sum(segment.size if isinstance(segment, PlainSegment) else segment.count for segment in graph.segments)


def _first_generated(graph: Graph) -> int:
    """The number of the first task that a generator made.

    Tasks that a generator made either begin with some that are not multiplied, or wait for tasks that were there before.
    """
    waiting = sorted(target for targets in graph.added_children.values() for target in targets)
    for index, segment in enumerate(graph.segments):
        place = bisect_left(waiting, segment.base)
        waits = place < len(waiting) and waiting[place] < segment.base + segment.size
        if waits or (index and isinstance(segment, PlainSegment)):
            return segment.base
    return graph.size


def planned(
    snapshot: RunSnapshot,
    spec: RunSpec,
    printed: Sequence[Printed],
    *,
    pools: Mapping[str, PoolLimits] | None,
    default_pool: str,
    downstream: bool,
    keep: Callable[[], Keeping] = list,
) -> Plan:
    """The plan that gives a run the specification `spec`; `printed` is what its generators printed.

    `downstream` also queues what depends on tasks that are COMPLETED and changed; a generator among these takes the tasks with it
    that it had made. Raises SpecificationError.
    """
    kept = list(printed)
    while True:
        warnings: list[str] = []
        edited = expand_edit(
            spec,
            graph=snapshot.graph,
            printed=kept,
            pools=pools,
            default_pool=default_pool,
            keep=keep,
            warnings=warnings,
        )
        carry = edited.edit.carry
        completed = changed_completed(carry, snapshot.phases)
        again: list[int] = []
        if downstream:
            for number in edited.graph.descendants(completed):
                old = carry.back(number)
                if old is not None and carry.forward(old) == (number, True):
                    again.append(number)
        repeated = {carry.back(number) for number in again}
        if repeated.isdisjoint(one.number for one in kept if one.revision in edited.edit.kept):
            matters = completed if downstream else None
            return Plan(snapshot, edited.edit, edited.graph, matters, again, edited.adjusted, warnings)
        kept = [one for one in kept if one.number not in repeated]


def planned_again(
    snapshot: RunSnapshot,
    spec: RunSpec,
    printed: Sequence[Printed],
    named: Sequence[int],
    *,
    default_pool: str,
    keep: Callable[[], Keeping] = list,
) -> Plan:
    """The plan that queues the tasks `named` again and all that depends on them; the run keeps its specification, `spec`.

    The tasks go that generators among these had made. `named` has numbers of the snapshot. Raises SpecificationError, which the
    specification has not done before.
    """
    repeated = snapshot.graph.descendants(named)
    among = frozenset(repeated)
    edited = expand_edit(
        spec,
        graph=snapshot.graph,
        printed=[one for one in printed if one.number not in among],
        pools=None,
        default_pool=default_pool,
        keep=keep,
        limited=False,
    )
    over = (edited.edit.carry.forward(number) for number in repeated)
    again = sorted(found[0] for found in over if found is not None)
    return Plan(snapshot, edited.edit, edited.graph, None, again, edited.adjusted, [])
