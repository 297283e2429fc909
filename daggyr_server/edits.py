"""What an edit would do to a run: planned off the event loop, shown to a person, or given to the machine.

The driver takes a snapshot of a run between two steps, has the plan made in a thread, and asks the machine for the edit; if the
run has gone on meanwhile in a way that matters, the machine refuses, and the plan is made again. Pure; nothing here changes a
run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from daggyr_server.core.graph import Edit, Graph
from daggyr_server.core.run import Run, changed_completed
from daggyr_server.core.segments import Keeping, Kind
from daggyr_server.core.states import ENDED, STATE_OF, Phase, State
from daggyr_server.spec import PoolLimits, Printed, RunSpec, differences, expand_edit


class Change(Enum):
    """What becomes of a task."""

    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"
    QUEUED_AGAIN = "queued again"


@dataclass(frozen=True, slots=True)
class TaskEdit:
    """A task that an edit does something to."""

    task_id: str
    change: Change
    state: State | None  # that it has now; None for one that is added
    fields: Sequence[str] = ()  # what of it is changed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a plan is made for."""

    graph: Graph
    live: int  # the first number of the specification that it has
    revision: int
    phases: bytes

    @classmethod
    def of(cls, run: Run) -> Snapshot:
        return cls(run.graph.frozen(), run.graph.live, run.revision, bytes(run.phases))


@dataclass(frozen=True, slots=True)
class Plan:
    """An edit that was not done yet. `graph` is what the run's would be."""

    snapshot: Snapshot
    edit: Edit
    graph: Graph
    completed: Sequence[int] | None  # changed tasks that are COMPLETED now; None if that does not matter
    again: Sequence[int]  # unchanged tasks that are queued with those that they depend on

    def tasks(self) -> Iterator[TaskEdit]:
        """Every task that something happens to, by number, those that are removed last. Unchanged stretches cost nothing."""
        before, after, carry = self.snapshot.graph, self.graph, self.edit.carry
        number = after.live
        for new, old, count, same in carry:
            yield from self._added(number, new)
            if same:
                yield from self._again(new, old, count)
            else:
                for offset in range(count):
                    fields = differences(before.details(old + offset), after.details(new + offset))
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

    def _again(self, new: int, old: int, count: int) -> Iterator[TaskEdit]:
        for index in range(bisect_left(self.again, new), bisect_left(self.again, new + count)):
            number = self.again[index]
            if self._has_begun(old + number - new):
                yield TaskEdit(self.graph.task_id(number), Change.QUEUED_AGAIN, self._state(old + number - new))

    def _state(self, number: int) -> State:
        return STATE_OF[Phase(self.snapshot.phases[number])]

    def _has_begun(self, number: int) -> bool:
        phase = Phase(self.snapshot.phases[number])
        return phase in ENDED or phase in (Phase.ASSIGNED, Phase.RUNNING)


def planned(
    snapshot: Snapshot,
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
        edited = expand_edit(spec, graph=snapshot.graph, printed=kept, pools=pools, default_pool=default_pool, keep=keep)
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
            return Plan(snapshot, edited.edit, edited.graph, completed if downstream else None, again)
        kept = [one for one in kept if one.number not in repeated]
