"""The façade of the core: batches of facts in, records and orders out.

The driver owns one Machine and must keep to this:

 1. Call `handle(now, events)` with what has happened, in the order in which it happened.
 2. Commit the step's `records` to the tracker, all in one transaction.
 3. Only then carry out its `commands`, give its `answers`, acknowledge reports and publish its `changed` tasks.
 4. Call `handle` again when something has happened or `due` has come, whichever is first.

If the commit of step 2 never happens, nothing of the step may be told to anybody: the machine is then ahead of what is
durable and must be built again from the tracker.

A report that no longer concerns anything (because it is late or double, or its run is gone) changes nothing. A request that
cannot be granted is answered with a Refusal and changes no task. If `handle` raises, the machine is good for nothing more: build
it again from the tracker. The machine does no I/O, and never looks at a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from heapq import heappop
from typing import Any

from daggyr_server.core.commands import StartAttempts
from daggyr_server.core.events import (
    AttemptEnded,
    AttemptStarted,
    EditAsked,
    Event,
    HostChanged,
    HostGone,
    KillAsked,
    MarkAsked,
    Rehearsed,
    RetryAsked,
    RunRestored,
    RunsForgotten,
    RunSubmitted,
)
from daggyr_server.core.graph.faults import IllegalTransition
from daggyr_server.core.graph.in_flight import Sent
from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.graph.run import Run
from daggyr_server.core.moment import Moment
from daggyr_server.core.placing import recall
from daggyr_server.core.placing.host import Pause
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.records import AttemptRecorded, AttemptsAssigned, Record, RunAdded, TasksGenerated
from daggyr_server.core.requests import RequestHandlers
from daggyr_server.core.states import IN_VAIN, RAN, Outcome
from daggyr_server.core.step import HostPaused, Reason, Refusal, Step

_RECENT = 5  # records of a step that a fault tells
_MOST = 60  # characters of each value
_TOLD = ("run_id", "number", "numbers", "attempt", "attempts", "outcome", "state", "reason", "revision", "pool", "host", "time")


class Machine(RequestHandlers):
    """All runs and pools. Public attributes are for reading between calls of `handle`."""

    def __init__(self, pools: Iterable[str], *, next_run_id: int = 1) -> None:
        super().__init__(pools)
        self.requests: dict[str, int] = {}  # request id -> run id
        self._request_of: dict[int, str] = {}  # the same the other way
        self._next_run_id = next_run_id
        self._handlers: dict[type, Callable[[Any, Moment], None]] = {
            AttemptStarted: self._attempt_started,
            AttemptEnded: self._attempt_ended,
            RunSubmitted: self._run_submitted,
            RunRestored: self._run_restored,
            RunsForgotten: self._runs_forgotten,
            KillAsked: self._kill_asked,
            RetryAsked: self._retry_asked,
            MarkAsked: self._mark_asked,
            EditAsked: self._edit_asked,
            Rehearsed: self._rehearsed,
            HostChanged: self._host_changed,
            HostGone: self._host_gone,
        }

    def handle(self, now: Moment, events: Iterable[Event]) -> Step:
        """Take a batch of events; returns what follows. `now.steady` never goes back from call to call; `now.wall` may.

        Raises IllegalTransition and StaleAddition, which are faults of ours.
        """
        step = self._step = Step()
        handlers = self._handlers
        event: Event | None = None
        try:
            self._ring(now.steady)
            for event in events:
                handlers[type(event)](event, now)
            event = None
            for name in self._dirty:
                self._place(self.pools[name], now)
            self._dirty.clear()
            self._settle(self._touched, now)
        except IllegalTransition as fault:
            fault.add(_circumstances(step, event, now))
            raise
        dues = [pool.due for pool in self.pools.values() if pool.due is not None]
        if self.delays:
            dues.append(self.delays[0][0])
        step.due = min(dues, default=None)
        return step

    def _ring(self, now: float) -> None:
        """Make ready what has waited until now, and have pools place again that asked for it."""
        while self.delays and self.delays[0][0] <= now:
            due, run_id = heappop(self.delays)
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

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _attempt_started(self, event: AttemptStarted, now: Moment) -> None:
        run = self.runs.get(event.run_id)
        current = run.current(event.number, event.attempt) if run is not None else None
        if run is None or current is None:
            return
        run.started(run.task_of(event.number), current, event.start_time, now)
        if run.killing:  # the attempt was asked back, and started before it heard of that
            self._stop([current])
        self._touched[run.run_id] = run

    def _attempt_ended(self, event: AttemptEnded, now: Moment) -> None:
        run_id, number, attempt, outcome, seconds, result, addition, refusal = event
        run = self.runs.get(run_id)
        if run is None:
            return
        current = run.current(number, attempt)
        if current is None:
            return
        if addition is not None and refusal is None:
            refusal = self._no_such_pool(addition)
        sent, revision = current.sent, run.revision
        state = run.ended(run.task_of(number), current, outcome, now, seconds, addition, refusal)
        if seconds is not None:
            sent.queue.lasted(seconds)
        pool = self.pools[sent.pool]
        pool.ended(sent, outcome)
        if outcome in IN_VAIN:
            if not current.recalled:
                self._in_vain(pool, sent, outcome, now)
        elif pool.doubts.by_host and outcome in RAN:
            pool.ran(sent, now.steady)
        self._dirty[sent.pool] = None
        self._touched[run_id] = run
        if run.delayed:
            self._note_delay(run)
        records = self._step.records
        records.append(AttemptRecorded(run_id, number, attempt, outcome, sent.host, sent.host_name, sent.time, result, state))
        if run.revision != revision and addition is not None:
            records.append(TasksGenerated(run_id, number, attempt, run.revision, addition.deposit))

    # -- runs ---------------------------------------------------------------------------------------------------------

    def _run_submitted(self, event: RunSubmitted, now: Moment) -> None:
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
            made=now,
            offer=nobody,
        )
        run.extend(event.addition)
        self._next_run_id += 1
        self._take_in(run)
        self.requests[event.request_id], self._request_of[run_id] = run_id, event.request_id
        self._step.records.append(
            RunAdded(run_id, event.request_id, run.tags, event.pool, now.wall, event.document, event.deposit)
        )
        self._touched[run_id] = run
        self._step.answers[event.ticket] = run_id

    def _run_restored(self, event: RunRestored, now: Moment) -> None:
        run, run_id = event.run, event.run.run_id
        if event.ticket is not None:
            self._step.answers[event.ticket] = run_id
        if run_id in self.runs:
            return
        for policy in run.graph.policies:  # a pool that was taken out of the configuration has no hosts; its tasks wait
            self.pools.setdefault(policy.pool, Pool(policy.pool))
        self.requests[event.request_id], self._request_of[run_id] = run_id, event.request_id
        self._next_run_id = max(self._next_run_id, run_id + 1)
        if run.has_ended:
            self.runs[run_id] = run
            run.offers_to(self._offer)
            self._note_delay(run)
            self.tally.note(run)
            return
        for attempt in run.in_flight.values():
            self.pools[attempt.pool].adopt(attempt.sent)
        self._stop(event.ending)
        self._take_in(run)
        self._note_delay(run)
        self._touched[run_id] = run

    def _take_in(self, run: Run) -> None:
        """A run that was made is one of the machine's from now on."""
        self.runs[run.run_id] = run
        run.offers_to(self._offer)
        self._offer_all(run)

    def _runs_forgotten(self, event: RunsForgotten, now: Moment) -> None:
        if event.ticket is not None:
            going = [run_id for run_id in event.run_ids if (run := self.runs.get(run_id)) is not None and not run.has_ended]
            self._refused(event.ticket, f"run {going[0]} has not ended: kill it first" if going else None)
        for run_id in event.run_ids:
            run = self.runs.get(run_id)
            if run is not None and run.has_ended and not run.in_flight:
                if self._touched.pop(run_id, None) is not None:  # the run has ended in this very step
                    self._settle({run_id: run}, now)
                del self.runs[run_id]
                request_id = self._request_of.pop(run_id)
                if self.requests.get(request_id) == run_id:
                    del self.requests[request_id]
                self.tally.forget(run_id)
                for pool in self.pools.values():
                    pool.drop(run_id)

    # -- hosts --------------------------------------------------------------------------------------------------------

    def _host_changed(self, event: HostChanged, now: Moment) -> None:
        pool = self.pools[event.pool]
        pause = None
        if event.fault:
            pause = Pause(event.fault, None if event.pause is None else now.steady + event.pause)
        pool.change_host(
            event.host,
            event.name,
            event.resources,
            now.steady,
            open=event.open,
            ahead=event.ahead,
            draining=event.draining,
            pause=pause,
            shortage=event.shortage,
            limits=event.limits,
            until=None if event.ends is None else now.steady + event.ends,
        )
        if event.draining or (pause is not None and not event.keeps):
            for run_id in pool.shares.by_run:
                self._recall(recall.for_closed_host(pool, event.host, self.runs[run_id].unstarted()))
        self._dirty[event.pool] = None

    def _host_gone(self, event: HostGone, now: Moment) -> None:
        pool = self.pools[event.pool]
        lost = [
            AttemptEnded(run_id, attempt.number, attempt.attempt, Outcome.LOST, None, event.result)
            for run_id, share in pool.shares.by_run.items()
            if share.in_flight
            for attempt in self.runs[run_id].in_flight.values()
            if attempt.host == event.host and attempt.pool == event.pool
        ]
        for ended in lost:
            self._attempt_ended(ended, now)
        pool.remove_host(event.host)
        self._dirty[event.pool] = None

    def _in_vain(self, pool: Pool, sent: Sent, outcome: Outcome, now: Moment) -> None:
        """An attempt came to nothing, and nobody had asked it back: its host may be at fault.

        A host that drains, or has said before that it is at fault, hands back in good order; so does one that has left, and one
        that has said before that it takes few of this kind.
        """
        host = pool.hosts.get(sent.host)
        if outcome is Outcome.RETURNED and (host is None or not host.offered or sent.queue.wants.kind in host.limits):
            return
        doubt = pool.in_vain(sent, outcome, now.steady)
        if doubt is not None:
            self._step.paused.append(HostPaused(pool.name, sent.host_name, doubt.reason, doubt.until - now.steady))

    # -- what follows -------------------------------------------------------------------------------------------------

    def _place(self, pool: Pool, now: Moment) -> None:
        step, runs = self._step, self.runs
        for numbers, sent in pool.place(now):
            run_id = sent.queue.run_id
            attempts = runs[run_id].assign(numbers, sent)
            step.records.append(AttemptsAssigned(run_id, sent.host, sent.host_name, numbers, attempts, now.wall))
            step.commands.append(StartAttempts(pool.name, sent.host, run_id, numbers, attempts))
        for run_id, share in pool.shares.ranked.items():
            run = runs[run_id]
            self._recall(recall.for_priority(pool, share, run.all_queues, run.unstarted))
        if pool.look_again is not None and pool.look_again <= now.steady:
            waiting = [runs[run_id] for run_id in pool.shares.by_run]
            pool.looked(now.steady, some_wait=any(recall.waits(pool, queue) for run in waiting for queue in run.all_queues))
            for run in waiting:
                self._recall(recall.for_idle_hosts(pool, run.all_queues, run.unstarted, now.steady))
        pool.note_due(now.steady)


def nobody(queue: ReadyQueue) -> None:
    """Offer a queue to nobody: its run is only being made."""


def _circumstances(step: Step, event: Event | None, now: Moment) -> Iterator[str]:
    """What the machine was doing, a fact a line. Of events and records only names and numbers are told: documents and results
    are other people's."""
    yield f"the machine was {'placing tasks or ending runs' if event is None else f'handling {_brief(event)}'}, at {now.wall:.3f}"
    for record in step.records[-_RECENT:]:
        yield f"before that, in the same step, it recorded {_brief(record)}"


def _brief(fact: Event | Record) -> str:
    told = {name: getattr(fact, name, None) for name in _TOLD}
    shown = [
        f"{name}={value.name if isinstance(value, Enum) else str(value)[:_MOST]}"
        for name, value in told.items()
        if value is not None
    ]
    return f"{type(fact).__name__}({', '.join(shown)})"
