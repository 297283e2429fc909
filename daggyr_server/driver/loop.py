"""The loop round the core: events in, `Machine.handle`, commit, and only then act and answer.

The API and the executors put what happens into one inbox; the loop takes all that waits (batches form by themselves, never by
timer), commits the step's records in one tracker call, gives the commands to the executors, and answers. What arrives during
a commit joins the next step. A task's walk:

    submit      api calls `submit`; RunSubmitted goes in; the answer leaves after the commit of RunAdded
    assign      the machine places it; AttemptsAssigned is committed; the pool's executor gets the assignment
    fork        the executor's report of `started` goes in
    report      its output and result go in; they are committed with what follows; then the report is called durable
    acknowledge the executor may forget it

Only this file calls `Machine.handle` and `Tracker.commit`. It knows no executor and no tracker by name, and no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import replace

from daggyr.bounded import MAX_NOTE_BYTES, cut
from daggyr.v1.task_pb2 import LOST as LOST_OUTCOME
from daggyr.v1.task_pb2 import STDOUT, AttemptKey, AttemptResult, AttemptUpdate, Placement
from daggyr_server.core.commands import Key, RecallAttempts, StartAttempts, StopAttempts
from daggyr_server.core.events import (
    AttemptEnded,
    EditAsked,
    Event,
    HostGone,
    KillAsked,
    MarkAsked,
    RetryAsked,
    RunsForgotten,
    RunSubmitted,
)
from daggyr_server.core.graph.graph import Addition
from daggyr_server.core.graph.run import Run
from daggyr_server.core.machine import Machine
from daggyr_server.core.records import (
    AgentForgotten,
    AgentPinned,
    AttemptRecorded,
    OutputKept,
    Record,
    RunEdited,
    RunMoved,
)
from daggyr_server.core.states import Outcome
from daggyr_server.core.step import Refusal, Step
from daggyr_server.driver.assignments import assignment_batches
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.deletions import Deletions
from daggyr_server.driver.durations import Durations
from daggyr_server.driver.editing import Editing
from daggyr_server.driver.errors import Closing, Refused
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.recovery import restored
from daggyr_server.driver.reports import PoolReports, Reported, ToKeep, event_of
from daggyr_server.driver.spilled import SpilledTasks
from daggyr_server.executors.base import Executor
from daggyr_server.trackers.base import LostTracker, Tracker, TrackerError

log = logging.getLogger(__name__)

ASSIGNED_A_TURN = 1_000
TURNS = 6
MAX_UPDATES_A_STEP = 1_024  # more wait for the next one, so that answers do not
KEPT_ENDED_RUNS = 200  # ended runs in memory, where a tracker has them too
KEPT_ENDED_TASKS = 2_000_000  # and their tasks together
_PIECE_BYTES = 1024 * 1024


class Driver:
    """Owns the machine. All methods belong to one event loop."""

    def __init__(
        self,
        machine: Machine,
        tracker: Tracker,
        changes: Changes,
        generators: Generators,
        clock: Callable[[], float],
        *,
        durable: bool,
    ) -> None:
        """`durable`: the tracker can give ended runs back, so that not all of them need stay in memory."""
        self.machine = machine
        self.tracker = tracker
        self.changes = changes
        self.trouble: str | None = None  # why nothing can be made durable at the moment
        self.committed = 0  # records, since the start
        self.commits = Durations()
        self._unsettled: set[int] = set()  # runs of which more is decided than is durable
        self._settled = asyncio.Event()
        self.durable = durable
        self._ended: dict[int, int] = {}  # ended runs in memory -> how many tasks; asked for longest ago first
        self._loading = asyncio.Lock()
        self.editing = Editing(tracker, self.shelf, self._ask, self.find)
        self.deletions = Deletions(tracker, self._forgotten)
        self.executors: dict[str, Executor] = {}
        self._generators = generators
        self._clock = clock
        self._now = 0.0
        self._inbox: deque[Event | Reported | ToKeep] = deque()
        self._closed = False
        self._wake = asyncio.Event()
        self._waiting: dict[Hashable, asyncio.Future[int | None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._ready: dict[str, int] = {}
        self._demanding: dict[str, Executor] = {}

    # -- life ---------------------------------------------------------------------------------------------------------

    def shelf(self) -> SpilledTasks:
        """For what the tasks of an addition execute."""
        return SpilledTasks(self.tracker.folder)

    def reports(self, pool: str, *, mend: bool = True) -> PoolReports:
        """The ear to give to the executor of `pool`; `mend`: unless it checks by itself what it is told."""
        return PoolReports(pool, self._put, mend=mend)

    async def start(self, executors: Mapping[str, Executor]) -> None:
        """Open the executors, by pool, and begin to work. Raises ExecutorError, with all of them closed again."""
        self.executors = dict(executors)
        # Counting what is ready takes time; most executors cannot do anything about it.
        self._demanding = {name: executor for name, executor in executors.items() if type(executor).demand is not Executor.demand}
        try:
            for executor in self.executors.values():
                await executor.open()
            await self._restore()
        except BaseException:
            await self._close_executors()
            raise
        self._task = asyncio.create_task(self._loop(), name="driver")
        self.deletions.go_on(await self.tracker.deleting())

    async def _restore(self) -> None:
        """Go on with the runs that have not ended. Raises TrackerError."""
        events: list[Event] = []
        for run_id in await self.tracker.unfinished():
            stored = await self.tracker.load(run_id)
            if stored is not None:
                events.append(await restored(stored, self.shelf))
        if not events:
            return
        self._now = self._clock()
        step = self._handle(events)
        placed: dict[tuple[str, str], list[tuple[AttemptKey, Placement]]] = {}
        for run in self.machine.runs.values():
            for number, flight in run.in_flight.items():
                key = AttemptKey(run_id=run.run_id, task_number=flight.number, attempt=flight.attempt)
                placed.setdefault((flight.pool, flight.host), []).append((key, Placement(host=flight.host)))
                # Whether it was one when it was assigned is what counts.
                if run.graph.policy(flight.number).is_generator and run.counts_for(number, flight):
                    await self._generate_again((run.run_id, flight.number, flight.attempt))
        log.info("going on with %d runs, %d attempts of which may still run", len(events), sum(map(len, placed.values())))
        for pool, executor in self.executors.items():
            executor.recover([pair for (name, _), pairs in placed.items() if name == pool for pair in pairs])
        await self._finish([step], [], [])
        for pool, host in placed:
            if pool not in self.executors:
                result = AttemptResult(outcome=LOST_OUTCOME, notes=[f"the pool {pool} is not configured any more"])
                self._put(HostGone(pool=pool, host=host, result=result))
        self._wake.set()

    async def _generate_again(self, key: Key) -> None:
        """An earlier coordinator may have made durable some of what a generator printed; that does not come again."""
        self._generators.begin(key)
        offset = 0
        while pieces := await self.tracker.output(*key, STDOUT, offset, _PIECE_BYTES):
            for piece in pieces:
                self._generators.keep(key, STDOUT, piece.offset, piece.data)
                offset = piece.offset + len(piece.data)

    async def close(self) -> None:
        """Commit what has come in, let go of the executors and the tracker. Safe to call twice."""
        self._closed = True
        task, self._task = self._task, None
        await self.deletions.close()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._close_executors()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Closing("the server is going away"))
                future.exception()  # seen: whoever asked may have gone as well
        self._waiting.clear()
        await self.tracker.close()

    async def ended(self) -> None:
        """Return, or raise what went wrong, when the loop has ended; it only does if something is wrong or `close` was called."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _close_executors(self) -> None:
        for executor in self.executors.values():
            await executor.close()

    # -- what the API asks --------------------------------------------------------------------------------------------

    async def submit(
        self,
        *,
        request_id: str,
        tags: Mapping[str, str],
        pool: str,
        parameters: Mapping[str, tuple[str, ...]],
        addition: Addition,
        document: bytes,
    ) -> int:
        """Take a run; returns its id once it is durable. Raises Closing."""
        ticket = object()
        answer = await self._ask(
            ticket,
            RunSubmitted(
                ticket=ticket,
                request_id=request_id,
                tags=tags,
                pool=pool,
                parameters=parameters,
                addition=addition,
                document=document,
            ),
        )
        assert answer is not None
        return answer

    async def kill(self, run_id: int, numbers: tuple[int, ...] | None) -> None:
        """End a run, or some of its tasks; returns once that is durable. Raises Refused, Closing."""
        ticket = object()
        await self._ask(ticket, KillAsked(ticket=ticket, run_id=run_id, numbers=numbers))

    async def retry(self, run_id: int, numbers: tuple[int, ...] | None, *, downstream: bool) -> None:
        """Queue tasks again; returns once that is durable. Raises Refused, Closing."""
        ticket = object()
        await self._ask(ticket, RetryAsked(ticket=ticket, run_id=run_id, numbers=numbers, downstream=downstream))

    async def mark(self, run_id: int, numbers: tuple[int, ...], *, completed: bool) -> None:
        """Say that tasks are COMPLETED, or QUEUED; returns once that is durable. Raises Refused, Closing."""
        ticket = object()
        await self._ask(ticket, MarkAsked(ticket=ticket, run_id=run_id, numbers=numbers, completed=completed))

    async def keep_pin(self, agent_id: str, name: str, digest: bytes | None) -> None:
        """Make durable by which key's digest an agent is known, or that it is by none (executors.agent_pins). Raises Closing."""
        record = AgentForgotten(agent_id) if digest is None else AgentPinned(agent_id, name, digest)
        if self._closed:
            raise Closing("the server is going away")
        ticket = object()
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future

        def durable() -> None:
            self._waiting.pop(ticket, None)
            if not future.done():
                future.set_result(None)

        self._put(ToKeep(record, durable))
        await future

    async def find(self, run_id: int) -> Run | None:
        """A run, from the tracker if it is not in memory; None if there is none. Raises TrackerError, Closing."""
        run = self.machine.runs.get(run_id)
        if run is None:
            async with self._loading:  # one at a time: they may be large
                if run_id not in self.machine.runs:
                    stored = await self.tracker.load(run_id)
                    if stored is None:
                        return None
                    ticket = object()
                    await self._ask(ticket, replace(await restored(stored, self.shelf), ticket=ticket))
                run = self.machine.runs.get(run_id)
        if run is not None and run.has_ended:
            self._keep_ended(run)
        return run

    @contextlib.asynccontextmanager
    async def _forgotten(self, run_id: int) -> AsyncIterator[None]:
        """Has an ended run taken from memory; nobody brings it back while this lasts. Raises Refused, Closing."""
        async with self._loading:
            ticket = object()
            await self._ask(ticket, RunsForgotten(ticket=ticket, run_ids=(run_id,)))
            self._ended.pop(run_id, None)
            yield

    async def settled(self, run_id: int, *, patient: bool = False) -> None:
        """Return once all that is to be seen of a run is durable; in `trouble` at once, unless `patient`.

        What is read before the next `await` is settled.
        """
        while run_id in self._unsettled and (patient or self.trouble is None):
            await self._settled.wait()

    def _wake_readers(self) -> None:
        self._settled.set()
        self._settled = asyncio.Event()

    def _keep_ended(self, run: Run) -> None:
        """Let go of ended runs that nobody has asked about for longest."""
        self._ended.pop(run.run_id, None)
        self._ended[run.run_id] = run.graph.size
        tasks = sum(self._ended.values())
        forgotten = []
        while self.durable and len(self._ended) > 1 and (len(self._ended) > KEPT_ENDED_RUNS or tasks > KEPT_ENDED_TASKS):
            oldest = next(iter(self._ended))
            tasks -= self._ended.pop(oldest)
            forgotten.append(oldest)
        if forgotten:
            self._put(RunsForgotten(run_ids=tuple(forgotten)))

    async def _ask(self, ticket: object, event: Event) -> int | None:
        if self._task is None:
            raise Closing("the server is going away")
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self._put(event)
        # A caller that goes away does not take its question back: it is answered to nobody.
        return await asyncio.shield(future)

    def _put(self, entry: Event | Reported | ToKeep) -> None:
        self._inbox.append(entry)
        self._wake.set()

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if timer is not None:
                    timer.cancel()
                due = await self._step()
                timer = loop.call_later(max(0.0, due - self._clock()), self._wake.set) if due is not None else None
                # Between steps everybody else has a turn; to take a call and answer it needs several.
                for _ in range(TURNS):
                    await asyncio.sleep(0)
        finally:
            if timer is not None:
                timer.cancel()

    async def _step(self) -> float | None:
        # Wall clocks may be set back; the machine's time never goes back.
        self._now = max(self._now, self._clock())
        steps, kept, durables = await self._take()
        await self._finish(steps, kept, durables)
        if self._inbox:
            self._wake.set()
        return steps[-1].due

    async def _finish(self, steps: list[Step], kept: list[Record], durables: list[Callable[[], None]]) -> None:
        """Persist, then act."""
        records: list[Record] = [*kept, *(record for step in steps for record in step.records)]
        if records:
            await self._commit(records)
        if self._unsettled:
            self._unsettled.clear()
            self._wake_readers()
        for step in steps:
            await self._act(step)
            self._answer(step)
            self.changes.publish(step.changed)
            for record in step.records:
                if type(record) is RunMoved and record.state.has_ended:
                    self.changes.ended(record.run_id)
                    run = self.machine.runs.get(record.run_id)
                    if run is not None:
                        self._keep_ended(run)
                elif type(record) is RunEdited:
                    self.changes.restart(record.run_id)
                elif self._generators and type(record) is AttemptRecorded:
                    self._generators.forget(record[:3])  # one that is LOST printed in vain
        for durable in durables:
            durable()
        self._tell_demand()

    async def _commit(self, records: list[Record]) -> None:
        """Nothing may go on while records are not durable: a tracker in trouble is asked again until it is not."""
        loop = asyncio.get_running_loop()
        delay = 0.1
        while True:
            begun = loop.time()
            try:
                await self.tracker.commit(records)
                self.commits.add(loop.time() - begun)
                self.committed += len(records)
                if self.trouble is not None:
                    log.warning("state can be made durable again")
                    self.trouble = None
                return
            except LostTracker:
                raise
            except TrackerError as error:
                self.trouble = str(error)
                self._wake_readers()
                log.error("nothing new is started until this is mended: %s", error)
                await asyncio.sleep(delay)
                delay = min(5.0, 2 * delay)

    def _handle(self, events: Sequence[Event]) -> Step:
        """A step of the machine. What it decides is no one's to see before it is durable."""
        step = self.machine.handle(self._now, events)
        self._unsettled.update(step.changed)
        return step

    async def _take(self) -> tuple[list[Step], list[Record], list[Callable[[], None]]]:
        """Turn what waits in the inbox into steps; more than one only where a generator's tasks depend on what came before."""
        steps: list[Step] = []
        events: list[Event] = []
        kept: list[Record] = []
        durables: list[Callable[[], None]] = []
        budget = MAX_UPDATES_A_STEP
        inbox = self._inbox
        while inbox and budget > 0:
            entry = inbox.popleft()
            if type(entry) is EditAsked:
                # On its own: what earlier steps assign is looked up in the graph when they are carried out.
                if steps or events or durables:
                    inbox.appendleft(entry)
                else:
                    events.append(entry)
                break
            if type(entry) is ToKeep:
                kept.append(entry.record)
                durables.append(entry.durable)
                budget -= 1
                continue
            if type(entry) is not Reported:
                events.append(entry)  # type: ignore[arg-type]
                budget -= 1
                continue
            budget -= len(entry.updates)
            durables.append(entry.durable)
            for update in entry.updates:
                event = event_of(update)
                if event is None:
                    self._keep(update, kept)
                    continue
                events.append(event)
                if self._generators and type(event) is AttemptEnded:
                    await self._generate(events, steps)
        steps.append(self._handle(events))
        return steps, kept, durables

    def _keep(self, update: AttemptUpdate, kept: list[Record]) -> None:
        """Output of an attempt is kept while somebody waits for its end."""
        if not update.HasField("output"):
            return  # of a kind that a later version knows
        key, chunk = update.key, update.output
        run = self.machine.runs.get(key.run_id)
        if run is not None and run.current(key.task_number, key.attempt) is not None:
            kept.append(OutputKept(key.run_id, key.task_number, key.attempt, chunk.stream, chunk.offset, chunk.data))
            self._generators.keep((key.run_id, key.task_number, key.attempt), chunk.stream, chunk.offset, chunk.data)

    async def _generate(self, events: list[Event], steps: list[Step]) -> None:
        """If the last event is the end of a generator's attempt, put the tasks that it printed into it."""
        ended = events[-1]
        assert isinstance(ended, AttemptEnded)
        key = ended[:3]
        if key not in self._generators:
            return
        # The addition is made for the graph as it is: all that came before must be in it.
        events.pop()
        steps.append(self._handle(events))
        events.clear()
        events.append(ended)
        run = self.machine.runs.get(key[0])
        flight = run.current(key[1], key[2]) if run is not None else None
        counts = run is not None and flight is not None and run.counts_for(run.task_of(key[1]), flight)
        if ended.outcome is not Outcome.SUCCEEDED or run is None or not counts:
            self._generators.forget(key)
            return
        addition = await self._generators.addition(key, run, ended.result, self.shelf)
        if isinstance(addition, str):
            addition = cut(addition, MAX_NOTE_BYTES)
            ended.result.notes.extend(addition.splitlines())
            events[0] = ended._replace(refusal=addition)
        else:
            events[0] = ended._replace(addition=addition)

    async def _act(self, step: Step) -> None:
        given = 0
        for command in step.commands:
            executor = self.executors.get(command.pool)
            if executor is None:  # the pool is not configured any more; what it has is about to be LOST
                continue
            if isinstance(command, StartAttempts):
                graph = self.machine.runs[command.run_id].graph
                if any(policy.is_generator for policy in graph.policies):
                    for number, attempt in zip(command.numbers, command.attempts, strict=True):
                        if graph.policy(number).is_generator:
                            self._generators.begin((command.run_id, number, attempt))
                for batch in assignment_batches(command, graph):
                    executor.start(command.host, batch)
                    given += len(batch.assignments)
                    if given >= ASSIGNED_A_TURN:
                        given = 0
                        await asyncio.sleep(0)
            elif isinstance(command, StopAttempts):
                executor.stop(command.host, _keys(command.keys))
            elif isinstance(command, RecallAttempts):
                executor.recall(command.host, _keys(command.keys))

    def _answer(self, step: Step) -> None:
        for ticket, answer in step.answers.items():
            future = self._waiting.pop(ticket)
            if future.done():
                continue
            if isinstance(answer, Refusal):
                future.set_exception(Refused(answer))
                future.exception()  # seen: whoever asked may have gone
            else:
                future.set_result(answer)

    def _tell_demand(self) -> None:
        for name, executor in self._demanding.items():
            ready = self.machine.pools[name].ready
            if ready != self._ready.get(name, 0):
                self._ready[name] = ready
                executor.demand(ready)


def _keys(keys: Sequence[Key]) -> list[AttemptKey]:
    return [AttemptKey(run_id=run_id, task_number=number, attempt=attempt) for run_id, number, attempt in keys]
