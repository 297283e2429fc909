"""One step of the machine while it is made: what comes out of it, and the moves that all kinds of events share.

`Stepper` is the lowest part of the machine: it has the runs and the pools, offers ready tasks to pools, makes orders of attempts
that are to end or to come back, and at the end of a step lets runs end. `requests.py` and `machine.py` build on it. It takes no
event itself.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from daggyr_server.core.commands import Command, Key, RecallAttempts, StopAttempts
from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.tally import Tally
from daggyr_server.core.moment import Moment
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.records import Record, RunMoved, TasksStopped


class Reason(Enum):
    """Why an event was not granted."""

    NOT_FOUND = "not found"
    GROWN = "grown"  # tasks that generators made would have to go first
    NOT_NOW = "not now"  # the state of a run or of tasks speaks against it
    CONFLICT = "conflict"  # another person was first
    TOO_LARGE = "too large"
    STALE = "stale"  # what was asked was made for a graph that has grown since


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that cannot be granted. No task has changed."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class HostPaused:
    """A host on which attempts came to nothing is given nothing for a while; for the log."""

    pool: str
    host: str  # its name
    reason: str
    seconds: float


@dataclass(slots=True)
class Step:
    """What follows from one batch of events."""

    records: list[Record] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    answers: dict[Hashable, int | Refusal | None] = field(default_factory=dict)
    changed: dict[int, list[int]] = field(default_factory=dict)  # run id -> tasks whose state clients see changed
    paused: list[HostPaused] = field(default_factory=list)
    due: float | None = None  # the steady time to call again, even if nothing happens


class Stepper:
    """All runs and pools, and the step that is being made. Public attributes are for reading between calls of `handle`."""

    def __init__(self, pools: Iterable[str]) -> None:
        self.runs: dict[int, Run] = {}
        self.pools = {name: Pool(name) for name in pools}
        self.tally = Tally()
        self.delays: list[tuple[float, int]] = []  # a heap of (due, run id); dues are steady
        self.alarms: dict[int, float] = {}  # the earliest of each run in there
        self._step = Step()
        self._touched: dict[int, Run] = {}
        self._dirty: dict[str, None] = {}  # pools where something may fit now

    def _offer(self, queue: ReadyQueue) -> None:
        """A queue of a run got its first ready task."""
        run = self.runs[queue.run_id]
        if not run.killing:
            name = queue.policy.pool
            self.pools[name].offer(queue, run.ranked)
            self._dirty[name] = None

    def _offer_all(self, run: Run) -> None:
        """Offer all queues of a run that have ready tasks."""
        for queue in run.all_queues:
            if queue:
                self._offer(queue)

    def _stop(self, attempts: Iterable[InFlight]) -> None:
        """Order the end of attempts, of each once."""
        self._step.commands += [
            StopAttempts(pool, host, keys)
            for (pool, host), keys in _keys(attempt for attempt in attempts if attempt.ask_end()).items()
        ]

    def _recall(self, attempts: Iterable[InFlight]) -> None:
        """Order that attempts come back. None of them has started or was asked back before."""
        attempts = list(attempts)
        for attempt in attempts:
            attempt.ask_back()
        self._step.commands += [RecallAttempts(pool, host, keys) for (pool, host), keys in _keys(attempts).items()]

    def _note_delay(self, run: Run) -> None:
        """Wake when the first of the run's delays is over."""
        if run.delayed:
            due = run.delayed[0][0]
            if due < self.alarms.get(run.run_id, math.inf):
                self.alarms[run.run_id] = due
                heapq.heappush(self.delays, (due, run.run_id))

    def _settle(self, touched: dict[int, Run], now: Moment) -> None:
        """End those of the touched runs that have nothing left to do, and collect what clients should hear of all of them."""
        step = self._step
        for run_id, run in touched.items():
            run.settle(now)
            self.tally.note(run)
            step.records += [
                RunMoved(run_id, state, time, run.task_states(), run.command_states(), ran)
                if state.has_ended
                else RunMoved(run_id, state, time, ran_seconds=ran)
                for state, time, ran in run.moves
            ]
            run.moves.clear()
            if run.restopped:
                step.records.append(TasksStopped(run_id, run.told_stopped()))
            step.changed[run_id] = run.changed
            run.changed = []
        touched.clear()


def _keys(attempts: Iterable[InFlight]) -> dict[tuple[str, str], list[Key]]:
    """What hosts know attempts by, by pool and host."""
    by_host: dict[tuple[str, str], list[Key]] = {}
    for attempt in attempts:
        key = (attempt.sent.queue.run_id, attempt.number, attempt.attempt)
        by_host.setdefault((attempt.pool, attempt.host), []).append(key)
    return by_host
