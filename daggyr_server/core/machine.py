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
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from daggyr_server.core.commands import Command, Key, RecallAttempts, StartAttempts, StopAttempts
from daggyr_server.core.events import (
    AttemptEnded,
    AttemptStarted,
    EditAsked,
    Event,
    HostChanged,
    HostGone,
    KillAsked,
    MarkAsked,
    RetryAsked,
    RunRestored,
    RunsForgotten,
    RunSubmitted,
)
from daggyr_server.core.graph.graph import Addition, Edit
from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.graph.refusals import edit_refused, kill_refused, mark_refused, retry_refused
from daggyr_server.core.graph.run import Run, changed_completed
from daggyr_server.core.graph.tally import Tally
from daggyr_server.core.placing import recall
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.records import (
    AttemptRecorded,
    AttemptsAssigned,
    Record,
    RunAdded,
    RunEdited,
    RunKillAsked,
    RunMoved,
    TasksGenerated,
    TasksMoved,
)
from daggyr_server.core.states import Outcome, Phase, State

_GONE: Sequence[int] = ()  # compared by identity


class Reason(Enum):
    """Why an event was not granted."""

    NOT_FOUND = "not found"
    NOT_NOW = "not now"
    CONFLICT = "conflict"  # another person was first
    TOO_LARGE = "too large"
    STALE = "stale"  # what was asked was made for a graph that has grown since


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
        self.tally = Tally()
        self._next_run_id = next_run_id
        self._step = Step()
        self._touched: dict[int, Run] = {}
        self._dirty: dict[str, None] = {}  # pools where something may fit now
        self.delays: list[tuple[float, int]] = []  # a heap of (due, run id)
        self.alarms: dict[int, float] = {}  # the earliest of each run in there
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            AttemptStarted: self._attempt_started,
            AttemptEnded: self._attempt_ended,
            RunSubmitted: self._run_submitted,
            RunRestored: self._run_restored,
            RunsForgotten: self._runs_forgotten,
            KillAsked: self._kill_asked,
            RetryAsked: self._retry_asked,
            MarkAsked: self._mark_asked,
            EditAsked: self._edit_asked,
            HostChanged: self._host_changed,
            HostGone: self._host_gone,
        }

    def handle(self, now: float, events: Iterable[Event]) -> Step:
        """Take a batch of facts. `now` is seconds since the epoch and never goes back between calls."""
        step = self._step = Step()
        self._ring(now)
        handlers = self._handlers
        for event in events:
            handlers[type(event)](event, now)
        for name in self._dirty:
            self._place(self.pools[name], now)
        self._dirty.clear()
        self._settle(now)
        dues = [pool.due for pool in self.pools.values() if pool.due is not None]
        if self.delays:
            dues.append(self.delays[0][0])
        step.due = min(dues, default=None)
        return step

    def _ring(self, now: float) -> None:
        """Wake what has waited for its time."""
        while self.delays and self.delays[0][0] <= now:
            due, run_id = heapq.heappop(self.delays)
            if self.alarms.get(run_id) == due:
                del self.alarms[run_id]
                run = self.runs.get(run_id)
                if run is None:
                    continue
                run.due(now)
                self._note_delay(run)
        for pool in self.pools.values():
            if pool.due is not None and pool.due <= now:
                self._dirty[pool.name] = None

    def _note_delay(self, run: Run) -> None:
        if run.delayed:
            due = run.delayed[0][0]
            if due < self.alarms.get(run.run_id, math.inf):
                self.alarms[run.run_id] = due
                heapq.heappush(self.delays, (due, run.run_id))

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _attempt_started(self, event: AttemptStarted, now: float) -> None:
        run = self.runs.get(event.run_id)
        flight = run.current(event.number, event.attempt) if run is not None else None
        if run is None or flight is None:
            return
        number = run.task_of(event.number)
        run.started(number, flight, event.start_time, now)
        if run.killing:  # it was being recalled, and started before it heard of that
            self._stop(run, [flight])
        self._touched[run.run_id] = run

    def _attempt_ended(self, event: AttemptEnded, now: float) -> None:
        run_id, number, attempt, outcome, seconds, result, addition, refusal = event
        run = self.runs.get(run_id)
        if run is None:
            return
        flight = run.current(number, attempt)
        if flight is None:
            return
        if addition is not None and refusal is None:
            refusal = self._no_such_pool(addition)
        sent, revision = flight.sent, run.revision
        state = run.ended(run.task_of(number), flight, outcome, now, seconds, addition, refusal)
        if seconds is not None:
            sent.queue.lasted(seconds)
        self.pools[sent.pool].ended(sent, outcome)
        self._dirty[sent.pool] = None
        self._touched[run_id] = run
        if run.delayed:
            self._note_delay(run)
        records = self._step.records
        records.append(AttemptRecorded(run_id, number, attempt, outcome, sent.host, sent.host_name, sent.time, result, state))
        if run.revision != revision:
            records.append(TasksGenerated(run_id, number, attempt, run.revision))

    # -- runs ---------------------------------------------------------------------------------------------------------

    def _run_submitted(self, event: RunSubmitted, now: float) -> None:
        known = self.requests.get(event.request_id)
        if known is not None:
            self._step.answers[event.ticket] = known
            return
        unknown = self._no_such_pool(event.addition)
        if unknown is not None:
            self._step.answers[event.ticket] = Refusal(Reason.NOT_FOUND, unknown)
            return
        run_id = self._next_run_id
        run = Run(
            run_id,
            tags=event.tags,
            pool=event.pool,
            parameters=event.parameters,
            submit_time=now,
            offer=self._offer,
        )
        run.extend(event.addition)
        self._next_run_id += 1
        self.runs[run_id] = run
        self.requests[event.request_id] = run_id
        self._step.records.append(RunAdded(run_id, event.request_id, run.tags, event.pool, now, event.document))
        self._touched[run_id] = run
        self._step.answers[event.ticket] = run_id

    def _run_restored(self, event: RunRestored, now: float) -> None:
        row = event.row
        run_id = row.run_id
        if event.ticket is not None:
            self._step.answers[event.ticket] = run_id
        if run_id in self.runs:
            return
        for addition in (one for grown in event.growths for one in (grown.additions if isinstance(grown, Edit) else [grown])):
            for policy in addition.policies:  # one that was taken out of the configuration has no hosts, and waits for some
                self.pools.setdefault(policy.pool, Pool(policy.pool))
        run = Run(
            run_id,
            tags=row.tags,
            pool=row.pool,
            parameters=event.parameters,
            submit_time=row.submit_time,
            offer=lambda queue: None,
        )
        flights = run.restore(event, now)
        self.runs[run_id] = run
        self.requests[row.request_id] = run_id
        self._next_run_id = max(self._next_run_id, run_id + 1)
        run.offers_to(self._offer)
        self._note_delay(run)
        if run.has_ended:
            self.tally.note(run)
            return
        for flight in flights:
            self.pools[flight.pool].adopt(flight.sent)
        asked = {number for number, state in zip(event.tasks.numbers, event.tasks.states, strict=True) if state == State.KILLED}
        asked |= {flight.number for number, flight in run.in_flight.items() if not run.counts_for(number, flight)}
        self._stop(run, [flight for flight in flights if run.killing or flight.number in asked])
        for queue in run.queues:
            if queue:
                self._offer(queue)
        self._touched[run_id] = run

    def _runs_forgotten(self, event: RunsForgotten, now: float) -> None:
        if event.ticket is not None:
            going = [run_id for run_id in event.run_ids if (run := self.runs.get(run_id)) is not None and not run.has_ended]
            self._refused(event.ticket, f"run {going[0]} has not ended: kill it first" if going else None)
        for run_id in event.run_ids:
            run = self.runs.get(run_id)
            if run is not None and run.has_ended and not run.in_flight:
                del self.runs[run_id]
                self.tally.forget(run_id)
                for pool in self.pools.values():
                    pool.drop(run)
                self._touched.pop(run_id, None)
                run.forgotten()
        forgotten = {request_id for request_id, run_id in self.requests.items() if run_id not in self.runs}
        for request_id in forgotten:
            del self.requests[request_id]

    def _no_such_pool(self, addition: Addition) -> str | None:
        unknown = {policy.pool: None for policy in addition.policies if policy.pool not in self.pools}
        return f"there is no pool {', '.join(unknown)}; there are {', '.join(self.pools)}" if unknown else None

    def _offer(self, queue: ReadyQueue) -> None:
        """A run's queue got its first ready task."""
        if not queue.run.killing:
            self.pools[queue.policy.pool].offer(queue)
            self._dirty[queue.policy.pool] = None

    def _kill_asked(self, event: KillAsked, now: float) -> None:
        run = self._asked_run(event.ticket, event.run_id, now)
        if run is None:
            return
        named = self._named(run, event.ticket, event.numbers)
        if named is _GONE or self._refused(event.ticket, kill_refused(run, named)):
            return
        if named is None:
            run.killing = True
            self._step.records.append(RunKillAsked(run.run_id, now))
            for pool in self.pools.values():
                pool.drop(run)
            self._stop(run, [flight for flight in run.in_flight.values() if flight.start_time is not None])
            self._recall(run, recall.unstarted(run))
        else:
            run.let_go(named)
            flights = {number: run.in_flight[number] for number in named if number in run.in_flight}
            moved = run.kill_waiting(named)
            moved += [number for number, flight in flights.items() if not (flight.killed if flight.void else flight.stopping)]
            if moved:
                self._step.records.append(_moved(run, moved, State.KILLED, "kill", now))
            for flight in flights.values():
                flight.killed = flight.void
            self._stop(run, flights.values())
        self._touched[run.run_id] = run
        # What was kept for the killed is free for others.
        self._dirty.update(dict.fromkeys(self.pools))

    def _retry_asked(self, event: RetryAsked, now: float) -> None:
        run = self._asked_run(event.ticket, event.run_id, now)
        if run is None:
            return
        named = self._named(run, event.ticket, event.numbers)
        if named is _GONE:
            return
        numbers: Sequence[int]
        if named is None:
            live = run.graph.live
            numbers = [live + index for index, phase in enumerate(run.phases[live:]) if phase in (Phase.ERRORED, Phase.KILLED)]
        else:
            numbers = run.graph.descendants(named) if event.downstream else named
        if self._refused(event.ticket, retry_refused(run, named, numbers)):
            return
        self._asked_moves(run, [*run.go_on(now), *run.reset(numbers)], State.QUEUED, "retry", now)

    def _mark_asked(self, event: MarkAsked, now: float) -> None:
        run = self._asked_run(event.ticket, event.run_id, now)
        if run is None:
            return
        named = self._named(run, event.ticket, event.numbers)
        if named is _GONE or named is None or self._refused(event.ticket, mark_refused(run, named, completed=event.completed)):
            return
        if event.completed and all(run.phases[number] == Phase.COMPLETED for number in named):
            return  # it is so already
        fresh = run.go_on(now)
        if event.completed:
            self._asked_moves(run, fresh, State.QUEUED, "mark", now)
            self._asked_moves(run, run.complete(named), State.COMPLETED, "mark", now)
        else:
            self._asked_moves(run, [*fresh, *run.reset(named)], State.QUEUED, "mark", now)

    def _edit_asked(self, event: EditAsked, now: float) -> None:
        run = self._asked_run(event.ticket, event.run_id, now)
        if run is None:
            return
        if len(run.graph.edits) != event.edits:
            message = f"run {run.run_id} was edited meanwhile: it has revision {run.revision} now, look at it again"
            self._step.answers[event.ticket] = Refusal(Reason.CONFLICT, message)
            return
        if run.revision != event.revision or event.completed not in (None, changed_completed(event.edit.carry, run.phases)):
            self._step.answers[event.ticket] = Refusal(Reason.STALE, f"run {run.run_id} goes on too fast: ask again")
            return
        if self._refused(event.ticket, edit_refused(run)):
            return
        unknown = next(filter(None, map(self._no_such_pool, event.edit.additions)), None)
        if unknown is not None:
            self._step.answers[event.ticket] = Refusal(Reason.NOT_FOUND, unknown)
            return
        for pool in self.pools.values():
            pool.drop(run)
        run.offers_to(lambda queue: None)
        queued, stopped = run.edit(event.edit, event.again, now)
        run.offers_to(self._offer)
        run.tags, run.pool, run.parameters = dict(event.tags), event.pool, event.parameters
        self._step.records.append(RunEdited(run.run_id, run.revision, event.document, run.tags, run.pool, event.edit.kept, now))
        flights = [run.in_flight[number] for number in stopped]
        void = [flight for flight in flights if flight.void]
        if void:
            numbers, attempts = [flight.number for flight in void], [flight.attempt for flight in void]
            self._step.records.append(TasksMoved(run.run_id, numbers, attempts, State.QUEUED, "edit", now))
        self._asked_moves(run, queued, State.QUEUED, "edit", now)
        self._stop(run, flights)
        self._note_delay(run)
        self._step.answers[event.ticket] = len(run.graph.edits)

    def _asked_moves(self, run: Run, moved: Iterable[int], state: State, reason: str, now: float) -> None:
        """Record what a person moved, and offer what is ready because of it."""
        told = [number for number in moved if not run.graph.kind(number)]
        if told:
            self._step.records.append(_moved(run, told, state, reason, now))
        for queue in run.queues:
            if queue:
                self._offer(queue)
        self._touched[run.run_id] = run
        self._dirty.update(dict.fromkeys(self.pools))

    def _asked_run(self, ticket: Hashable, run_id: int, now: float) -> Run | None:
        run = self.runs.get(run_id)
        if run is None:
            self._step.answers[ticket] = Refusal(Reason.NOT_FOUND, f"there is no run {run_id}")
            return None
        run.settle(now)
        return run

    def _named(self, run: Run, ticket: Hashable, numbers: Sequence[int] | None) -> Sequence[int] | None:
        """What a person named, with the numbers that it has by now: an edit may have come in between. _GONE, with the refusal
        given, if there is something that the run does not have any more."""
        if numbers is None or all(number >= run.graph.live for number in numbers):
            return numbers
        found = [run.graph.newest(number) for number in numbers]
        if None in found:
            message = f"run {run.run_id} was edited meanwhile, and has not all of these tasks any more: look at it again"
            self._step.answers[ticket] = Refusal(Reason.CONFLICT, message)
            return _GONE
        return [number for number in found if number is not None]

    def _refused(self, ticket: Hashable, message: str | None) -> bool:
        self._step.answers[ticket] = Refusal(Reason.NOT_NOW, message) if message is not None else None
        return message is not None

    # -- hosts --------------------------------------------------------------------------------------------------------

    def _host_changed(self, event: HostChanged, now: float) -> None:
        pool = self.pools[event.pool]
        pool.change_host(event.host, event.name, event.resources, open=event.open, ahead=event.ahead, draining=event.draining)
        if event.draining:
            for run, flights in recall.for_drain(pool, event.host):
                self._recall(run, flights)
        self._dirty[event.pool] = None

    def _host_gone(self, event: HostGone, now: float) -> None:
        pool = self.pools[event.pool]
        lost = [
            AttemptEnded(run.run_id, flight.number, flight.attempt, Outcome.LOST, None, event.result)
            for run in [share.run for share in pool.shares.by_run.values() if share.in_flight]
            for flight in run.in_flight.values()
            if flight.host == event.host and flight.pool == event.pool
        ]
        for ended in lost:
            self._attempt_ended(ended, now)
        pool.remove_host(event.host)
        self._dirty[event.pool] = None

    # -- what follows -------------------------------------------------------------------------------------------------

    def _place(self, pool: Pool, now: float) -> None:
        step = self._step
        for numbers, sent in pool.place(now):
            run = sent.queue.run
            attempts = run.assign(numbers, sent)
            step.records.append(AttemptsAssigned(run.run_id, sent.host, sent.host_name, numbers, attempts, now))
            step.commands.append(StartAttempts(pool.name, sent.host, run.run_id, numbers, attempts))
        for share in pool.shares.ranked.values():
            self._recall(share.run, recall.for_priority(pool, share))
        if pool.look_again is not None and pool.look_again <= now:
            for run, flights in recall.for_idle_hosts(pool, now):
                self._recall(run, flights)
        pool.note_due(now)

    def _stop(self, run: Run, flights: Iterable[InFlight]) -> None:
        by_host: dict[tuple[str, str], list[Key]] = {}
        for flight in flights:
            if not flight.stopping:
                flight.stopping = True
                by_host.setdefault((flight.pool, flight.host), []).append((run.run_id, flight.number, flight.attempt))
        self._step.commands += [StopAttempts(pool, host, keys) for (pool, host), keys in by_host.items()]

    def _recall(self, run: Run, flights: Iterable[tuple[int, InFlight]]) -> None:
        by_host: dict[tuple[str, str], list[Key]] = {}
        for _, flight in flights:
            run.recall(flight)
            by_host.setdefault((flight.pool, flight.host), []).append((run.run_id, flight.number, flight.attempt))
        self._step.commands += [RecallAttempts(pool, host, keys) for (pool, host), keys in by_host.items()]

    def _settle(self, now: float) -> None:
        """End runs that have nothing left to do, and collect what clients should hear of."""
        step = self._step
        for run_id, run in self._touched.items():
            run.settle(now)
            self.tally.note(run)
            step.records += [
                RunMoved(run_id, state, time, run.task_states(), run.command_states())
                if state.has_ended
                else RunMoved(run_id, state, time)
                for state, time in run.moves
            ]
            run.moves.clear()
            step.changed[run_id] = run.changed
            run.changed = []
        self._touched.clear()


def _moved(run: Run, numbers: Sequence[int], state: State, reason: str, now: float) -> TasksMoved:
    # Of a task in flight, what counts is recorded under the number that the attempt has, if that counts.
    flights = {number: flight for number in numbers if (flight := run.in_flight.get(number)) and run.counts_for(number, flight)}
    known = [flights[number].number if number in flights else number for number in numbers]
    ended = [run.attempts[number] - (number in flights) for number in numbers]
    return TasksMoved(run.run_id, known, ended, state, reason, now)
