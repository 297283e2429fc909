"""The tasks of one run: who waits for whom, and the phase that each is in. `Run` builds on it and adds attempts.

Per-task state lies in flat arrays by task number; what many tasks share is done by ranges. All moves go by the table in
`states.py`. What becomes ready is offered to the scheduler's queues; nothing here knows of hosts, attempts or people.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Sequence

from daggyr_server.core.graph.carry import Carry
from daggyr_server.core.graph.graph import Addition, Graph
from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.graph.segments import ExpandedSegment, PlainSegment
from daggyr_server.core.states import ENDED, TRANSITIONS, Phase

_BLOCKED, _READY, _DELAYED = int(Phase.BLOCKED), int(Phase.READY), int(Phase.DELAYED)
_ASSIGNED, _COMPLETED, _KILLED = int(Phase.ASSIGNED), int(Phase.COMPLETED), int(Phase.KILLED)
_LEGAL = bytes(after in TRANSITIONS[before] for before in Phase for after in Phase)  # at 8 * before + after


class IllegalTransition(Exception):
    """A fault of ours: something asked for a transition that the table does not have. Nothing was changed."""


class StaleAddition(Exception):
    """A fault of ours: new tasks were made for a graph that has grown meanwhile. Nothing was changed."""


class Tasks:
    """Public attributes are for reading; `offer` is called with each queue that got its first ready task."""

    def __init__(self, offer: Callable[[ReadyQueue], None]) -> None:
        self.graph = Graph()
        self.revision = 0  # how often the graph has grown, or was replaced
        self.phases = bytearray()
        self.waiting: array[int] = array("I")  # parents that are not COMPLETED
        self.attempts: array[int] = array("I")  # the number of the last attempt
        self.counts = [0] * len(Phase)
        self.structural = 0  # of the tasks that count, those that run nothing...
        self.structural_completed = 0  # ...and of these, the COMPLETED ones; the others are BLOCKED
        self.delayed: list[tuple[float, int]] = []  # a heap of (due, number): exactly what is DELAYED
        self.queues: list[ReadyQueue] = []  # by policy index
        self.ranked = False  # some tasks have a higher priority than others
        self.changed: list[int] = []  # tasks whose state clients see changed, since the machine last took it
        self._offer = offer
        self._order = 0

    def offers_to(self, offer: Callable[[ReadyQueue], None]) -> None:
        """From now on, tell `offer` of queues that got their first ready task."""
        self._offer = offer

    # -- growing ------------------------------------------------------------------------------------------------------

    def _grow(self, addition: Addition, queues: Sequence[ReadyQueue]) -> None:
        """Take new tasks, with the queues of their policies; those that wait for nobody become ready.

        Raises StaleAddition if they were not made for the graph as it is.
        """
        start = size = self.graph.size
        for segment in addition.segments:
            if segment.base != size:
                raise StaleAddition(f"the new tasks follow {segment.base:,} others, but the run has {size:,}")
            size += segment.size
        self.graph.extend(addition)
        self.queues += queues
        self.ranked = len({queue.policy.priority for queue in self.queues}) > 1
        self.revision += 1
        self.phases += bytes(size - start)
        self.counts[_BLOCKED] += size - start
        self.attempts.frombytes(bytes(4 * (size - start)))
        self.waiting += addition.degrees if addition.degrees is not None else self.graph.indegrees(start)
        waiting = self.waiting
        roots: list[int] = []
        for segment in addition.segments:
            if isinstance(segment, PlainSegment):
                children, beyond = segment.child_numbers, segment.base + segment.size
            else:
                self.structural += 2
                children, beyond = segment.tail_children, segment.first  # all but the head have a parent in the segment
            if start > self.graph.live:
                for child in children:
                    if child < start:
                        waiting[child] += 1
            roots += [number for number in range(segment.base, beyond) if not waiting[number]]
        for parent, child in addition.edges:
            if self.phases[parent] == _COMPLETED:
                waiting[child] -= 1
                if not waiting[child]:
                    roots.append(child)
        self._release(roots)

    def _retire(self, carry: Carry) -> None:
        """Another specification's tasks follow, in the place of all: those of before keep their phases, and count no more."""
        self.graph.retire(carry)
        self.counts = [0] * len(Phase)
        self.structural = self.structural_completed = 0
        self.delayed = []
        for queue in self.queues:
            queue.clear()

    # -- moving -------------------------------------------------------------------------------------------------------

    def _move(self, number: int, phase: int) -> None:
        before = self.phases[number]
        if not _LEGAL[before << 3 | phase]:
            raise IllegalTransition(f"task {number}: {Phase(before).name} -> {Phase(phase).name}")
        self.phases[number] = phase
        self.counts[before] -= 1
        self.counts[phase] += 1

    def _push(self, number: int) -> None:
        self._move(number, _READY)
        self._order += 1
        queue = self.queues[self.graph.policy_index(number)]
        if queue.push(number, number + 1, self._order):
            self._offer(queue)

    def _queue_again(self, number: int) -> None:
        """READY, unless a person has asked for a parent again meanwhile."""
        if self.waiting[number]:
            self._move(number, _BLOCKED)
        else:
            self._push(number)

    def _delay(self, number: int, due: float) -> None:
        """DELAYED until `due`, unless a person has asked for a parent again meanwhile."""
        if self.waiting[number]:
            self._move(number, _BLOCKED)
        else:
            self._move(number, _DELAYED)
            heapq.heappush(self.delayed, (due, number))

    def due(self, now: float) -> None:
        """Make ready what has waited for its retry's delay."""
        while self.delayed and self.delayed[0][0] <= now:
            self._push(heapq.heappop(self.delayed)[1])

    def _complete(self, number: int) -> None:
        self._move(number, _COMPLETED)
        freed = self._freed_by(number)
        if freed:
            self._release(freed)

    def _freed_by(self, number: int) -> list[int]:
        """Tell the children of a task that is COMPLETED now. Returns those that wait for nobody any more."""
        waiting = self.waiting
        freed = []
        for child in self.graph.children(number):
            left = waiting[child] = waiting[child] - 1
            if not left:
                freed.append(child)
        return freed

    def _release(self, numbers: Sequence[int]) -> None:
        """Move those that are BLOCKED and wait for nobody on, through structural ones to what is behind them.

        Ascending numbers become ready in ascending order, so that queues keep them as ranges.
        """
        graph, phases = self.graph, self.phases
        stack = list(reversed(numbers))
        while stack:
            number = stack.pop()
            if phases[number] != _BLOCKED:
                continue
            segment = graph.segment_of(number)
            if isinstance(segment, PlainSegment) or segment.base < number < segment.tail:
                self._push(number)
            elif number != segment.base or not self._release_all(segment):
                self._move(number, _COMPLETED)
                self.structural_completed += 1
                self.changed.append(number)
                stack += reversed(self._freed_by(number))

    def _release_all(self, segment: ExpandedSegment) -> bool:
        """Complete a head and make all its expansions ready at once, if they are all that waits for it and wait for it only."""
        first, beyond = segment.first, segment.tail
        if segment.match_parents or segment.base in self.graph.added_children:
            return False
        if self.phases.count(_BLOCKED, first, beyond) != segment.count:
            return False
        if self.waiting[first:beyond] != array("I", [1]) * segment.count:
            return False
        self._move(segment.base, _COMPLETED)
        self.structural_completed += 1
        self.changed.append(segment.base)
        self.waiting[first:beyond] = array("I", bytes(4 * segment.count))
        self.phases[first:beyond] = bytes([_READY]) * segment.count
        self.counts[_BLOCKED] -= segment.count
        self.counts[_READY] += segment.count
        self._order += 1
        queue = self.queues[segment.policy]
        if queue.push(first, beyond, self._order):
            self._offer(queue)
        return True

    # -- as a tracker kept them -----------------------------------------------------------------------------------------

    def _put_back(self, kept: Sequence[int], in_flight: Sequence[int], delayed: Iterable[tuple[float, int]]) -> None:
        """Give tasks, fresh in a run that was just grown, the phases that they had; what follows for others follows.

        `kept` has a phase for each number, of which those count that are ended ones; `delayed` says until when those that are
        READY otherwise have to wait. This is no transition: the table does not apply.
        """
        numbers = [number for number in range(self.graph.live, self.graph.size) if kept[number]]
        freed: set[int] = set()
        for number in numbers:
            self._set(number, kept[number])
        for number in numbers:
            if kept[number] == _COMPLETED:
                freed.update(self._freed_by(number))
        self._release(sorted(freed))
        for number in in_flight:
            self._set(number, _ASSIGNED)
        for due, number in delayed:
            if self.phases[number] == _READY:
                self._set(number, _DELAYED)
                self.delayed.append((due, number))
        self.structural_completed = sum(
            self.phases[number] == _COMPLETED
            for segment in self.graph.segments
            if isinstance(segment, ExpandedSegment)
            for number in (segment.base, segment.tail)
        )
        self._forget_moved()
        self.changed.clear()

    def _set(self, number: int, phase: int) -> None:
        self.counts[self.phases[number]] -= 1
        self.counts[phase] += 1
        self.phases[number] = phase

    # -- what people ask ----------------------------------------------------------------------------------------------

    def kill_waiting(self, numbers: Iterable[int]) -> list[int]:
        """Move those of `numbers` that only wait, and are no structural tasks, to KILLED. Returns which moved."""
        moved = []
        for number in numbers:
            if self.phases[number] in (_BLOCKED, _READY, _DELAYED) and not self.graph.kind(number):
                self._move(number, _KILLED)
                moved.append(number)
        self._forget_moved()
        self.changed += moved
        return moved

    def _close(self, numbers: Iterable[int]) -> list[int]:
        """Say that tasks which are not in flight are COMPLETED; what waits for them goes on. Returns which moved."""
        moved = [number for number in numbers if self.phases[number] != _COMPLETED]
        freed: set[int] = set()
        for number in moved:
            self._move(number, _COMPLETED)
            self.structural_completed += self.graph.kind(number) != 0
            freed.update(self._freed_by(number))
        self._forget_moved()
        self.changed += moved
        self._release(sorted(freed))
        return moved

    def _reopen(self, numbers: Iterable[int]) -> list[int]:
        """Queue ended tasks again, with the structural ones behind them; what waits for any of them waits again.

        Returns the numbers that moved, ascending.
        """
        graph, phases, waiting = self.graph, self.phases, self.waiting
        moved = []
        stack = list(numbers)
        while stack:
            number = stack.pop()
            before = phases[number]
            if before not in ENDED:
                continue
            self._move(number, _BLOCKED)
            moved.append(number)
            if before != _COMPLETED:
                continue
            self.structural_completed -= graph.kind(number) != 0
            for child in graph.children(number):
                waiting[child] += 1
                phase = phases[child]
                if phase in (_READY, _DELAYED):
                    self._move(child, _BLOCKED)
                elif phase == _COMPLETED and graph.kind(child):
                    stack.append(child)
        self._forget_moved()
        moved.sort()
        self.changed += moved
        self._release([number for number in moved if not waiting[number]])
        return moved

    def _forget_moved(self) -> None:
        """A person has moved tasks: queues and delays hold those only that are still READY and DELAYED."""
        for queue in self.queues:
            queue.keep_ready()
        self.delayed = [entry for entry in self.delayed if self.phases[entry[1]] == _DELAYED]
        heapq.heapify(self.delayed)
