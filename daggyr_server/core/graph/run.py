"""The state machine of one run: with `tasks.py`, the only place that changes the state of tasks and runs.

The machine tells a run what happened to its attempts and what people ask; the run moves its tasks by the tables in `states.py`
and notes which tasks changed and how it moved itself. An object exists only for an attempt in flight. It never decides where a
task runs and never looks at a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from daggyr_server.core.events import RunRestored
from daggyr_server.core.graph.carry import Carry
from daggyr_server.core.graph.graph import Addition, Edit
from daggyr_server.core.graph.in_flight import InFlight as InFlight
from daggyr_server.core.graph.in_flight import Sent
from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.graph.segments import Policy
from daggyr_server.core.graph.tasks import IllegalTransition, Tasks
from daggyr_server.core.placing.host import WHOLE
from daggyr_server.core.states import ENDED, FOLLOWS, MAX_LOSSES, STATE_OF, Follows, Outcome, Phase, State
from daggyr_server.core.stored import Adopted, TaskRows

_READY, _ASSIGNED, _RUNNING = int(Phase.READY), int(Phase.ASSIGNED), int(Phase.RUNNING)
_ERRORED, _KILLED = int(Phase.ERRORED), int(Phase.KILLED)
_BLOCKED, _COMPLETED = int(Phase.BLOCKED), int(Phase.COMPLETED)
_PHASES = {int(state): int(phase) for phase, state in STATE_OF.items() if phase in ENDED}
_ENDED_ONLY = bytes(phase if phase < len(Phase) and Phase(phase) in ENDED else _BLOCKED for phase in range(256))
_STATES = tuple(STATE_OF[phase] for phase in Phase)
T = TypeVar("T")
MAX_DELAY = 86_400.0  # seconds; a doubling delay stops growing here


class Run(Tasks):
    """One run. Public attributes are for reading."""

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
        super().__init__(offer)
        self.run_id = run_id
        self.tags = dict(tags)
        self.pool = pool
        self.parameters = parameters
        self.submit_time = submit_time
        self.start_time: float | None = None  # of its first attempt that ran
        self.stop_time: float | None = None
        self.state = State.QUEUED
        self.printed: dict[int, int] = {}  # revision -> the generator whose tasks came then and are still there
        self.moves: list[tuple[State, float]] = []  # since the machine last took them
        self.killing = False  # a person asked for the end of the run
        self.failures: dict[int, int] = {}  # retries used
        self.losses: dict[int, int] = {}
        self.in_flight: dict[int, InFlight] = {}  # by the task's number; of one that an edit took away, the last that it had
        self.orphans: set[int] = set()  # those of `in_flight` that an edit took away and nobody waits for
        self.renumbered: dict[int, int] = {}  # of those in flight: the number when it was assigned -> the one in `in_flight`

    def extend(self, addition: Addition) -> None:
        """Take new tasks, made for this run's graph as it is; those that wait for nobody become ready.

        Raises StaleAddition, with nothing changed, if the graph has grown since.
        """
        self._grow(
            addition, [ReadyQueue(self, policy, index) for index, policy in enumerate(addition.policies, len(self.queues))]
        )

    def forgotten(self) -> None:
        """Nobody has it any more but those who just look at it: what it holds goes with the last of them, not some time later.

        Its queues know it as it knows them, and such a circle waits for the garbage collector.
        """
        self.queues = []

    def restore(self, event: RunRestored, now: float) -> list[InFlight]:
        """Become what a tracker kept. Returns the attempts that are in flight."""
        for growth in event.growths:
            if isinstance(growth, Edit):
                self._take_edit(growth)
            else:
                self.extend(growth)
        self.revision = len(event.growths)
        self.printed = dict(event.printed)
        row, tasks = event.row, event.tasks
        self.start_time, self.stop_time = row.start_time, row.stop_time
        self.state, self.killing = row.state, row.killing
        phases = bytearray(self.graph.size)
        for number, state, attempt, failures, losses in zip(
            tasks.numbers, tasks.states, tasks.attempts, tasks.failures, tasks.losses, strict=True
        ):
            self.attempts[number] = attempt
            if failures:
                self.failures[number] = failures
            if losses:
                self.losses[number] = losses
            phases[number] = _PHASES.get(state, _BLOCKED)
        if self.graph.edits:
            self._carry_rows(tasks, phases)
        flights = [self._adopt(adopted) for adopted in event.adopted]
        for number, flight in self.in_flight.items():
            flight.killed = flight.void and number >= self.graph.live and phases[number] == _KILLED
        delayed = [
            (now + _seconds_before_retry(policy, used), number)
            for number, used in self.failures.items()
            if (policy := self.graph.policy(number)).retry_delay > 0
        ]
        self._put_back(phases, [number for number in self.in_flight if number >= self.graph.live], delayed)
        self._hold_back()
        return flights

    def _carry_rows(self, tasks: TaskRows, phases: bytearray) -> None:
        """Tasks have what was recorded under the numbers that they had before, unless something was since."""
        own, requeued = bytearray(self.graph.size), set(tasks.requeued)
        for number in tasks.numbers:
            own[number] = 1
        for start, carry in self.graph.edits:
            for new, old, count, same in carry:
                if own.find(1, new, new + count) < 0:
                    self.attempts[new : new + count] = self.attempts[old : old + count]
                    if same:
                        phases[new : new + count] = phases[old : old + count]
                    continue
                for after, before in zip(range(new, new + count), range(old, old + count), strict=True):
                    self.attempts[after] = max(self.attempts[after], self.attempts[before])
                    if same and not own[after]:
                        phases[after] = phases[before]
            for spent in (self.failures, self.losses):
                for number in [number for number in spent if number < start]:
                    used, over = spent.pop(number), carry.forward(number)
                    if over is not None and over[1] and over[0] not in requeued:
                        spent[over[0]] = spent.get(over[0], 0) + used
        self.phases[: self.graph.live] = phases[: self.graph.live]

    def _adopt(self, adopted: Adopted) -> InFlight:
        number = adopted.number
        queue = self.queues[self.graph.policy_index(number)]
        sent = Sent(queue.policy.pool, adopted.host, adopted.host_name, queue, WHOLE, adopted.assign_time)
        flight = InFlight(number, adopted.attempt, sent)
        flight.void = adopted.void
        for start, carry in self.graph.edits:
            if number < start:
                over = carry.forward(number)
                if over is None:
                    number = adopted.number
                    break
                number = over[0]
        self.attempts[number] = max(self.attempts[number], adopted.attempt)
        self._fly(number, flight)
        queue.unstarted += 1
        return flight

    def _fly(self, number: int, flight: InFlight) -> None:
        self.in_flight[number] = flight
        if number < self.graph.live:
            self.orphans.add(number)
        if number != flight.number:
            self.renumbered[flight.number] = number

    # -- attempts -----------------------------------------------------------------------------------------------------

    def assign(self, numbers: Sequence[int], sent: Sent) -> list[int]:
        """Move READY tasks of one queue to a host. Returns the numbers of their new attempts."""
        phases, attempts, in_flight = self.phases, self.attempts, self.in_flight
        made = []
        for number in numbers:
            if phases[number] != _READY:
                raise IllegalTransition(f"task {number}: {Phase(phases[number]).name} -> ASSIGNED")
            phases[number] = _ASSIGNED
            attempt = attempts[number] = attempts[number] + 1
            in_flight[number] = InFlight(number, attempt, sent)
            made.append(attempt)
        self.counts[_READY] -= len(made)
        self.counts[_ASSIGNED] += len(made)
        sent.queue.unstarted += len(made)
        return made

    def current(self, number: int, attempt: int) -> InFlight | None:
        """The attempt of the task with this number when it was assigned, if it is in flight; late, double and foreign reports
        get None."""
        flight = self.in_flight.get(self.task_of(number))
        return flight if flight is not None and flight.attempt == attempt and flight.number == number else None

    def task_of(self, number: int) -> int:
        """The number by now of a task that has an attempt in flight and had this one when it was assigned."""
        return self.renumbered.get(number, number) if self.renumbered else number

    def counts_for(self, number: int, flight: InFlight) -> bool:
        """Whether how an attempt ends decides on a task: no edit has changed it, or taken it away."""
        return not (flight.void or flight.held) and number >= self.graph.live

    def started(self, number: int, flight: InFlight, start_time: float, now: float) -> None:
        """A current attempt has a process; saying so again changes nothing."""
        if flight.start_time is not None:
            return
        flight.start_time = start_time
        if not flight.recalled:
            flight.sent.queue.unstarted -= 1
        if number >= self.graph.live:
            self._move(number, _RUNNING)
            self.changed.append(number)
        self._begin(min(start_time, now))

    def recall(self, flight: InFlight) -> None:
        """Note that an attempt that has not started was asked back."""
        flight.sent.queue.unstarted -= 1
        flight.recalled = True

    def ended(
        self,
        number: int,
        flight: InFlight,
        outcome: Outcome,
        now: float,
        seconds: float | None,
        addition: Addition | None,
        refusal: str | None,
    ) -> State:
        """A current attempt has ended: the table says how its task goes on. Returns the task's state from now on.

        Raises StaleAddition, with nothing changed, if the graph has grown since the addition was made.
        """
        follows = FOLLOWS[outcome]
        if follows is Follows.COMPLETE and refusal is not None:
            follows = Follows.ERROR
        counts = self.counts_for(number, flight)
        grows = follows is Follows.COMPLETE and addition is not None and counts
        if grows and addition is not None:
            self.extend(addition)
            self.printed[self.revision] = number
        del self.in_flight[number]
        self.orphans.discard(number)
        self.renumbered.pop(flight.number, None)
        if flight.start_time is None:
            if not flight.recalled:
                flight.sent.queue.unstarted -= 1
            if seconds is not None and self.state is State.QUEUED:
                self._begin(now - seconds)
        if not counts:
            return self._ended_in_vain(number, flight, follows)
        if follows is Follows.COMPLETE:
            self._complete(number)
        elif follows is Follows.ERROR:
            self._move(number, _ERRORED)
        elif follows is Follows.KILL or flight.stopping:
            # It was asked to end, and did: how does not matter.
            self._move(number, _KILLED)
        elif follows is Follows.RETRY:
            self._retry(number, now)
        elif follows is Follows.REQUEUE:
            self.losses[number] = lost = self.losses.get(number, 0) + 1
            if lost > MAX_LOSSES:
                self._move(number, _ERRORED)
            else:
                self._queue_again(number)
        else:
            self._queue_again(number)
        if outcome is not Outcome.RETURNED or flight.start_time is not None or flight.stopping:
            self.changed.append(number)
        state = _STATES[self.phases[number]]
        if grows:
            self._hold_back()
        return state

    def _ended_in_vain(self, number: int, flight: InFlight, follows: Follows) -> State:
        """An attempt of a task that an edit changed, or took away."""
        if number >= self.graph.live:
            if flight.killed:
                self._move(number, _KILLED)
            else:
                self._queue_again(number)
            self.changed.append(number)
        else:
            self.phases[number] = _COMPLETED if follows is Follows.COMPLETE else _KILLED
        return _STATES[self.phases[number]]

    def _retry(self, number: int, now: float) -> None:
        used = self.failures.get(number, 0)
        policy = self.graph.policy(number)  # an edit may have changed it
        if used >= policy.max_retries:
            self._move(number, _ERRORED)
            return
        self.failures[number] = used + 1
        if policy.retry_delay > 0:
            self._delay(number, now + _seconds_before_retry(policy, used + 1))
        else:
            self._queue_again(number)

    # -- what people ask ----------------------------------------------------------------------------------------------

    def go_on(self, now: float) -> list[int]:
        """The run, if it has ended, is QUEUED again, with fresh budgets. Returns the QUEUED tasks whose budget was not fresh."""
        if not self.has_ended:
            return []
        self._become(State.QUEUED, now)
        self.stop_time, self.killing = None, False
        fresh = self._forgive(self.failures.keys() | self.losses.keys())
        delayed, self.delayed = self.delayed, []
        for _, number in sorted(delayed):
            self._push(number)
        return fresh

    def reset(self, numbers: Iterable[int]) -> list[int]:
        """Queue ended tasks again; those and others get fresh budgets. None of them is in flight.

        Returns the numbers that moved, and the QUEUED ones whose budget was not fresh.
        """
        numbers = list(numbers)
        fresh = self._forgive(numbers)
        moved = self._reopen(numbers)
        self._hold_back()
        return sorted({*fresh, *moved})

    def complete(self, numbers: Iterable[int]) -> list[int]:
        """A person says that these are COMPLETED. None is in flight. Returns which moved."""
        return self._close(numbers)

    def _forgive(self, numbers: Iterable[int]) -> list[int]:
        """Give tasks fresh budgets. Returns those that have not ended and whose budget was not fresh, ascending."""
        fresh = []
        for number in numbers:
            used = self.failures.pop(number, 0) + self.losses.pop(number, 0)
            if used and self.phases[number] not in ENDED:
                fresh.append(number)
        return sorted(fresh)

    # -- edits --------------------------------------------------------------------------------------------------------

    def edit(self, edit: Edit, repeated: Iterable[int], now: float) -> tuple[list[int], list[int]]:
        """Take another specification. What is unchanged keeps its state and budget; what is changed or new is QUEUED.

        An attempt in flight whose task is changed, or gone, does not count any more: it is to be ended. `repeated` are unchanged
        tasks, with the numbers that they get, which are QUEUED as well. Returns those that are QUEUED and were not, and the tasks
        of the attempts that are to be ended; all numbers are those from now on.
        """
        phases = self.phases.translate(_ENDED_ONLY)
        for number, flight in self.in_flight.items():
            if flight.killed:
                phases[number] = _KILLED  # as it will be, unless it is changed
        delayed, before = self.delayed, self.in_flight
        ended_as = self.task_states() if self.has_ended else None
        self._take_edit(edit)
        self.printed = edit.printed_after(self.printed)
        phases += bytes(self.graph.size - len(phases))
        for new, old, count, same in edit.carry:
            self.attempts[new : new + count] = self.attempts[old : old + count]
            if same:
                phases[new : new + count] = phases[old : old + count]
        flying = {over[0] for number in before if (over := edit.carry.forward(number)) is not None}
        again = [number for number in repeated if phases[number] or number in flying]
        for number in again:
            phases[number] = _BLOCKED
        ended = [
            new + offset for new, old, count, same in edit.carry if not same for offset in range(count) if phases[old + offset]
        ]
        self.failures, self.losses = _carried(self.failures, edit.carry), _carried(self.losses, edit.carry)
        self._forgive(again)
        self.in_flight, self.renumbered, self.orphans = {}, {}, set()
        stopped = []
        queued = set(again)
        for number, flight in before.items():
            over = edit.carry.forward(number) if not flight.held else None
            if over is None:
                number, flight.held, flight.killed = flight.number, False, False
            else:
                number = over[0]
                if not over[1] or number in queued:
                    flight.void, flight.killed = True, False
            self._fly(number, flight)
            if flight.void or over is None:
                stopped.append(number)
        live = {number: flight for number, flight in self.in_flight.items() if number >= self.graph.live}
        waiting = _carried({number: due for due, number in delayed}, edit.carry)
        self._put_back(phases, list(live), [(due, number) for number, due in waiting.items() if number not in queued])
        for number, flight in live.items():
            if flight.start_time is not None:
                self._set(number, _RUNNING)
        stopped += self._hold_back()
        # A run that had ended goes on, unless all is as it was.
        same = (self.final_state, self.task_states()) == (self.state, ended_as)
        if ended_as is not None and (self.in_flight or self._can_go_on or not same):
            self._become(State.QUEUED, now)
            self.stop_time, self.killing = None, False
        told = sorted({*again, *ended})
        self.changed += told
        return told, [number for number in stopped if number in self.in_flight]

    def _hold_back(self) -> list[int]:
        """Nothing begins under the name of a task that an edit took away, as long as an attempt of that is being ended.

        A task of the name that has not ended is in flight with it until then; one that has waits for nothing, but will if it is
        queued again. So this is called whenever tasks come, or tasks that have ended are queued. Returns the tasks that wait from
        now on.
        """
        held: list[int] = []
        for number in sorted(self.orphans):
            flight = self.in_flight[number]
            task = self.graph.number_of(self.graph.task_id(flight.number))
            if task is None or task in self.in_flight or self.graph.kind(task) or Phase(self.phases[task]) in ENDED:
                continue
            del self.in_flight[number]
            self.orphans.discard(number)
            flight.held = True
            self._fly(task, flight)
            self._set(task, _ASSIGNED if flight.start_time is None else _RUNNING)
            held.append(task)
        if held:
            self._forget_moved()
        return held

    def let_go(self, numbers: Iterable[int]) -> None:
        """Those of `numbers` that only wait for an attempt of a task that was taken away no longer do: a person kills them."""
        for number in numbers:
            flight = self.in_flight.get(number)
            if flight is not None and flight.held:
                del self.in_flight[number], self.renumbered[flight.number]
                flight.held = False
                self._fly(flight.number, flight)
                self._set(number, _BLOCKED)

    def _take_edit(self, edit: Edit) -> None:
        revision = self.revision
        self._retire(edit.carry)
        for addition in edit.additions:
            self.extend(addition)
        self.revision = revision + 1

    # -- the run itself -----------------------------------------------------------------------------------------------

    def _become(self, state: State, time: float) -> None:
        self.state = state
        self.moves.append((state, time))

    def _begin(self, time: float) -> None:
        if self.state is State.QUEUED:
            time = max(time, self.submit_time)  # hosts have clocks of their own
            self._become(State.RUNNING, time)
            if self.start_time is None:
                self.start_time = time

    @property
    def has_ended(self) -> bool:
        return self.state.has_ended

    @property
    def _can_go_on(self) -> bool:
        return bool(self.counts[Phase.READY] + self.counts[Phase.DELAYED])

    def settle(self, now: float) -> None:
        """End the run if nothing is left that could go on."""
        if self.has_ended or self.in_flight or (not self.killing and self._can_go_on):
            return
        self._become(self.final_state, now)
        self.stop_time = now

    @property
    def final_state(self) -> State:
        """The state in which the run ends if nothing more happens."""
        if self.killing or self.counts[_KILLED]:
            return State.KILLED
        return State.ERRORED if self.counts[_ERRORED] else State.COMPLETED

    def task_states(self) -> dict[State, int]:
        """How many tasks are in each state; only states that occur. Constant time."""
        found: dict[State, int] = {}
        for phase, count in zip(Phase, self.counts, strict=True):
            if count:
                found[STATE_OF[phase]] = found.get(STATE_OF[phase], 0) + count
        return found

    def command_states(self) -> dict[State, int]:
        """The same of the tasks that run commands: without structural ones. Constant time."""
        found = self.task_states()
        for state, count in (
            (State.COMPLETED, self.structural_completed),
            (State.QUEUED, self.structural - self.structural_completed),
        ):
            if count:
                found[state] -= count
        return {state: count for state, count in found.items() if count}


def changed_completed(carry: Carry, phases: Sequence[int]) -> list[int]:
    """The changed tasks that are COMPLETED, with the numbers that they get; `phases` are those of before, by number."""
    return [
        new + offset
        for new, old, count, same in carry
        if not same
        for offset in range(count)
        if phases[old + offset] == _COMPLETED
    ]


def _carried(kept: Mapping[int, T], carry: Carry) -> dict[int, T]:
    """What is kept of tasks, by their numbers from then on; only of those that do the same."""
    return {over[0]: value for number, value in kept.items() if (over := carry.forward(number)) is not None and over[1]}


def _seconds_before_retry(policy: Policy, retry: int) -> float:
    """How long to wait before the retry of that number, from 1."""
    return min(MAX_DELAY, policy.retry_delay * 2.0 ** min(retry - 1, 64))
