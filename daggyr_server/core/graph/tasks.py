"""The tasks of one run: the phase that each is in, and how many parents each waits for.

Every move of a task's phase is in this file, one task at a time or a range of tasks, and goes by a table of `states.py`; nobody
else writes phases or their counts. Three writes are no moves: new tasks begin as BLOCKED, `put_back_retired` says what became of
tasks that edits took away before a restart, which count no more, and a run becomes what was made of a copy of it. A task that
becomes ready is put into its queue, and a queue that was empty is offered to whoever places tasks. `Run` builds on this class and
adds attempts, budgets and what people ask.
Nothing here knows of hosts, looks at a clock, or decides how a task goes on after an attempt.

What is known of a task lies in flat arrays by its number, and what many tasks share is done by ranges, because a run may have
millions of tasks.
"""

from __future__ import annotations

import heapq
import re
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Self

from daggyr_server.core.graph.carry import Carry
from daggyr_server.core.graph.faults import IllegalTaskMove, StaleAddition
from daggyr_server.core.graph.graph import Addition, Graph, Replaced
from daggyr_server.core.graph.ready import ELSEWHERE_SECONDS, QueueKey, ReadyQueue
from daggyr_server.core.graph.segments import ExpandedSegment, PlainSegment
from daggyr_server.core.states import ENDED, HELD_BACK, REBUILT, TRANSITIONS, Phase

_BLOCKED, _READY, _DELAYED = int(Phase.BLOCKED), int(Phase.READY), int(Phase.DELAYED)
_ASSIGNED, _COMPLETED, _KILLED = int(Phase.ASSIGNED), int(Phase.COMPLETED), int(Phase.KILLED)


def _legal(table: Mapping[Phase, frozenset[Phase]]) -> bytes:
    """A table of `states.py` as bytes: whether a move is in it stands at 8 * before + after."""
    return bytes(after in table.get(before, ()) for before in Phase for after in Phase)


_ALL_COMPLETED = re.compile(bytes([_COMPLETED]) + b"+")
_LATER = bytes(pair & 7 or pair >> 3 for pair in range(64)) + bytes(192)  # of two phases as above, the second one unless it is 0
_STRETCH = 64  # tasks; to look whether fewer are one costs as much as it saves
_LEGAL, _LEGAL_HELD, _LEGAL_REBUILT = _legal(TRANSITIONS), _legal(HELD_BACK), _legal(REBUILT)


