"""The façade of the core: batches of facts in, records and orders out.

The driver owns one Machine and must keep to this:

 1. Call `handle(now, events)` with what has happened, in the order in which it happened.
 2. Commit the step's `records` to the tracker, all in one transaction.
 3. Only then carry out its `commands`, give its `answers`, acknowledge reports and publish its `changed` tasks.
 4. Call `handle` again when something has happened or `due` has come, whichever is first.

If the commit of step 2 never happens, nothing of the step may be told to anybody: the machine is then ahead of what is
durable and must be built again from the tracker.

Events that no longer concern anything (late, double, of a run that is gone) change nothing. An event that cannot be granted
is answered with a Refusal and changes nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from daggyr_server.core.commands import Command, Key, RecallAttempts, StartAttempts, StopAttempts
from daggyr_server.core.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    HostChanged,
    HostGone,
    KillAsked,
    RetryAsked,
    RunSubmitted,
)
from daggyr_server.core.pool import Pool
from daggyr_server.core.ready import ReadyQueue
from daggyr_server.core.records import (
    AttemptRecorded,
    AttemptsAssigned,
    Record,
    RunAdded,
    RunMoved,
    TasksGenerated,
    TasksMoved,
)
from daggyr_server.core.run import InFlight, Run
from daggyr_server.core.states import ENDED, Outcome, Phase, State


class Reason(Enum):
    """Why an event was not granted."""

    NOT_FOUND = "not found"
    NOT_NOW = "not now"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to an event that cannot be granted; nothing has changed."""

    reason: Reason
    message: str


@dataclass(slots=True)
class Step:
    """What follows from one batch of events."""

    records: list[Record] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    answers: dict[Hashable, int | Refusal | None] = field(default_factory=dict)
    changed: dict[int, list[int]] = field(default_factory=dict)  # run id -> tasks whose state clients see changed
    due: float | None = None  # call again then, even if nothing happens


