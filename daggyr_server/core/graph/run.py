"""The state of one run: its attempts in flight, what retries and losses used up, and whether it goes on.

The machine tells a run what happened to its attempts and what people ask. The run says by the tables in `states.py` how its tasks
go on, has them moved by `tasks.py`, and notes which tasks changed and how it moved itself. Only the files of this folder change a
run: `edit.py` and `restore.py` do so for what their names say, and the machine calls them and takes the notes. An object exists
only for an attempt in flight. A run never decides where a task runs and never looks at a clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

from daggyr_server.core.graph.faults import IllegalRunMove
from daggyr_server.core.graph.graph import Addition
from daggyr_server.core.graph.held import hold_back, let_go
from daggyr_server.core.graph.in_flight import InFlight, Sent
from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.graph.segments import Policy
from daggyr_server.core.graph.tasks import Tasks
from daggyr_server.core.moment import Moment
from daggyr_server.core.states import ENDED, FOLLOWS, MAX_LOSSES, RUN_TRANSITIONS, STATE_OF, Follows, Outcome, Phase, State

_RUNNING, _COMPLETED, _ERRORED, _KILLED = int(Phase.RUNNING), int(Phase.COMPLETED), int(Phase.ERRORED), int(Phase.KILLED)
_STATES = tuple(STATE_OF[phase] for phase in Phase)
MAX_DELAY = 86_400.0  # seconds; a doubling delay stops growing here
FIRST_PAUSE_OF_LOST, LONGEST_PAUSE_OF_LOST = 1.0, 300.0  # seconds before a LOST task is attempted again, doubling


class Run(Tasks):
    """One run. Public attributes are for reading."""

    def __init__(
        self,
        run_id: int,
        *,
        tags: Mapping[str, str],
        pool: str,
        parameters: Mapping[str, tuple[str, ...]],
        made: Moment,
        offer: Callable[[ReadyQueue], None],
    ) -> None:
        super().__init__(run_id, offer)
        self.tags = dict(tags)
        self.pool = pool
        self.parameters = parameters
        self.submit_time = made.wall
        self.start_time: float | None = None  # of its first attempt that ran
        self.stop_time: float | None = None
        self.state = State.QUEUED
        self.ran_seconds = 0.0  # for how long it was RUNNING, but for the time since `running_since`
        self.queued_since = made.steady  # when it was submitted, or queued again
        self.running_since = math.inf  # the steady time from which on it is RUNNING; infinite if it is not
        self.printed: dict[int, int] = {}  # revision -> the generator whose tasks came then and are still there
        self.specified_in = 0  # the revision whose document is the run's specification; 0 is the one that it was submitted with
        self.moves: list[tuple[State, float, float]] = []  # (state, wall time, `ran_seconds`), since the machine last took them
        self.killing = False  # a person asked for the end of the run
        self.failures: dict[int, int] = {}  # retries used
        self.losses: dict[int, int] = {}
        # How often an attempt had begun and came back all the same. Trackers do not keep that: after a restart it begins anew.
        self.comebacks: dict[int, int] = {}
        self.in_flight: dict[int, InFlight] = {}  # by the task's number; of one that an edit took away, the last that it had
        self.orphans: set[int] = set()  # those of `in_flight` that an edit took away and nobody waits for
        self.renumbered: dict[int, int] = {}  # of those in flight: the number when it was assigned -> the one in `in_flight`

    # -- attempts -----------------------------------------------------------------------------------------------------

    def assign(self, numbers: Sequence[int], sent: Sent) -> list[int]:
        """Move READY tasks of one queue to a host. Returns the numbers of their new attempts.

        Raises IllegalTransition, with nothing changed, if one is not READY.
        """
        made = self.hand_out(numbers)
        in_flight = self.in_flight
        for number, attempt in zip(numbers, made, strict=True):
            in_flight[number] = InFlight(number, attempt, sent)
        sent.queue.unstarted += len(made)
        return made

    def put_in_flight(self, number: int, attempt: InFlight) -> None:
        """Keep an attempt under the number that its task has by now, which may be another than when it was assigned."""
        self.in_flight[number] = attempt
        if number < self.graph.live:
            self.orphans.add(number)
        if number != attempt.number:
            self.renumbered[attempt.number] = number

    def current(self, number: int, attempt: int) -> InFlight | None:
        """The attempt of the task that had this number when it was assigned, if it is in flight; late, double and foreign reports
        get None."""
        found = self.in_flight.get(self.task_of(number))
        return found if found is not None and found.attempt == attempt and found.number == number else None

    def task_of(self, number: int) -> int:
        """The number by now of a task that has an attempt in flight and had this one when it was assigned."""
        return self.renumbered.get(number, number) if self.renumbered else number

    def counts_for(self, number: int, attempt: InFlight) -> bool:
        """Whether the way in which an attempt ends decides on a task: no edit has changed the task, or taken it away."""
        return not (attempt.void or attempt.held) and number >= self.graph.live

    def unstarted(self) -> list[InFlight]:
        """The attempts that can be asked back."""
        if not any(queue.unstarted for queue in self.all_queues):
            return []
        return [attempt for attempt in self.in_flight.values() if attempt.start_time is None and not attempt.recalled]

    def started(self, number: int, attempt: InFlight, start_time: float, now: Moment) -> None:
        """A current attempt has a process; saying so again changes nothing."""
        if attempt.start_time is not None:
            return
        if number >= self.graph.live:
            self.move(number, _RUNNING)
            self.changed.append(number)
        attempt.start_time = start_time
        if not attempt.recalled:
            attempt.sent.queue.unstarted -= 1
        if self.state is State.QUEUED:
            self._begin(min(start_time, now.wall), now.steady)

    def ended(
        self,
        number: int,
        attempt: InFlight,
        outcome: Outcome,
        now: Moment,
        seconds: float | None,
        addition: Addition | None,
        refusal: str | None,
    ) -> State:
        """A current attempt has ended: the table says how its task goes on. Returns the task's state from now on.

        Raises StaleAddition, with nothing changed, if the graph has grown since the addition was made. Raises IllegalTransition
        with nothing changed but what the addition brought.
        """
        follows = FOLLOWS[outcome]
        if follows is Follows.COMPLETE and refusal is not None:
            follows = Follows.RETRY
        counts = self.counts_for(number, attempt)
        grows = follows is Follows.COMPLETE and addition is not None and counts
        if grows and addition is not None:
            self.extend(addition)
            if addition.segments:
                self.printed[self.revision] = number
        # The move comes first, because what is not in the table changes nothing else.
        if not counts:
            self._end_in_vain(number, attempt, follows)
        elif follows is Follows.COMPLETE:
            self.complete(number)
        elif follows is Follows.ERROR:
            self.move(number, _ERRORED)
        elif follows is Follows.KILL or attempt.stopping:
            # It was asked to end, and did: how does not matter.
            self.move(number, _KILLED)
        elif follows is Follows.RETRY:
            self._retry(number, now.steady)
        elif follows is Follows.REQUEUE:
            self._lost(number, attempt.host, self.losses, now.steady)
        elif attempt.start_time is not None or seconds is not None:
            # It ran on a host that could not keep what it wrote. What fills its host's disk by itself must not run for ever.
            self._lost(number, attempt.host, self.comebacks, now.steady)
        else:
            self.queue_again(number)
        del self.in_flight[number]
        self.orphans.discard(number)
        self.renumbered.pop(attempt.number, None)
        if attempt.start_time is None and not attempt.recalled:
            attempt.sent.queue.unstarted -= 1
        if seconds is not None and now.steady - seconds < self.running_since:
            self._begin(now.wall - seconds, now.steady - seconds)
        if counts:
            if outcome is not Outcome.RETURNED or attempt.start_time is not None or attempt.stopping:
                self.changed.append(number)
        elif number >= self.graph.live:
            self.changed.append(number)
        state = _STATES[self.phases[number]]
        if grows:
            hold_back(self)
        return state

    def _end_in_vain(self, number: int, attempt: InFlight, follows: Follows) -> None:
        """Move a task that an edit changed, or took away, after its attempt."""
        if number < self.graph.live:
            self.move_retired(number, _COMPLETED if follows is Follows.COMPLETE else _KILLED)
        elif attempt.killed:
            self.move(number, _KILLED)
        else:
            self.queue_again(number)

    def _lost(self, number: int, host: str, budget: dict[int, int], now: float) -> None:
        """Queue a task again after a pause, elsewhere if there is an elsewhere, as long as its budget of such ends lasts."""
        spent = budget.get(number, 0) + 1
        if spent > MAX_LOSSES:
            self.move(number, _ERRORED)
        else:
            self.delay(number, now + seconds_before_lost(spent), lost_on=host)
        budget[number] = spent

    def _retry(self, number: int, now: float) -> None:
        used = self.failures.get(number, 0)
        policy = self.graph.policy(number)  # an edit may have changed it
        if used >= policy.max_retries:
            self.move(number, _ERRORED)
            return
        if policy.retry_delay > 0:
            self.delay(number, now + seconds_before_retry(policy, used + 1))
        else:
            self.queue_again(number)
        self.failures[number] = used + 1

    # -- what people ask ----------------------------------------------------------------------------------------------

    def kill(self) -> list[InFlight]:
        """A person asks for the end of the run: nothing new of it begins. Returns the started attempts, which are to be ended;
        those that have not started are to be asked back."""
        self.killing = True
        return [attempt for attempt in self.in_flight.values() if attempt.start_time is not None]

    def kill_tasks(self, numbers: Sequence[int]) -> tuple[list[int], list[InFlight]]:
        """A person asks for the end of tasks. Returns those that are KILLED now or once their attempt has ended, without those of
        which that was known already, and the attempts that are to be ended."""
        let_go(self, numbers)
        attempts = {number: self.in_flight[number] for number in numbers if number in self.in_flight}
        moved = self.kill_waiting(numbers)
        moved += [number for number, one in attempts.items() if not (one.killed if one.void else one.stopping)]
        for one in attempts.values():
            one.killed = one.void
        return moved, list(attempts.values())

    def go_on(self, now: Moment, asked: Container[int] | None) -> list[int]:
        """The run, if it has ended, is QUEUED again, with fresh budgets. Returns the QUEUED tasks whose budget was not fresh.

        Where a kill of the run left tasks that wait for nobody, only those of `asked` go on (None: all), and the others are
        stopped: a person asked for the end of all of them, and for these again.
        """
        if not self.has_ended:
            return []
        if asked is not None:
            self.stop([number for number in self.ready_or_delayed() if number not in asked])
        self.queue(now)
        fresh = self.forgive(self.failures.keys() | self.losses.keys() | self.comebacks.keys())
        self.end_delays(now.steady)
        return fresh

    def ready_or_delayed(self) -> list[int]:
        """The tasks that wait for capacity, or for a retry's delay, ascending. Of an ended run, a kill left them."""
        return sorted([*(number for queue in self.all_queues for number in queue), *(number for _, number in self.delayed)])

    def reset(self, numbers: Iterable[int], now: float) -> list[int]:
        """Queue ended tasks again; those and the others that are named get fresh budgets. None of them is in flight.

        Those that were stopped, or wait for a retry's delay, go on. Returns the numbers that moved, and the QUEUED ones whose
        budget was not fresh.
        """
        numbers = list(numbers)
        fresh = self.forgive(numbers)
        self.let_go_on(numbers)
        if self.delayed:
            self.end_delays(now, frozenset(numbers))
        moved = self.reopen(numbers)
        hold_back(self)
        return sorted({*fresh, *moved})

    def forgive(self, numbers: Iterable[int]) -> list[int]:
        """Give tasks fresh budgets. Returns those that have not ended and whose budget was not fresh, ascending."""
        fresh = []
        for number in numbers:
            used = self.failures.pop(number, 0) + self.losses.pop(number, 0) + self.comebacks.pop(number, 0)
            if used and self.phases[number] not in ENDED:
                fresh.append(number)
        return sorted(fresh)

    def describe(self, *, tags: Mapping[str, str], pool: str, parameters: Mapping[str, tuple[str, ...]]) -> None:
        """A person has said anew what the run is."""
        self.tags, self.pool, self.parameters = dict(tags), pool, parameters

    # -- the run itself -----------------------------------------------------------------------------------------------

    def _become(self, state: State, time: float) -> None:
        if state not in RUN_TRANSITIONS[self.state]:
            raise IllegalRunMove(self.run_id, self.state, state, self._story_of_run())
        self.state = state
        self.moves.append((state, time, self.ran_seconds))

    def _begin(self, time: float, since: float) -> None:
        """The attempt that began first, as far as is known, did so at a wall time, and has run since a steady time: the run is
        RUNNING since then, but not since before it was queued. (Hosts have clocks of their own.)"""
        self.running_since = max(since, self.queued_since)
        if self.state is State.QUEUED:
            time = max(time, self.submit_time)
            self._become(State.RUNNING, time)
            if self.start_time is None:
                self.start_time = time

    def ran_until(self, steady: float) -> float:
        """For how many seconds the run was RUNNING until then, all times together. A time in which it had ended is left out."""
        return self.ran_seconds + max(0.0, steady - self.running_since)

    def queue(self, now: Moment) -> None:
        """A run that has ended is QUEUED again, because a person asks for something that it has to do."""
        self._become(State.QUEUED, now.wall)
        self.stop_time, self.killing = None, False
        self.queued_since = now.steady

    def settle(self, now: Moment) -> None:
        """End the run if nothing is left that could go on. The machine calls this in each step that may have changed it."""
        self.steps += 1
        if self.has_ended or self.in_flight or (not self.killing and self.can_go_on):
            return
        self.ran_seconds, self.running_since = self.ran_until(now.steady), math.inf
        self._become(self.final_state, now.wall)
        self.stop_time = now.wall

    @property
    def has_ended(self) -> bool:
        """Whether the run goes on only if a person asks for it."""
        return self.state.has_ended

    @property
    def can_go_on(self) -> bool:
        """Whether a task waits for capacity or for the end of a delay only."""
        return bool(self.counts[Phase.READY] + self.counts[Phase.DELAYED])

    @property
    def final_state(self) -> State:
        """The state in which the run ends if nothing more happens."""
        if self.killing or self.counts[_KILLED] or self.stopped:
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

    # -- faults -------------------------------------------------------------------------------------------------------

    def _story(self, number: int) -> Iterator[str]:
        yield from super()._story(number)
        attempt = self.in_flight.get(number)
        if attempt is None:
            yield "no attempt of it is in flight"
        else:
            told = [name for name in ("stopping", "recalled", "void", "killed", "held") if getattr(attempt, name)]
            began = "has not started" if attempt.start_time is None else f"started at {attempt.start_time:.3f}"
            yield (
                f"attempt {attempt.attempt} of {attempt.number} is in flight on host {attempt.host} of pool {attempt.pool}: "
                f"it was assigned at {attempt.assign_time:.3f}, {began}, and is {', '.join(told) or 'to go on'}"
            )
        used = (kept.get(number, 0) for kept in (self.failures, self.losses, self.comebacks))
        yield "retries used: {}, losses: {}, came back after it had begun: {}".format(*used)
        yield from self._story_of_run()

    def _story_of_run(self) -> Iterator[str]:
        killing = ", and a person has asked for its end" if self.killing else ""
        yield f"the run is {self.state.name}{killing}; attempts in flight: {len(self.in_flight)}"
        for state, time, _ in self.moves:
            yield f"it became {state.name} at {time:.3f}, in this step"


def seconds_before_retry(policy: Policy, retry: int) -> float:
    """How long to wait before the retry of that number, from 1."""
    return min(MAX_DELAY, policy.retry_delay * 2.0 ** min(retry - 1, 64))


def seconds_before_lost(loss: int) -> float:
    """How long to wait before a task is attempted again after its loss of that number, from 1."""
    return min(LONGEST_PAUSE_OF_LOST, FIRST_PAUSE_OF_LOST * 2.0 ** min(loss - 1, 64))