class Tasks:
    """Public attributes are for reading. `offer` is called with each queue that got its first ready task."""

    def __init__(self, run_id: int, offer: Callable[[ReadyQueue], None]) -> None:
        self.run_id = run_id
        self.graph = Graph()
        self.revision = 0  # how often the graph has grown, or was replaced
        self.phases = bytearray()
        self.waiting: array[int] = array("I")  # parents that are not COMPLETED
        self.attempts: array[int] = array("I")  # the number of the last attempt
        self.counts = [0] * len(Phase)
        self.structural = 0  # of the tasks that count, those that run nothing...
        self.structural_completed = 0  # ...and of these, the COMPLETED ones; the others are BLOCKED
        # Tasks that waited for nobody when their run was killed, and that a person has not asked for since. In `waiting`, that
        # counts as one more parent, so that none of them goes on before it is let go.
        self.stopped: set[int] = set()
        self.restopped = False  # whether `stopped` is another since the machine last recorded it
        self.delayed: list[tuple[float, int]] = []  # a heap of (due, number): exactly what is DELAYED; dues are steady
        self.lost_on: dict[int, str] = {}  # of what is DELAYED, what was LOST: the host that it was on, empty if nobody knows
        self.queues: list[ReadyQueue] = []  # by policy index
        self.elsewhere: dict[QueueKey, ReadyQueue] = {}  # beside these: what was LOST on a host, and avoids that host for a while
        self.ranked = False  # some tasks have a higher priority than others
        self.changed: list[int] = []  # tasks whose state clients see changed, since the machine last took it
        self.steps = 0  # of the machine that may have changed something here
        self._offer = offer
        self._order = 0

    def offers_to(self, offer: Callable[[ReadyQueue], None]) -> None:
        """From now on, tell `offer` of queues that got their first ready task."""
        self._offer = offer

    @property
    def all_queues(self) -> list[ReadyQueue]:
        """Every queue of the run."""
        return [*self.queues, *self.elsewhere.values()] if self.elsewhere else self.queues

    # -- beside the machine -------------------------------------------------------------------------------------------

    def copied(self) -> Self:
        """A run that is as this one, and of which nothing else knows. This one has nothing in flight."""
        run = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict | set | bytearray | array):
                setattr(run, name, value[:] if isinstance(value, array) else value.copy())
        run.graph = self.graph.copied()
        run.queues = [queue.copied() for queue in self.queues]
        run.elsewhere = {key: queue.copied(run.queues[queue.policy_index]) for key, queue in self.elsewhere.items()}
        return run

    def become(self, other: Self) -> None:
        """Be what a copy of this run has become; nobody may use the copy any more. Whoever holds the run or its graph has the new
        one then."""
        graph = self.graph
        graph.become(other.graph)
        vars(self).update(vars(other))
        self.graph = graph

    # -- growing ------------------------------------------------------------------------------------------------------

    def extend(self, addition: Addition) -> None:
        """Take new tasks, made for this graph as it is; those that wait for nobody become ready.

        Raises StaleAddition, with nothing changed, if the graph has grown since.
        """
        start = size = self.graph.size
        for segment in addition.segments:
            if segment.base != size:
                raise StaleAddition(f"the new tasks follow {segment.base:,} others, but run {self.run_id} has {size:,}")
            size += segment.size
        self.graph.extend(addition)
        first = len(self.queues)
        self.queues += [ReadyQueue(self.run_id, policy, index) for index, policy in enumerate(addition.policies, first)]
        self.ranked = len({queue.policy.priority for queue in self.queues}) > 1
        self.revision += 1
        self.phases += bytes(size - start)
        self.counts[_BLOCKED] += size - start
        self.attempts.frombytes(bytes(4 * (size - start)))
        self.count_on(addition.after)
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

    def count_on(self, after: Iterable[tuple[int, int, int]]) -> None:
        """Number the attempts of tasks from those on that earlier tasks of their names had; see Addition.after."""
        attempts = self.attempts
        for new, old, count in after:
            known = zip(attempts[new : new + count], attempts[old : old + count], strict=True)
            attempts[new : new + count] = array("I", map(max, known))

    def skip(self, replaced: Replaced) -> None:
        """Take the tasks of a specification that was replaced before: they have numbers and names, and count no more."""
        start, first = self.graph.size, len(self.queues)
        self.graph.skip(replaced)
        added = self.graph.size - start
        self.queues += [ReadyQueue(self.run_id, policy, index) for index, policy in enumerate(replaced.policies[first:], first)]
        self.ranked = len({queue.policy.priority for queue in self.queues}) > 1
        self.phases += bytes(added)
        self.attempts.frombytes(bytes(4 * added))
        self.waiting.frombytes(bytes(4 * added))

    def retire(self, carry: Carry) -> None:
        """Make room for another specification's tasks: those of before keep their phases, and count no more."""
        self.graph.retire(carry)
        self.counts = [0] * len(Phase)
        self.structural = self.structural_completed = 0
        self.delayed, self.lost_on = [], {}
        self.restopped = self.restopped or bool(self.stopped)
        self.stopped = set()
        for queue in self.all_queues:
            queue.clear()

    # -- moves by the table -------------------------------------------------------------------------------------------

    def move(self, number: int, phase: int, legal: bytes = _LEGAL) -> None:
        """Move a task. Raises IllegalTransition, with nothing changed, if the table does not have the move."""
        before = self.phases[number]
        if not legal[before << 3 | phase]:
            raise self._illegal(number, phase)
        self.phases[number] = phase
        self.counts[before] -= 1
        self.counts[phase] += 1

    def _move_range(self, first: int, beyond: int, before: int, phase: int) -> None:
        """Move all of a range, which are in the phase `before`. Raises as `move` does."""
        count = beyond - first
        if not _LEGAL[before << 3 | phase] or self.phases.count(before, first, beyond) != count:
            other = (number for number in range(first, beyond) if self.phases[number] != before)
            raise self._illegal(next(other, first), phase)
        self.phases[first:beyond] = bytes([phase]) * count
        self.counts[before] -= count
        self.counts[phase] += count

    def hand_out(self, numbers: Sequence[int]) -> list[int]:
        """Move READY tasks to ASSIGNED. Returns the numbers of their new attempts. Raises as `move` does."""
        phases, attempts = self.phases, self.attempts
        made: list[int] = []
        for number in numbers:
            if phases[number] != _READY:
                fault = self._illegal(number, _ASSIGNED)
                for done in numbers[: len(made)]:
                    phases[done] = _READY
                    attempts[done] -= 1
                raise fault
            phases[number] = _ASSIGNED
            attempt = attempts[number] = attempts[number] + 1
            made.append(attempt)
        self.counts[_READY] -= len(made)
        self.counts[_ASSIGNED] += len(made)
        return made

    def move_retired(self, number: int, phase: int) -> None:
        """Move a task that an edit took away: it counts no more. Raises as `move` does."""
        if not _LEGAL[self.phases[number] << 3 | phase]:
            raise self._illegal(number, phase)
        self.phases[number] = phase

    def hold(self, number: int, phase: int) -> None:
        """Hold a task back as if the attempt that it waits for were its own. Raises as `move` does."""
        self.move(number, phase, _LEGAL_HELD)

    def queue_again(self, number: int) -> None:
        """Move a task to READY, unless a person has asked for a parent again meanwhile: then it is BLOCKED."""
        if self.waiting[number]:
            self.move(number, _BLOCKED)
        else:
            self._push(number)

    def delay(self, number: int, due: float, lost_on: str | None = None) -> None:
        """Move a task to DELAYED until `due`, unless a person has asked for a parent again meanwhile: then it is BLOCKED.

        A task that was LOST names the host that it was on, and goes to another one if it can.
        """
        if self.waiting[number]:
            self.move(number, _BLOCKED)
        else:
            self.move(number, _DELAYED)
            heapq.heappush(self.delayed, (due, number))
            if lost_on is not None:
                self.lost_on[number] = lost_on

    def due(self, now: float) -> None:
        """Make ready what has waited for long enough after its last attempt."""
        self.steps += 1
        while self.delayed and self.delayed[0][0] <= now:
            self._end_delay(heapq.heappop(self.delayed)[1], now)

    def end_delays(self, now: float, numbers: Container[int] | None = None) -> None:
        """Make ready what is DELAYED, the first to be due first: all of it, or those of `numbers`."""
        ended = [entry for entry in self.delayed if numbers is None or entry[1] in numbers]
        if ended:
            self.delayed = [entry for entry in self.delayed if numbers is not None and entry[1] not in numbers]
            heapq.heapify(self.delayed)
        for _, number in sorted(ended):
            self._end_delay(number, now)

    def _end_delay(self, number: int, now: float) -> None:
        host = self.lost_on.pop(number, "")
        if not host:
            self._push(number)
            return
        self.move(number, _READY)
        self._order += 1
        index = self.graph.policy_index(number)
        queue = self.elsewhere.get((index, host))
        if queue is None:
            ordinary = self.queues[index]
            queue = ReadyQueue(self.run_id, ordinary.policy, index, avoid=host, ordinary=ordinary)
            self.elsewhere[queue.key] = queue
        if queue.push(number, number + 1, self._order):
            queue.until = now + ELSEWHERE_SECONDS
            self._offer(queue)

    def _push(self, number: int) -> None:
        self.move(number, _READY)
        self._order += 1
        queue = self.queues[self.graph.policy_index(number)]
        if queue.push(number, number + 1, self._order):
            self._offer(queue)

    def complete(self, number: int) -> None:
        """Move a task to COMPLETED; children that waited for it alone go on."""
        self.move(number, _COMPLETED)
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
        if len(numbers) >= _STRETCH and self._release_stretch(numbers):
            return
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
                self.move(number, _COMPLETED)
                self.structural_completed += 1
                self.changed.append(number)
                stack += reversed(self._freed_by(number))

    def _release_stretch(self, numbers: Sequence[int]) -> bool:
        """Make ready at once what a generator printed, or the like: side by side, not multiplied, and of one policy."""
        first, beyond = numbers[0], numbers[-1] + 1
        if beyond - first != len(numbers) or list(numbers) != list(range(first, beyond)):
            return False
        segment = self.graph.segment_of(first)
        if not isinstance(segment, PlainSegment) or beyond > segment.base + segment.size:
            return False
        policies = segment.policies[first - segment.base : beyond - segment.base]
        if policies.count(policies[0]) != len(policies) or self.phases.count(_BLOCKED, first, beyond) != len(numbers):
            return False
        self._move_range(first, beyond, _BLOCKED, _READY)
        self._order += 1
        queue = self.queues[policies[0]]
        if queue.push(first, beyond, self._order):
            self._offer(queue)
        return True

    def _release_all(self, segment: ExpandedSegment) -> bool:
        """Complete a head and make all its expansions ready at once, if they are all that waits for it and wait for it only."""
        first, beyond = segment.first, segment.tail
        if segment.match_parents or segment.base in self.graph.added_children:
            return False
        if self.phases.count(_BLOCKED, first, beyond) != segment.count:
            return False
        if self.waiting[first:beyond] != array("I", [1]) * segment.count:
            return False
        self.move(segment.base, _COMPLETED)
        self.structural_completed += 1
        self.changed.append(segment.base)
        self.waiting[first:beyond] = array("I", bytes(4 * segment.count))
        self._move_range(first, beyond, _BLOCKED, _READY)
        self._order += 1
        queue = self.queues[segment.policy]
        if queue.push(first, beyond, self._order):
            self._offer(queue)
        return True

    # -- as it was before -----------------------------------------------------------------------------------------------

    def put_back(self, kept: Sequence[int], in_flight: Mapping[int, int], delayed: Iterable[tuple[float, int]]) -> None:
        """Give fresh tasks, in a run that was just built again, the phases that they had; what follows for others follows.

        `kept` has a phase for each number, of which those count that are ended ones. `in_flight` says of tasks that have an
        attempt whether they are ASSIGNED or RUNNING. `delayed` says until when tasks that are READY otherwise have to wait.
        """
        live = self.graph.live
        told = bytearray(kept[live:])
        for number in in_flight:
            told[number - live] = 0
        self._put_phases(told)
        self._release(self._freed_by_all(told))
        for number, phase in in_flight.items():
            self.move(number, phase, _LEGAL_REBUILT)
        for due, number in delayed:
            if self.phases[number] == _READY:
                self.move(number, _DELAYED, _LEGAL_REBUILT)
                self.delayed.append((due, number))
        self.structural_completed = sum(
            self.phases[number] == _COMPLETED
            for segment in self.graph.segments
            if isinstance(segment, ExpandedSegment)
            for number in (segment.base, segment.tail)
        )
        self.forget_moved()
        self.changed.clear()

    def _put_phases(self, told: bytearray) -> None:
        """Move all tasks that count and of which `told` has a phase that is not 0. Raises as `move` does.

        It is done for all tasks at once, because there may be a million: `pairs` has a byte for each, with both phases.
        """
        live = self.graph.live
        both = int.from_bytes(self.phases[live:], "little") << 3 | int.from_bytes(told, "little")
        pairs = both.to_bytes(self.graph.size - live, "little")
        counted = [(pair, count) for pair in range(64) if pair & 7 and (count := pairs.count(pair))]
        for pair, _ in counted:
            if not _LEGAL_REBUILT[pair]:
                raise self._illegal(live + pairs.index(pair), pair & 7)
        for pair, count in counted:
            self.counts[pair >> 3] -= count
            self.counts[pair & 7] += count
        self.phases[live:] = pairs.translate(_LATER)

    def _freed_by_all(self, told: bytearray) -> list[int]:
        """As `_freed_by`, of all that `told` says to be COMPLETED; ascending."""
        graph, waiting, live = self.graph, self.waiting, self.graph.live
        freed: list[int] = []

        def tell(children: Iterable[int]) -> None:
            for child in children:
                left = waiting[child] = waiting[child] - 1
                if not left:
                    freed.append(child)

        for segment in graph.segments:
            first = segment.base - live
            for stretch in _ALL_COMPLETED.finditer(told, first, first + segment.size):
                start, beyond = stretch.span()
                if isinstance(segment, PlainSegment):
                    offsets = segment.child_offsets
                    tell(segment.child_numbers[offsets[start - first] : offsets[beyond - first]])
                else:
                    for number in range(start, beyond):
                        tell(segment.children(live + number))
        for parent, children in graph.added_children.items():
            if told[parent - live] == _COMPLETED:
                tell(children)
        return sorted(freed)

    def put_back_retired(self, kept: bytes | bytearray, in_flight: Iterable[int]) -> None:
        """Say what became of tasks that edits took away or renumbered; the attempts of `in_flight` have not ended."""
        self.phases[: self.graph.live] = kept
        for number in in_flight:
            self.phases[number] = _ASSIGNED

    # -- what people ask ----------------------------------------------------------------------------------------------

    def stop(self, numbers: Iterable[int]) -> None:
        """Have those of `numbers` that wait do so until a person asks for them."""
        for number in numbers:
            phase = self.phases[number]
            if phase not in (_BLOCKED, _READY, _DELAYED) or number in self.stopped:
                continue
            self.stopped.add(number)
            self.waiting[number] += 1
            if phase != _BLOCKED:
                self.move(number, _BLOCKED)
            self.restopped = True
        self.forget_moved()

    def told_stopped(self) -> list[int]:
        """The tasks that are stopped, ascending; whoever asks records them."""
        self.restopped = False
        return sorted(self.stopped)

    def let_go_on(self, numbers: Iterable[int]) -> list[int]:
        """A person asks for those of `numbers` that were stopped. Returns these, ascending."""
        found = self._unstopped(numbers)
        self._release([number for number in found if not self.waiting[number]])
        return found

    def _unstopped(self, numbers: Iterable[int]) -> list[int]:
        """Those of `numbers` that were stopped, ascending; they are so no more."""
        found = sorted(self.stopped.intersection(numbers)) if self.stopped else []
        for number in found:
            self.waiting[number] -= 1
        self.stopped.difference_update(found)
        self.restopped = self.restopped or bool(found)
        return found

    def kill_waiting(self, numbers: Iterable[int]) -> list[int]:
        """Move those of `numbers` that only wait, and are no structural tasks, to KILLED. Returns which moved."""
        numbers = list(numbers)
        self._unstopped(numbers)
        moved = []
        for number in numbers:
            if self.phases[number] in (_BLOCKED, _READY, _DELAYED) and not self.graph.kind(number):
                self.move(number, _KILLED)
                moved.append(number)
        self.forget_moved()
        self.changed += moved
        return moved

    def close(self, numbers: Iterable[int]) -> list[int]:
        """A person says that tasks are COMPLETED, of which none is in flight; their children go on. Returns which moved."""
        moved = [number for number in numbers if self.phases[number] != _COMPLETED]
        self._unstopped(moved)
        freed: set[int] = set()
        for number in moved:
            self.move(number, _COMPLETED)
            self.structural_completed += self.graph.kind(number) != 0
            freed.update(self._freed_by(number))
        self.forget_moved()
        self.changed += moved
        self._release(sorted(freed))
        return moved

    def reopen(self, numbers: Iterable[int]) -> list[int]:
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
            self.move(number, _BLOCKED)
            moved.append(number)
            if before != _COMPLETED:
                continue
            self.structural_completed -= graph.kind(number) != 0
            for child in graph.children(number):
                waiting[child] += 1
                phase = phases[child]
                if phase in (_READY, _DELAYED):
                    self.move(child, _BLOCKED)
                elif phase == _COMPLETED and graph.kind(child):
                    stack.append(child)
        self.forget_moved()
        moved.sort()
        self.changed += moved
        self._release([number for number in moved if not waiting[number]])
        return moved

    def forget_moved(self) -> None:
        """Keep in queues and among delays only what is still READY and DELAYED: other moves than those of attempts were made."""
        for queue in self.all_queues:
            queue.keep_ready(self.phases)
        self.delayed = [entry for entry in self.delayed if self.phases[entry[1]] == _DELAYED]
        heapq.heapify(self.delayed)
        self.lost_on = {number: host for number, host in self.lost_on.items() if self.phases[number] == _DELAYED}

    # -- faults -------------------------------------------------------------------------------------------------------

    def _illegal(self, number: int, phase: int) -> IllegalTaskMove:
        """The fault that a move is, with the task's story."""
        before, after = Phase(self.phases[number]), Phase(phase)
        attempt = self.attempts[number]
        return IllegalTaskMove(self.run_id, self.graph.task_id(number), number, before, after, attempt, self._story(number))

    def _story(self, number: int) -> Iterator[str]:
        """What is known of a task, a fact a line."""
        yield f"parents that it waits for: {self.waiting[number]}"
        graph, counted = self.graph, zip(Phase, self.counts, strict=True)
        yield f"revision of the run: {self.revision}, edits: {len(graph.edits)}, tasks: {graph.size}, of these gone: {graph.live}"
        yield "of the others are " + ", ".join(f"{count:,} {phase.name}" for phase, count in counted if count)