class Machine:
    """All runs and pools. Public attributes are for reading between calls of `handle`."""

    def __init__(self, pools: Iterable[str], *, next_run_id: int = 1) -> None:
        self.runs: dict[int, Run] = {}
        self.pools = {name: Pool(name) for name in pools}
        self.requests: dict[str, int] = {}  # request id -> run id
        self._next_run_id = next_run_id
        self._step = Step()
        self._touched: set[int] = set()
        self._dirty: set[str] = set()
        self._delays: list[tuple[float, int]] = []  # a heap of (due, run id)
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            AttemptStarted: self._attempt_started,
            AttemptEnded: self._attempt_ended,
            RunSubmitted: self._run_submitted,
            KillAsked: self._kill_asked,
            RetryAsked: self._retry_asked,
            HostChanged: self._host_changed,
            HostGone: self._host_gone,
        }

    def handle(self, now: float, events: Iterable[Event]) -> Step:
        """Take a batch of facts. `now` is seconds since the epoch and never goes back between calls."""
        step = self._step = Step()
        while self._delays and self._delays[0][0] <= now:
            run = self.runs.get(heapq.heappop(self._delays)[1])
            if run is not None:
                run.due(now)
                self._note_delay(run)
        handlers = self._handlers
        for event in events:
            handlers[type(event)](event, now)
        for name in self._dirty:
            self._place(self.pools[name], now)
        self._dirty.clear()
        self._settle(now)
        if self._delays:
            step.due = self._delays[0][0]
        return step

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _attempt_started(self, event: AttemptStarted, now: float) -> None:
        run = self.runs.get(event.run_id)
        flight = run.current(event.number, event.attempt) if run is not None else None
        if run is None or flight is None:
            return
        began = run.state
        run.started(event.number, flight, event.start_time)
        self._moved_on(run, began, now)
        if run.killing and not flight.stopping:  # it was being recalled, and started before it heard of that
            self._stop(run, [(event.number, flight)])
        self._touched.add(run.run_id)

    def _attempt_ended(self, event: AttemptEnded, now: float) -> None:
        run_id, number, attempt, outcome, seconds, result, addition, refusal = event
        run = self.runs.get(run_id)
        if run is None:
            return
        flight = run.current(number, attempt)
        if flight is None:
            return
        began, revision = run.state, run.revision
        state = run.ended(number, flight, outcome, now, addition, refusal)
        if seconds is not None:
            run.queues[flight.policy_index].lasted(seconds)
        self.pools[flight.pool].ended(run, flight.host, flight.needs)
        self._dirty.add(flight.pool)
        self._touched.add(run_id)
        self._moved_on(run, began, now)
        if run.delayed:
            self._note_delay(run)
        records = self._step.records
        records.append(
            AttemptRecorded(run_id, number, attempt, outcome, flight.host, flight.host_name, flight.assign_time, result, state)
        )
        if run.revision != revision:
            records.append(TasksGenerated(run_id, number, attempt, run.revision))

    def _moved_on(self, run: Run, before: State, now: float) -> None:
        if run.state is not before:
            self._step.records.append(RunMoved(run.run_id, run.state, now))

    def _note_delay(self, run: Run) -> None:
        if run.delayed:
            entry = (run.delayed[0][0], run.run_id)
            if not self._delays or entry != self._delays[0]:
                heapq.heappush(self._delays, entry)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def _run_submitted(self, event: RunSubmitted, now: float) -> None:
        known = self.requests.get(event.request_id)
        if known is not None:
            self._step.answers[event.ticket] = known
            return
        run_id = self._next_run_id
        self._next_run_id += 1
        run = Run(
            run_id,
            tags=event.tags,
            pool=event.pool,
            parameters=event.parameters,
            submit_time=now,
            offer=self._offer,
        )
        self.runs[run_id] = run
        self.requests[event.request_id] = run_id
        self._step.records.append(RunAdded(run_id, event.request_id, run.tags, event.pool, now, event.document))
        run.extend(event.addition)
        self._touched.add(run_id)
        self._step.answers[event.ticket] = run_id

    def _offer(self, queue: ReadyQueue) -> None:
        """A run's queue got its first ready task."""
        if not queue.run.killing:
            self.pools[queue.policy.pool].offer(queue)
            self._dirty.add(queue.policy.pool)

    def _kill_asked(self, event: KillAsked, now: float) -> None:
        run = self._asked_run(event.ticket, event.run_id)
        if run is None:
            return
        if event.numbers is None:
            self._kill_run(run, event.ticket)
        else:
            self._kill_tasks(run, event.numbers, event.ticket, now)

    def _kill_run(self, run: Run, ticket: Hashable) -> None:
        if run.state not in (State.QUEUED, State.RUNNING):
            self._refuse(ticket, f"run {run.run_id} has ended already: it is {run.state.name}")
            return
        run.killing = True
        for pool in self.pools.values():
            pool.drop(run)
        self._stop(run, [pair for pair in run.in_flight.items() if pair[1].start_time is not None])
        self._recall(run, [pair for pair in run.in_flight.items() if pair[1].start_time is None])
        self._touched.add(run.run_id)
        self._step.answers[ticket] = None

    def _kill_tasks(self, run: Run, numbers: tuple[int, ...], ticket: Hashable, now: float) -> None:
        if not any(Phase(run.phases[number]) not in ENDED and not run.graph.kind(number) for number in numbers):
            self._refuse(ticket, f"nothing to kill: {_named(run, numbers)} ended already")
            return
        moved = run.kill_waiting(numbers)
        if moved:
            self._step.records.append(TasksMoved(run.run_id, moved, State.KILLED, "kill", now))
        self._stop(run, [(number, run.in_flight[number]) for number in numbers if number in run.in_flight])
        self._touched.add(run.run_id)
        self._step.answers[ticket] = None

    def _retry_asked(self, event: RetryAsked, now: float) -> None:
        run = self._asked_run(event.ticket, event.run_id)
        if run is None:
            return
        if event.numbers is None:
            if run.state in (State.QUEUED, State.RUNNING):
                self._refuse(event.ticket, f"run {run.run_id} has not ended: it is {run.state.name}")
                return
            numbers = [number for number, phase in enumerate(run.phases) if Phase(phase) in (Phase.ERRORED, Phase.KILLED)]
        else:
            numbers = run.descendants(event.numbers) if event.downstream else sorted(set(event.numbers))
            busy = [number for number in numbers if number in run.in_flight]
            if busy:
                self._refuse(event.ticket, f"{_named(run, busy)} still runs: wait for it, or kill it first")
                return
            named = [number for number in event.numbers if Phase(run.phases[number]) not in ENDED]
            if named and run.state in (State.QUEUED, State.RUNNING):
                self._refuse(event.ticket, f"{_named(run, named)} has not ended: it will run by itself")
                return
            grown = [
                number
                for number in numbers
                if run.phases[number] == Phase.COMPLETED and run.graph.policy(number).is_generator and not run.graph.kind(number)
            ]
            if grown:
                message = f"{_named(run, grown)} is a generator whose tasks are part of the run already: submit a new run instead"
                self._refuse(event.ticket, message)
                return
        before = run.state
        moved = run.reset(numbers)
        self._step.records.append(TasksMoved(run.run_id, moved, State.QUEUED, "retry", now))
        self._moved_on(run, before, now)
        for queue in run.queues:
            if queue.head() is not None:
                self._offer(queue)
        self._touched.add(run.run_id)
        self._step.answers[event.ticket] = None

    def _asked_run(self, ticket: Hashable, run_id: int) -> Run | None:
        run = self.runs.get(run_id)
        if run is None:
            self._step.answers[ticket] = Refusal(Reason.NOT_FOUND, f"there is no run {run_id}")
        return run

    def _refuse(self, ticket: Hashable, message: str) -> None:
        self._step.answers[ticket] = Refusal(Reason.NOT_NOW, message)

    # -- hosts --------------------------------------------------------------------------------------------------------

    def _host_changed(self, event: HostChanged, now: float) -> None:
        self.pools[event.pool].change_host(
            event.host, event.name, event.resources, open=event.open, ahead=event.ahead, draining=event.draining
        )
        self._dirty.add(event.pool)

    def _host_gone(self, event: HostGone, now: float) -> None:
        lost = [
            AttemptEnded(run.run_id, number, flight.attempt, Outcome.LOST, None, event.result)
            for run in self.runs.values()
            for number, flight in run.in_flight.items()
            if flight.host == event.host and flight.pool == event.pool
        ]
        for ended in lost:
            self._attempt_ended(ended, now)
        self.pools[event.pool].remove_host(event.host)
        self._dirty.add(event.pool)

    # -- what follows -------------------------------------------------------------------------------------------------

    def _place(self, pool: Pool, now: float) -> None:
        step = self._step
        for queue, host, numbers in pool.place(now):
            run = queue.run
            attempts = run.assign(numbers, queue, host.host, host.name, now)
            step.records.append(AttemptsAssigned(run.run_id, host.host, host.name, numbers, attempts, now))
            step.commands.append(StartAttempts(pool.name, host.host, run.run_id, numbers, attempts))
        for share in list(pool.shares.values()):
            if len(share.queues) > 1 or share.run.unstarted:
                self._make_way(share.run, list(share.queues.values()))

    def _make_way(self, run: Run, queues: list[ReadyQueue]) -> None:
        """Recall what was sent ahead, for tasks of higher priority that found no room."""
        for queue in queues:
            if queue.head() is None:
                continue
            lower = {
                index
                for index, count in run.unstarted.items()
                if count
                and run.queues[index].policy.priority < queue.policy.priority
                and run.queues[index].policy.pool == queue.policy.pool
            }
            if lower:
                found = [
                    pair
                    for pair in run.in_flight.items()
                    if pair[1].policy_index in lower and pair[1].start_time is None and not pair[1].recalled
                ]
                self._recall(run, found[: len(queue)])

    def _stop(self, run: Run, flights: Iterable[tuple[int, InFlight]]) -> None:
        by_host: dict[tuple[str, str], list[Key]] = {}
        for number, flight in flights:
            if not flight.stopping:
                flight.stopping = True
                by_host.setdefault((flight.pool, flight.host), []).append((run.run_id, number, flight.attempt))
        self._step.commands += [StopAttempts(pool, host, keys) for (pool, host), keys in by_host.items()]

    def _recall(self, run: Run, flights: Iterable[tuple[int, InFlight]]) -> None:
        by_host: dict[tuple[str, str], list[Key]] = {}
        for number, flight in flights:
            if not flight.recalled:
                run.recall(flight)
                by_host.setdefault((flight.pool, flight.host), []).append((run.run_id, number, flight.attempt))
        self._step.commands += [RecallAttempts(pool, host, keys) for (pool, host), keys in by_host.items()]

    def _settle(self, now: float) -> None:
        """End runs that have nothing left to do, and collect what clients should hear of."""
        for run_id in self._touched:
            run = self.runs[run_id]
            ended = run.ended_state
            if ended is not None:
                run.end(ended, now)
                self._step.records.append(RunMoved(run_id, ended, now))
            self._step.changed[run_id] = run.changed
            run.changed = []
        self._touched.clear()


def _named(run: Run, numbers: Iterable[int]) -> str:
    names = [run.graph.task_id(number) for number in numbers]
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
