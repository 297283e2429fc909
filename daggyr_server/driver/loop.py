"""The loop round the core: events in, `Machine.handle`, commit, and only then act and answer.

The driver (driver.py) makes the one `Loop` and runs it. What people ask and what executors tell waits in the inbox. The loop
takes what has come, commits the step's records in one call of the tracker, gives the commands to the executors, and answers. What
comes during a commit joins the next step: batches form by themselves, never by a timer. Nobody else calls `Machine.handle` and
`Tracker.commit` while a coordinator runs. Nothing here knows an executor or a tracker by name, or gRPC.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from daggyr.backoff import Backoff
from daggyr.v1.task_pb2 import AttemptKey, AttemptUpdate
from daggyr_server.core.commands import Command, RecallAttempts, StartAttempts, StopAttempts
from daggyr_server.core.events import AttemptEnded, EditAsked, Event, Rehearsed
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.machine import Machine
from daggyr_server.core.records import AttemptRecorded, OutputKept, Record, RunEdited, RunMoved
from daggyr_server.core.step import Step
from daggyr_server.driver.assignments import assignment_batches
from daggyr_server.driver.careful import CarefulCalls
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.clocks import Clock
from daggyr_server.driver.durability import Durability
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.inbox import Inbox, Reported, TasksMade, ToKeep
from daggyr_server.driver.lives import Lives
from daggyr_server.driver.reports import event_of
from daggyr_server.driver.set_aside import EndsSetAside, SetAside
from daggyr_server.executors.base import Executor
from daggyr_server.trackers.base import LostTracker, Tracker, TrackerError

log = logging.getLogger(__name__)

ASSIGNED_A_TURN = 1_000
TURNS = 6
MAX_UPDATES_A_STEP = 1_024  # More updates wait for the next step, so that answers need not wait for them.
BYTES_OF_AN_UPDATE = 2_048  # Output counts as an update for each of these, because a commit of many bytes takes long.
_ALONE = frozenset({EditAsked, Rehearsed})  # they may replace a run's graph
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0  # seconds, before a commit that did not succeed is tried again


class Loop:
    """Owns what goes on between the inbox, the machine, the tracker and the executors. All methods belong to one event loop."""

    def __init__(
        self,
        machine: Machine,
        tracker: Tracker,
        inbox: Inbox,
        executors: Mapping[str, Executor],
        changes: Changes,
        generators: Generators,
        aside: EndsSetAside,
        lives: Lives,
        durability: Durability,
        clock: Clock,
        keep: Callable[[], Keeping],
        *,
        ended: Callable[[Run], None],
    ) -> None:
        """`executors` may be filled until the loop runs; `keep` makes the lists of what tasks execute; `ended` is told of runs
        that have ended."""
        self._machine = machine
        self._tracker = tracker
        self._inbox = inbox
        self._executors = executors
        self._changes = changes
        self._generators = generators
        self._aside = aside
        self._lives = lives
        self._durability = durability
        self._clock = clock
        self._keep = keep
        self._ended = ended
        self._now = clock()  # of the steps that are being made
        self._held: list[Command] | None = []  # what executors are to do, until they are told of the runs of before
        self._demanding: dict[str, Executor] = {}
        self._demanded: dict[str, int] = {}  # what each of these was last told
        self.calls = CarefulCalls()

    async def release(self) -> None:
        """Executors are told what they are to do from now on, and first what has waited for that."""
        held, self._held = self._held, None
        await self._command(held or [])

    async def run(self) -> None:
        """Do all that has come and all that is due, until it is cancelled. Raises what keeps it from that for good."""
        # Counting what is ready takes time, and most executors cannot do anything about it.
        self._demanding = {
            name: executor for name, executor in self._executors.items() if type(executor).demand is not Executor.demand
        }
        loop, wake = asyncio.get_running_loop(), self._inbox.wake
        timer: asyncio.TimerHandle | None = None
        try:
            while True:
                await wake.wait()
                wake.clear()
                if timer is not None:
                    timer.cancel()
                self._now = self._clock()
                steps, kept, durables = await self._take()
                await self._finish(steps, kept, durables)
                if self._inbox.entries:
                    wake.set()
                due = steps[-1].due
                timer = loop.call_later(max(0.0, due - self._clock().steady), wake.set) if due is not None else None
                # Between steps everybody else has a turn; taking a call and answering it needs several.
                for _ in range(TURNS):
                    await asyncio.sleep(0)
        finally:
            if timer is not None:
                timer.cancel()
            await self._aside.close()

    async def _finish(self, steps: list[Step], kept: list[Record], durables: list[Callable[[], None]]) -> None:
        """Persist, then act."""
        records: list[Record] = [*kept, *(record for step in steps for record in step.records)]
        if records:
            await self._commit(records)
        self._durability.all_settled()
        for step in steps:
            await self._command(step.commands)
            self._inbox.answer(step.answers)
            self._changes.publish(step.changed)
            self._note(step.records)
            for paused in step.paused:
                log.warning(
                    "host %s of pool %s is given nothing for %g s: %s", paused.host, paused.pool, paused.seconds, paused.reason
                )
        self.calls.durable(durables)
        self._tell_demand()

    async def _commit(self, records: list[Record]) -> None:
        """Commit, however often that takes: while records are not durable, nothing may go on."""
        loop = asyncio.get_running_loop()
        backoff: Backoff | None = None  # made when the first commit fails, which is seldom
        while True:
            begun = self._durability.committing_since = loop.time()
            try:
                await self._tracker.commit(records)
                break
            except LostTracker:
                raise
            except TrackerError as error:
                self._durability.committing_since = None
                self._durability.in_trouble(str(error))
                log.error("nothing new is started until this is mended: %s", error)
                backoff = backoff or Backoff(_FIRST_DELAY, _LONGEST_DELAY)
                await asyncio.sleep(backoff.next())
        self._durability.committing_since = None
        if self._durability.trouble is not None:
            log.warning("state can be made durable again")
        self._durability.committed(len(records), loop.time() - begun)

    def _handle(self, events: Sequence[Event]) -> Step:
        """A step of the machine. What it decides is no one's to see before it is durable."""
        step = self._machine.handle(self._now, events)
        self._durability.decided(step.changed)
        return step

    async def _take(self) -> tuple[list[Step], list[Record], list[Callable[[], None]]]:
        """Turn what waits in the inbox into steps: one, or several where a generator's tasks depend on what came before."""
        steps: list[Step] = []
        events: list[Event] = []
        kept: list[Record] = []
        durables: list[Callable[[], None]] = []
        budget = MAX_UPDATES_A_STEP
        inbox, generators, all_aside, lives = self._inbox.entries, self._generators, self._aside, self._lives
        while inbox and budget > 0:
            entry = inbox.popleft()
            if type(entry) is not Reported:
                if all_aside.pending and all_aside.hold_back(entry):
                    continue
                if type(entry) in _ALONE:
                    # It has a step of its own: what earlier steps assign is looked up in the graph when they are carried out.
                    if steps or events or durables:
                        inbox.appendleft(entry)
                    else:
                        events.append(entry)  # type: ignore[arg-type]
                    break
                budget -= 1
                if type(entry) is ToKeep:
                    kept.append(entry.record)
                    durables.append(partial(self._inbox.answer, {entry.ticket: None}))
                elif type(entry) is TasksMade:
                    ended, told = all_aside.take(entry)
                    events.append(ended)
                    durables += told
                else:
                    events.append(entry)  # type: ignore[arg-type]
                continue
            budget -= len(entry.updates)
            last_aside: SetAside | None = None  # the end that is taken last, of those among these updates
            for update in entry.updates:
                if (lives.earlier or update.key.life != lives.own) and not self._counts(update.key):
                    continue
                event = event_of(update)
                if event is None:
                    budget -= self._keep_output(update, kept) // BYTES_OF_AN_UPDATE
                    continue
                if generators.printed and type(event) is AttemptEnded and event[:3] in generators.printed:
                    aside = all_aside.set_aside(event, self._machine.runs.get(event.run_id))
                    if aside is not None:
                        last_aside = aside if last_aside is None or last_aside.place < aside.place else last_aside
                        continue
                    # The tasks are made for the graph as it is, so that all that came before must be in it.
                    steps.append(self._handle(events))
                    events = [await generators.completed(event, self._machine.runs.get(event.run_id), self._keep)]
                    continue
                events.append(event)
            (durables if last_aside is None else last_aside.durables).append(entry.durable)
        steps.append(self._handle(events))
        return steps, kept, durables

    def _counts(self, key: AttemptKey) -> bool:
        """Whether a report is of this tracker's attempt, and not of another life's with the same numbers."""
        if self._lives.counts(key):
            return True
        run = self._machine.runs.get(key.run_id)
        if run is not None and run.current(key.task_number, key.attempt) is not None:
            self._lives.warn(key)
        return False

    def _keep_output(self, update: AttemptUpdate, kept: list[Record]) -> int:
        """Keep a piece of an attempt's output as long as somebody waits for the attempt's end. Returns how many bytes it has."""
        if not update.HasField("output"):
            return 0  # A later version has other kinds of updates.
        key, chunk = update.key, update.output
        run = self._machine.runs.get(key.run_id)
        if run is not None and run.current(key.task_number, key.attempt) is not None:
            kept.append(OutputKept(key.run_id, key.task_number, key.attempt, chunk.stream, chunk.offset, chunk.data))
            self._generators.keep((key.run_id, key.task_number, key.attempt), chunk.stream, chunk.offset, chunk.data)
        return len(chunk.data)

    async def _command(self, commands: Sequence[Command]) -> None:
        """Give commands to the executors. Everybody else has turns in between."""
        if self._held is not None:
            self._held += commands
            return
        given, calls = 0, self.calls
        for command in commands:
            executor = self._executors.get(command.pool)
            if executor is None:  # The pool is not configured any more; what it has is about to be LOST.
                continue
            if isinstance(command, StartAttempts):
                graph = self._machine.runs[command.run_id].graph
                if any(policy.is_generator for policy in graph.policies):
                    for number, attempt in zip(command.numbers, command.attempts, strict=True):
                        if graph.policy(number).is_generator:
                            self._generators.begin((command.run_id, number, attempt))
                for batch in assignment_batches(command, graph, self._lives.own):
                    calls.start(command.pool, executor, command.host, batch)
                    given += len(batch.assignments)
                    if given >= ASSIGNED_A_TURN:
                        given = 0
                        await asyncio.sleep(0)
            elif isinstance(command, StopAttempts):
                calls.stop(command.pool, executor, command.host, self._lives.keys(command.keys))
            elif isinstance(command, RecallAttempts):
                calls.recall(command.pool, executor, command.host, self._lives.keys(command.keys))

    def _note(self, records: Sequence[Record]) -> None:
        """Tell the other parts of the driver what a step's records mean to them."""
        for record in records:
            if type(record) is RunMoved and record.state.has_ended:
                self._changes.ended(record.run_id)
                run = self._machine.runs.get(record.run_id)
                if run is not None:
                    self._ended(run)
            elif type(record) is RunEdited:
                self._changes.restart(record.run_id)
            elif type(record) is AttemptRecorded and (self._generators.printed or self._lives.earlier):
                self._generators.forget(record[:3])  # A generator that is LOST printed in vain.
                self._lives.forget(record[:3])

    def _tell_demand(self) -> None:
        if self._held is not None:
            return
        for name, executor in self._demanding.items():
            ready = self._machine.pools[name].ready
            if ready != self._demanded.get(name, 0):
                self._demanded[name] = ready
                self.calls.demand(name, executor, ready)
