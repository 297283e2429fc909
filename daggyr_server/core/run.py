"""The state machine of one run: the only place that changes the state of tasks and runs.

Per-task state lies in flat arrays by task number, and an object exists only for an attempt in flight. The machine tells a
run what happened; the run moves its tasks (by the tables in `states.py`), offers what became ready to the scheduler's queues
and notes what has to be recorded. It never decides where a task runs and never looks at a clock.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence

from daggyr_server.core.graph import Addition, ExpandedSegment, Graph, PlainSegment
from daggyr_server.core.ready import ReadyQueue
from daggyr_server.core.states import (
    ENDED,
    FOLLOWS,
    IN_FLIGHT,
    MAX_LOSSES,
    STATE_OF,
    TRANSITIONS,
    Follows,
    Outcome,
    Phase,
    State,
)

_BLOCKED, _READY, _DELAYED = int(Phase.BLOCKED), int(Phase.READY), int(Phase.DELAYED)
_ASSIGNED, _RUNNING, _COMPLETED = int(Phase.ASSIGNED), int(Phase.RUNNING), int(Phase.COMPLETED)
_ERRORED, _KILLED = int(Phase.ERRORED), int(Phase.KILLED)
_LEGAL = bytes(
    Phase(after) in TRANSITIONS[Phase(before)] if before < len(Phase) and after < len(Phase) else 0
    for before in range(8)
    for after in range(8)
)
MAX_DELAY = 86_400.0  # seconds; a doubling delay stops growing here


class IllegalTransition(Exception):
    """A fault of ours: something asked for a transition that the table does not have. Nothing was changed."""


class InFlight:
    """An attempt that a host has."""

    __slots__ = (
        "assign_time",
        "attempt",
        "host",
        "host_name",
        "needs",
        "policy_index",
        "pool",
        "recalled",
        "start_time",
        "stopping",
    )

    def __init__(
        self,
        pool: str,
        host: str,
        host_name: str,
        policy_index: int,
        needs: tuple[tuple[str, int], ...],
        attempt: int,
        now: float,
    ) -> None:
        self.pool = pool
        self.host = host
        self.host_name = host_name
        self.policy_index = policy_index
        self.needs = needs
        self.attempt = attempt
        self.assign_time = now
        self.start_time: float | None = None
        self.stopping = False
        self.recalled = False


class Run:
    """One run. Public attributes are for reading; `offer` is called with each queue that got its first ready task."""

    def __init__(
        self,
        run_id: int,
        *,
        tags: Mapping[str, str],
        pool: str,
        parameters: Mapping[str, tuple[str, ...]],
        submit_time: float,
        offer: Callable[[ReadyQueue], None],
    ) -> None:
        self.run_id = run_id
        self.tags = dict(tags)
        self.pool = pool
        self.parameters = parameters
        self.submit_time = submit_time
        self.start_time: float | None = None
        self.stop_time: float | None = None
        self.state = State.QUEUED
        self.killing = False  # a person asked for the end of the run
        self.revision = 0
        self.graph = Graph()
        self.phases = bytearray()
        self.waiting: array[int] = array("I")  # parents that are not COMPLETED
        self.attempts: array[int] = array("I")  # the number of the last attempt
        self.counts = [0] * len(Phase)
        self.failures: dict[int, int] = {}  # retries used
        self.losses: dict[int, int] = {}
        self.in_flight: dict[int, InFlight] = {}
        self.delayed: list[tuple[float, int]] = []  # a heap; entries of tasks that moved on are passed over
        self.unstarted: dict[int, int] = {}  # policy index -> attempts that could be recalled
        self.queues: list[ReadyQueue] = []  # by policy index
        self.changed: list[int] = []  # tasks whose state clients see changed, since the machine last took it
        self._offer = offer
        self._order = 0

    # -- growing ------------------------------------------------------------------------------------------------------

    def extend(self, addition: Addition) -> None:
        """Take new tasks, made for this run's graph as it is; those whose parents are all COMPLETED become ready."""
        start = self.graph.size
        self.graph.extend(addition)
        for index in range(len(self.queues), len(self.graph.policies)):
            self.queues.append(ReadyQueue(self, self.graph.policies[index], index))
        size = self.graph.size
        self.phases += bytes(size - start)
        self.counts[_BLOCKED] += size - start
        self.attempts.frombytes(bytes(4 * (size - start)))
        self.waiting += self.graph.indegrees(start)
        for segment in addition.segments:
            if isinstance(segment, PlainSegment):
                self._wait_for_new(segment.child_numbers, start)
            else:
                self._wait_for_new(segment.tail_children, start)
        for parent, child in addition.edges:
            if self.phases[parent] == _COMPLETED:
                self.waiting[child] -= 1
        self.revision += 1
        self._release(number for number in range(start, size) if not self.waiting[number])

    def _wait_for_new(self, children: Iterable[int], start: int) -> None:
        for child in children:
            if child < start:
                self.waiting[child] += 1

    # -- moving tasks -------------------------------------------------------------------------------------------------

    def _move(self, number: int, phase: int) -> None:
        before = self.phases[number]
        if not _LEGAL[before << 3 | phase]:
            raise IllegalTransition(f"run {self.run_id} task {number}: {Phase(before).name} -> {Phase(phase).name}")
        self.phases[number] = phase
        self.counts[before] -= 1
        self.counts[phase] += 1

    def _push(self, number: int) -> None:
        self._move(number, _READY)
        self._order += 1
        queue = self.queues[self.graph.policy_index(number)]
        if queue.push(number, number + 1, self._order):
            self._offer(queue)

    def _release(self, numbers: Iterable[int]) -> None:
        """Move BLOCKED tasks that wait for nobody on, through structural ones to what is behind them."""
        graph, phases, waiting = self.graph, self.phases, self.waiting
        stack: list[int] = []
        for root in numbers:
            stack.append(root)
            while stack:
                number = stack.pop()
                if phases[number] != _BLOCKED:
                    continue
                segment = graph.segment_of(number)
                if isinstance(segment, ExpandedSegment):
                    if number == segment.base and self._release_all(segment):
                        continue
                    if number == segment.base or number == segment.tail:
                        self._move(number, _COMPLETED)
                        self.changed.append(number)
                        for child in graph.children(number):
                            waiting[child] -= 1
                            if not waiting[child]:
                                stack.append(child)
                        continue
                self._push(number)

    def _release_all(self, segment: ExpandedSegment) -> bool:
        """Complete a head and make all its expansions ready at once, if nothing else concerns any of them."""
        first, beyond = segment.first, segment.tail
        if segment.match_parents or segment.base in self.graph.added_children or self.graph.added_children:
            return False
        if self.phases.count(_BLOCKED, first, beyond) != segment.count:
            return False
        if self.waiting[first:beyond] != array("I", [1]) * segment.count:
            return False
        self._move(segment.base, _COMPLETED)
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

    # -- attempts -----------------------------------------------------------------------------------------------------

    def assign(self, numbers: Sequence[int], queue: ReadyQueue, host: str, host_name: str, now: float) -> list[int]:
        """Move READY tasks of one queue to a host. Returns the numbers of their new attempts."""
        policy = queue.policy
        attempts, in_flight = self.attempts, self.in_flight
        index, pool, needs = queue.policy_index, policy.pool, policy.needs
        made = []
        for number in numbers:
            self._move(number, _ASSIGNED)
            attempt = attempts[number] = attempts[number] + 1
            in_flight[number] = InFlight(pool, host, host_name, index, needs, attempt, now)
            made.append(attempt)
        self.unstarted[index] = self.unstarted.get(index, 0) + len(made)
        return made

    def current(self, number: int, attempt: int) -> InFlight | None:
        """The attempt if it is the task's current one and in flight; late, double and foreign reports get None."""
        flight = self.in_flight.get(number)
        return flight if flight is not None and flight.attempt == attempt else None

    def started(self, number: int, flight: InFlight, start_time: float) -> None:
        """A current attempt has a process; saying so again changes nothing."""
        if flight.start_time is not None:
            return
        flight.start_time = start_time
        self._no_longer_unstarted(flight)
        self._move(number, _RUNNING)
        self.changed.append(number)
        self._begin(start_time)

    def _begin(self, start_time: float) -> None:
        if self.state is State.QUEUED:
            self.state = State.RUNNING
            if self.start_time is None:
                self.start_time = start_time

    def _no_longer_unstarted(self, flight: InFlight) -> None:
        if not flight.recalled:
            self.unstarted[flight.policy_index] -= 1

    def recall(self, flight: InFlight) -> None:
        """Note that an attempt that has not started was asked back."""
        self._no_longer_unstarted(flight)
        flight.recalled = True

    def ended(
        self,
        number: int,
        flight: InFlight,
        outcome: Outcome,
        now: float,
        addition: Addition | None,
        refusal: str | None,
    ) -> State:
        """A current attempt has ended: the table says how its task goes on. Returns the task's state from now on."""
        del self.in_flight[number]
        if flight.start_time is None:
            self._no_longer_unstarted(flight)
            if outcome is not Outcome.RETURNED:
                self._begin(now)
        follows = FOLLOWS[outcome]
        if follows is Follows.COMPLETE and refusal is not None:
            follows = Follows.ERROR
        if follows is Follows.COMPLETE:
            if addition is not None:
                self.extend(addition)
            self._complete(number)
        elif follows is Follows.ERROR:
            self._move(number, _ERRORED)
        elif follows is Follows.KILL:
            self._move(number, _KILLED)
        elif follows is Follows.GIVE_BACK:
            self._again(number, flight)
        elif follows is Follows.REQUEUE:
            self.losses[number] = lost = self.losses.get(number, 0) + 1
            if lost > MAX_LOSSES:
                self._move(number, _ERRORED)
            else:
                self._again(number, flight)
        else:
            self._retry(number, flight, now)
        if outcome is not Outcome.RETURNED or flight.start_time is not None:
            self.changed.append(number)
        return STATE_OF[Phase(self.phases[number])]

    def _again(self, number: int, flight: InFlight) -> None:
        # A task that a person asked to end, and whose host went away meanwhile, has what the person asked for.
        if flight.stopping:
            self._move(number, _KILLED)
        else:
            self._push(number)

    def _retry(self, number: int, flight: InFlight, now: float) -> None:
        used = self.failures.get(number, 0)
        policy = self.graph.policies[flight.policy_index]
        if flight.stopping:
            self._move(number, _KILLED)
        elif used >= policy.max_retries:
            self._move(number, _ERRORED)
        else:
            self.failures[number] = used + 1
            if policy.retry_delay > 0:
                self._move(number, _DELAYED)
                due = now + min(MAX_DELAY, policy.retry_delay * 2.0 ** min(used, 64))
                heapq.heappush(self.delayed, (due, number))
            else:
                self._push(number)

    def _complete(self, number: int) -> None:
        self._move(number, _COMPLETED)
        waiting = self.waiting
        freed = []
        for child in self.graph.children(number):
            waiting[child] -= 1
            if not waiting[child]:
                freed.append(child)
        if freed:
            self._release(freed)

    def due(self, now: float) -> None:
        """Make ready what has waited for its retry's delay."""
        while self.delayed and self.delayed[0][0] <= now:
            _, number = heapq.heappop(self.delayed)
            if self.phases[number] == _DELAYED:
                self._push(number)

    # -- what people ask ----------------------------------------------------------------------------------------------

    def kill_waiting(self, numbers: Iterable[int]) -> list[int]:
        """Move those of `numbers` that only wait, and are no structural tasks, to KILLED. Returns which moved."""
        moved = []
        for number in numbers:
            if self.phases[number] in (_BLOCKED, _READY, _DELAYED) and not self.graph.kind(number):
                self._move(number, _KILLED)
                moved.append(number)
        self.changed += moved
        return moved

    def reset(self, numbers: Iterable[int]) -> list[int]:
        """Queue ended tasks again with fresh budgets; what waits for a task that is no longer COMPLETED waits again.

        Returns the numbers that moved. The caller has made sure that none is in flight.
        """
        graph, phases, waiting = self.graph, self.phases, self.waiting
        moved = [number for number in numbers if Phase(phases[number]) in ENDED]
        for number in moved:
            self.failures.pop(number, None)
            self.losses.pop(number, None)
            if phases[number] == _COMPLETED:
                for child in graph.children(number):
                    waiting[child] += 1
                    if phases[child] in (_READY, _DELAYED):
                        self._move(child, _BLOCKED)
            self._move(number, _BLOCKED)
        self.changed += moved
        self.state, self.stop_time, self.killing = State.QUEUED, None, False
        if self.in_flight:
            self.state = State.RUNNING
        self._release([number for number in moved if not waiting[number]])
        return moved

    def descendants(self, numbers: Iterable[int]) -> list[int]:
        """`numbers` and all that depends on them, ascending."""
        seen = set(numbers)
        stack = list(seen)
        while stack:
            for child in self.graph.children(stack.pop()):
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
        return sorted(seen)

    # -- the run itself -----------------------------------------------------------------------------------------------

    def in_phases(self, phases: Iterable[Phase]) -> int:
        """How many tasks are in any of `phases`."""
        return sum(self.counts[phase] for phase in phases)

    @property
    def ended_state(self) -> State | None:
        """The state in which the run ends now, or None while something can still go on."""
        if self.state not in (State.QUEUED, State.RUNNING) or self.in_phases(IN_FLIGHT):
            return None
        if not self.killing and self.counts[_READY] + self.counts[_DELAYED]:
            return None
        if self.killing or self.counts[_KILLED]:
            return State.KILLED
        return State.ERRORED if self.counts[_ERRORED] else State.COMPLETED

    def end(self, state: State, now: float) -> None:
        """The run has ended in `state`, which `ended_state` gave."""
        self.state = state
        self.stop_time = now

    def task_states(self) -> dict[State, int]:
        """How many tasks are in each state; only states that occur. Constant time."""
        found: dict[State, int] = {}
        for phase, count in zip(Phase, self.counts, strict=True):
            if count:
                found[STATE_OF[phase]] = found.get(STATE_OF[phase], 0) + count
        return found
