"""The client's service: translates requests for the driver and its answers for the wire, and decides nothing.

Registered on the listener by the entry point. Each method's errors stand in runs.proto.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, TypeVar

import grpc

from daggyr.v1.run_pb2 import STATE_COMPLETED, STATE_QUEUED, RunSummary
from daggyr.v1.run_pb2 import Task as TaskMessage
from daggyr.v1.runs_pb2 import (
    AGENT_STATE_CONNECTED,
    AGENT_STATE_DISCONNECTED,
    AGENT_STATE_DRAINING,
    TASK_EDIT_KIND_ADDED,
    TASK_EDIT_KIND_CHANGED,
    TASK_EDIT_KIND_QUEUED_AGAIN,
    TASK_EDIT_KIND_REMOVED,
    Agent,
    DeleteRunRequest,
    DeleteRunResponse,
    DrainAgentRequest,
    DrainAgentResponse,
    EditRunChunk,
    EditRunResponse,
    ExplainTaskResponse,
    GetRunRequest,
    GetTaskRequest,
    KillRunRequest,
    ListAgentsRequest,
    ListAgentsResponse,
    ListPoolsRequest,
    ListPoolsResponse,
    ListRunsRequest,
    ListRunsResponse,
    ListTasksRequest,
    ListTasksResponse,
    MarkTasksRequest,
    Pool,
    PruneRunsRequest,
    PruneRunsResponse,
    ReadOutputRequest,
    ReadOutputResponse,
    RetryRunRequest,
    RunChange,
    SubmitRunChunk,
    SubmitRunRequest,
    SubmitRunResponse,
    TaskChange,
    WatchRunRequest,
)
from daggyr.v1.runs_pb2 import TaskEdit as TaskEditMessage
from daggyr.v1.runs_pb2_grpc import RunsServicer
from daggyr.v1.task_pb2 import STDERR, STDOUT
from daggyr_server.api import views
from daggyr_server.api.output import read_output
from daggyr_server.api.reasons import reasons
from daggyr_server.api.statuses import fitting, of_specification
from daggyr_server.core.graph import Addition
from daggyr_server.core.machine import Reason
from daggyr_server.core.run import Run
from daggyr_server.core.segments import Kind
from daggyr_server.core.states import STATE_OF, Phase, State
from daggyr_server.driver import Closing, Driver, Refused
from daggyr_server.edits import Change, Plan, TaskEdit
from daggyr_server.executors.agent import AgentExecutor
from daggyr_server.spec import (
    PoolLimits,
    RunSpec,
    SpecificationError,
    decode_json,
    encode_json,
    expand,
    run_spec_from_message,
)
from daggyr_server.trackers.base import StateChange, StoredAttempt, TrackerError

MAX_REQUEST_ID_BYTES = 128
MAX_RUNS_A_PAGE = 1_000
MAX_TASKS_A_PAGE = 10_000
MAX_EDITS_A_PAGE = 1_000
LARGE_RUN = 20_000  # tasks
MAX_CHANGED_TASKS = 2_000  # in one RunChange
WATCH_SECONDS = 0.1  # between two messages of a watch; what changes meanwhile goes together

_CODES = {
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.NOT_NOW: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CONFLICT: grpc.StatusCode.ABORTED,
    Reason.STALE: grpc.StatusCode.ABORTED,
    Reason.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
_ENDED = (State.COMPLETED, State.ERRORED, State.KILLED)
_EDIT_KINDS = {
    Change.CHANGED: TASK_EDIT_KIND_CHANGED,
    Change.ADDED: TASK_EDIT_KIND_ADDED,
    Change.REMOVED: TASK_EDIT_KIND_REMOVED,
    Change.QUEUED_AGAIN: TASK_EDIT_KIND_QUEUED_AGAIN,
}
_TOLD = (Phase.ERRORED, Phase.KILLED)  # a change to these carries how the last attempt ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the configuration lets clients submit."""

    pools: Mapping[str, PoolLimits]
    executors: Mapping[str, str]  # pool -> its executor's name
    default_pool: str
    max_bytes: int
    max_tasks: int


class RunsService(RunsServicer):
    """See runs.proto."""

    def __init__(self, driver: Driver, limits: Limits) -> None:
        self._driver = driver
        self._limits = limits

    # -- submitting ---------------------------------------------------------------------------------------------------

    async def SubmitRun(self, request: SubmitRunRequest, context: Context) -> SubmitRunResponse:
        known = await self._known_request(request.request_id, context)
        if known is not None:
            return known

        def read() -> tuple[RunSpec, bytes]:
            spec = run_spec_from_message(request.spec)
            return spec, encode_json(spec)

        try:
            spec, document = await asyncio.to_thread(read)
        except SpecificationError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, of_specification(error))
        return await self._submit(request.request_id, spec, document, context)

    async def SubmitRunStream(self, request_iterator: AsyncIterator[SubmitRunChunk], context: Context) -> SubmitRunResponse:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("chunk") != "header":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message carries the header")
        header = first.header
        known = await self._known_request(header.request_id, context)
        if known is not None:
            return known
        document = await self._document(request_iterator, context)
        try:
            limits = self._limits
            spec = await asyncio.to_thread(
                decode_json, document, pool=header.pool, pools=limits.pools, default_pool=limits.default_pool
            )
            spec = spec.with_overrides(tags=header.tags, pool=header.pool)
        except SpecificationError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, of_specification(error))
        return await self._submit(header.request_id, spec, document, context)

    async def _document(self, chunks: AsyncIterator[SubmitRunChunk] | AsyncIterator[EditRunChunk], context: Context) -> bytes:
        """What comes behind the header."""
        pieces: list[bytes] = []
        size = 0
        async for chunk in chunks:
            if chunk.WhichOneof("chunk") != "data":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "after the header, messages carry data")
            size += len(chunk.data)
            if size > self._limits.max_bytes:
                message = f"the specification is larger than {self._limits.max_bytes:,} bytes ([server] max_run_bytes)"
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
            pieces.append(chunk.data)
        return b"".join(pieces)

    async def _known_request(self, request_id: str, context: Context) -> SubmitRunResponse | None:
        if not 0 < len(request_id.encode()) <= MAX_REQUEST_ID_BYTES:
            message = f"a request_id has 1 to {MAX_REQUEST_ID_BYTES} bytes"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        known = self._driver.machine.requests.get(request_id)
        if known is None:
            known = await self._asked(self._driver.tracker.find_request(request_id), context)
        return SubmitRunResponse(run_id=known) if known is not None else None

    async def _submit(self, request_id: str, spec: RunSpec, document: bytes, context: Context) -> SubmitRunResponse:
        limits = self._limits
        try:
            addition: Addition = await asyncio.to_thread(expand, spec, pools=limits.pools, default_pool=limits.default_pool)
        except SpecificationError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, of_specification(error))
        tasks = sum(segment.size for segment in addition.segments)
        if tasks > limits.max_tasks:
            message = f"the run has {tasks:,} tasks; the most is {limits.max_tasks:,} ([server] max_run_tasks)"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        submitted = self._driver.submit(
            request_id=request_id,
            tags=spec.tags or {},
            pool=spec.pool or limits.default_pool,
            parameters=spec.run_parameters(),
            addition=addition,
            document=document,
        )
        return SubmitRunResponse(run_id=await self._asked(submitted, context))

    # -- reading ------------------------------------------------------------------------------------------------------

    async def ListRuns(self, request: ListRunsRequest, context: Context) -> ListRunsResponse:
        before = await _token(request.page_token, context)
        most = min(request.page_size or 100, MAX_RUNS_A_PAGE)
        wanted = _Wanted(request)
        response = ListRunsResponse()
        while True:
            rows = await self._asked(self._driver.tracker.rows(before=before, limit=MAX_RUNS_A_PAGE), context)
            for row in rows:
                await self._driver.settled(row.run_id)
                run = self._driver.machine.runs.get(row.run_id)
                state = run.state if run is not None else row.state
                if not wanted.admits(row.tags, state, row.submit_time):
                    continue
                if len(response.runs) == most:
                    response.next_page_token = str(response.runs[-1].run_id)
                    return response
                response.runs.append(self._summary_now(run) if run is not None else views.stored_summary(row))
            if len(rows) < MAX_RUNS_A_PAGE:
                return response
            before = rows[-1].run_id

    async def GetRun(self, request: GetRunRequest, context: Context) -> RunSummary:
        run = await self._run(request.run_id, context)
        summary = await self._summary(run)
        with contextlib.suppress(TrackerError):  # in trouble, which the notes tell: what is in memory is told all the same
            summary.history.extend(views.history(await self._driver.tracker.history(run.run_id, None)))
        return summary

    async def ListTasks(self, request: ListTasksRequest, context: Context) -> ListTasksResponse:
        run = await self._run(request.run_id, context)
        number = max(await _token(request.page_token, context) or 0, run.graph.live)
        most = min(request.page_size or 1_000, MAX_TASKS_A_PAGE)
        states = {State(state) for state in request.states if state}
        wanted = [phase for phase in Phase if not states or STATE_OF[phase] in states]
        response = ListTasksResponse(run_id=run.run_id)
        await self._driver.settled(run.run_id)
        while len(response.tasks) < most:
            found = _next_in(run.phases, wanted, number)
            if found is None:
                return response
            response.tasks.append(views.task_summary(run, found))
            number = found + 1
        if _next_in(run.phases, wanted, number) is not None:
            response.next_page_token = str(number)
        return response

    async def GetTask(self, request: GetTaskRequest, context: Context) -> TaskMessage:
        run = await self._run(request.run_id, context)
        number = await self._number(run, request.task_id, context, before=True)
        stored = await self._attempts(run, number, context)
        history: list[StateChange] = []
        for known in reversed(run.graph.lineage(number)):
            history += await self._asked(self._driver.tracker.history(run.run_id, known), context)
        await self._learn_parents(run)
        await self._driver.settled(run.run_id)
        message = views.task(run, _by_now(run, number), stored)
        message.history.extend(views.history(history))
        return message

    async def ExplainTask(self, request: GetTaskRequest, context: Context) -> ExplainTaskResponse:
        run = await self._run(request.run_id, context)
        number = await self._number(run, request.task_id, context)
        stored = await self._attempts(run, number, context)
        await self._learn_parents(run)
        await self._driver.settled(run.run_id)
        number = _by_now(run, number)
        return ExplainTaskResponse(
            run_id=run.run_id,
            state=int(views.state_of(run, number)),  # type: ignore[arg-type]
            reasons=reasons(run, number, self._driver.machine, stored),
        )

    async def WatchRun(self, request: WatchRunRequest, context: Context) -> AsyncIterator[RunChange]:
        run = await self._run(request.run_id, context)
        changes = self._driver.changes
        seq = request.change_seq
        await self._driver.settled(run.run_id, patient=True)
        if not seq:
            seq = changes.seq(run.run_id)
            yield RunChange(run=self._summary_now(run))
        while True:
            await self._driver.settled(run.run_id, patient=True)
            ended = run.state in _ENDED
            newest = changes.seq(run.run_id)
            numbers = changes.after(run.run_id, seq)
            if numbers is None:
                message = f"changes of run {run.run_id} since {seq} are no longer kept: read the run again and watch from 0"
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, message)
            if newest > seq or (ended and seq == request.change_seq):
                summary = self._summary_now(run)
                told = numbers if request.tasks else []
                for start in range(0, max(1, len(told)), MAX_CHANGED_TASKS):
                    part = told[start : start + MAX_CHANGED_TASKS]
                    # Only with the last part has the watcher seen all up to the newest change.
                    summary.change_seq = newest if start + MAX_CHANGED_TASKS >= len(told) else seq
                    # What an edit took away has no state to tell.
                    changed = [await self._task_change(run, number, context) for number in part if number >= run.graph.live]
                    yield RunChange(run=summary, tasks=changed)
                seq = newest
            if ended and changes.seq(run.run_id) == seq:
                return
            await changes.wait(run.run_id, seq)
            if run.state not in _ENDED:
                await asyncio.sleep(WATCH_SECONDS)

    async def _task_change(self, run: Run, number: int, context: Context) -> TaskChange:
        change = TaskChange(
            task_id=run.graph.task_id(number),
            task_number=number,
            state=int(views.state_of(run, number)),  # type: ignore[arg-type]
            attempt=run.attempts[number],
        )
        if run.phases[number] in _TOLD or run.failures.get(number):
            stored = await self._attempts(run, number, context)
            if stored and stored[-1].attempt == change.attempt:
                result = stored[-1].result
                change.outcome = result.outcome
                change.notes.extend(result.notes)
                if result.HasField("exit_code"):
                    change.exit_code = result.exit_code
                if result.HasField("signal"):
                    change.signal = result.signal
        return change

    async def ReadOutput(self, request: ReadOutputRequest, context: Context) -> AsyncIterator[ReadOutputResponse]:
        run = await self._run(request.run_id, context)
        number = await self._number(run, request.task_id, context, before=True)
        stream = request.stream or STDOUT
        if stream not in (STDOUT, STDERR):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"there is no output stream {stream}")
        if request.attempt > run.attempts[number]:
            message = f"task {request.task_id!r} of run {run.run_id} has had {run.attempts[number]} attempts so far"
            await context.abort(grpc.StatusCode.NOT_FOUND, fitting(message))
        try:
            async for answer in read_output(
                self._driver, run, number, request.attempt, stream, request.offset, follow=request.follow
            ):
                yield answer
        except TrackerError as error:
            await _abort(error, context)

    # -- steering -----------------------------------------------------------------------------------------------------

    async def KillRun(self, request: KillRunRequest, context: Context) -> RunSummary:
        run = await self._run(request.run_id, context)
        numbers = await self._named(run, request.tasks, context)
        await self._asked(self._driver.kill(run.run_id, numbers), context)
        return await self._summary(run)

    async def RetryRun(self, request: RetryRunRequest, context: Context) -> RunSummary:
        run = await self._run(request.run_id, context)
        numbers = await self._named(run, request.tasks, context)
        if request.downstream and numbers is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "downstream of which task? Name one, or leave downstream out")
        await self._asked(self._driver.retry(run.run_id, numbers, downstream=request.downstream), context)
        return await self._summary(run)

    async def MarkTasks(self, request: MarkTasksRequest, context: Context) -> RunSummary:
        run = await self._run(request.run_id, context)
        numbers = await self._named(run, request.tasks, context)
        if numbers is None or request.state not in (STATE_COMPLETED, STATE_QUEUED):
            message = "name tasks, and the state to mark them with: COMPLETED or QUEUED"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        await self._asked(self._driver.mark(run.run_id, numbers, completed=request.state == STATE_COMPLETED), context)
        return await self._summary(run)

    async def EditRun(self, request_iterator: AsyncIterator[EditRunChunk], context: Context) -> AsyncIterator[EditRunResponse]:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("chunk") != "header":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message carries the header")
        header = first.header
        run = await self._find(header.run_id, context)
        # Whoever edits it while this one sends its document is first.
        edits, revision = (len(run.graph.edits), run.revision) if isinstance(run, Run) else (0, 0)
        # A call that ends while its client still sends would end there with an error of gRPC's own: all of it is read first.
        document = await self._document(request_iterator, context)
        if isinstance(run, str):
            await context.abort(grpc.StatusCode.NOT_FOUND, run)
        if header.revision not in (0, revision):
            message = f"run {run.run_id} has revision {revision}, not {header.revision}: look at it again"
            await context.abort(grpc.StatusCode.ABORTED, message)
        limits = self._limits
        try:
            default_pool = run.pool
            spec = await asyncio.to_thread(decode_json, document, pools=limits.pools, default_pool=default_pool)
            if header.plan:
                plan = await self._asked(self._driver.plan(run, spec, pools=limits.pools, downstream=header.downstream), context)
                async for response in self._planned(run, plan, context):
                    yield response
                return
            await self._asked(
                self._driver.edit(
                    run, spec, document, edits, pools=limits.pools, downstream=header.downstream, most=limits.max_tasks
                ),
                context,
            )
        except SpecificationError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, of_specification(error))
        yield EditRunResponse(run=await self._summary(run))

    async def _planned(self, run: Run, plan: Plan, context: Context) -> AsyncIterator[EditRunResponse]:
        """What would happen, a page at a time; others have their turn in between."""
        tasks = plan.tasks()
        summary = await self._summary(run)
        while True:
            if run.graph.edits and run.graph.live != plan.snapshot.live:
                await context.abort(grpc.StatusCode.ABORTED, f"run {run.run_id} was edited meanwhile: look at it again")
            page = [_task_edit(edit) for edit in islice(tasks, MAX_EDITS_A_PAGE)]
            yield EditRunResponse(run=summary, tasks=page)
            if len(page) < MAX_EDITS_A_PAGE:
                return
            await asyncio.sleep(0)

    async def DeleteRun(self, request: DeleteRunRequest, context: Context) -> DeleteRunResponse:
        if not request.run_id:
            await context.abort(grpc.StatusCode.NOT_FOUND, "which run is to be taken away? Name its id")
        run = await self._run(request.run_id, context)
        if not run.has_ended:
            message = f"run {run.run_id} has not ended: it is {run.state.name}; kill it first"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        await self._asked(self._driver.delete(run.run_id), context)
        return DeleteRunResponse()

    async def PruneRuns(self, request: PruneRunsRequest, context: Context) -> PruneRunsResponse:
        if not request.HasField("ended_before"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prune what ended before when?")
        before = request.ended_before.ToNanoseconds() / 1e9
        return PruneRunsResponse(runs=await self._asked(self._driver.prune(before), context))

    # -- pools and agents ---------------------------------------------------------------------------------------------

    async def ListPools(self, request: ListPoolsRequest, context: Context) -> ListPoolsResponse:
        response = ListPoolsResponse()
        for name, pool in sorted(self._driver.machine.pools.items()):
            entry = response.pools.add(name=name, executor=self._limits.executors.get(name, ""), ready=pool.ready)
            entry.is_default = name == self._limits.default_pool
            for host in pool.hosts.values():
                if host.open:
                    entry.hosts += 1
                    for resource, units in host.resources.items():
                        entry.resources[resource] += units
                        entry.used[resource] += min(units, host.load.get(resource, 0))
        for run in self._driver.machine.runs.values():
            for flight in run.in_flight.values():
                if flight.start_time is not None:
                    _of(response, flight.pool).running += 1
        return response

    async def ListAgents(self, request: ListAgentsRequest, context: Context) -> ListAgentsResponse:
        response = ListAgentsResponse()
        running, waiting = Counter[str](), Counter[str]()  # by host; one look at what is in flight, however many agents there are
        for run in self._driver.machine.runs.values():
            for flight in run.in_flight.values():
                (waiting if flight.start_time is None else running)[flight.host] += 1
        for pool, executor in sorted(self._driver.executors.items()):
            if isinstance(executor, AgentExecutor):
                for agent in executor.agents.values():
                    entry = self._agent(pool, agent)
                    entry.running, entry.waiting = running[agent.agent_id], waiting[agent.agent_id]
                    response.agents.append(entry)
        return response

    def _agent(self, pool: str, agent: Any) -> Agent:
        state = AGENT_STATE_DRAINING if agent.draining else AGENT_STATE_CONNECTED
        entry = Agent(
            name=agent.name,
            agent_id=agent.agent_id,
            pool=pool,
            state=state if agent.session is not None else AGENT_STATE_DISCONNECTED,
            resources=agent.resources,
            version=agent.version,
            connect_time=views.timestamp(agent.connect_time) if agent.connect_time else None,
            last_seen=views.timestamp(agent.last_seen) if agent.last_seen else None,
            address=agent.address,
        )
        host = self._driver.machine.pools[pool].hosts.get(agent.agent_id)
        if host is not None:
            entry.name = host.name  # of an agent that has not come back yet, the executor knows the id only
            for resource, units in host.load.items():
                entry.used[resource] = min(units, host.resources.get(resource, 0))
        if agent.heartbeat is not None:
            entry.load_average = agent.heartbeat.load_average
            entry.cpu_percent = agent.heartbeat.cpu_percent
            entry.memory_available_bytes = agent.heartbeat.memory_available_bytes
        return entry

    async def DrainAgent(self, request: DrainAgentRequest, context: Context) -> DrainAgentResponse:
        executors = [executor for executor in self._driver.executors.values() if isinstance(executor, AgentExecutor)]
        if not any(executor.drain(request.name) for executor in executors):
            message = f"there is no agent {request.name[:1024]!r}; `daggyr agents` lists them"
            await context.abort(grpc.StatusCode.NOT_FOUND, fitting(message))
        agents = (await self.ListAgents(ListAgentsRequest(), context)).agents
        return DrainAgentResponse(running=sum(agent.running for agent in agents if agent.name == request.name))

    # -- finding ------------------------------------------------------------------------------------------------------

    async def _summary(self, run: Run) -> RunSummary:
        await self._driver.settled(run.run_id)
        return self._summary_now(run)

    def _summary_now(self, run: Run) -> RunSummary:
        """As the machine has it, which may be more than is durable."""
        summary = views.run_summary(run, self._driver.machine, self._driver.changes.seq(run.run_id))
        if self._driver.trouble is not None:
            summary.notes.append(f"nothing new is started, because state cannot be made durable: {self._driver.trouble}")
        return summary

    async def _asked(self, answer: Awaitable[T], context: Context) -> T:
        """What driver or tracker answer, or the end of the call if they cannot."""
        try:
            return await answer
        except (TrackerError, Closing, Refused) as error:
            await _abort(error, context)

    async def _run(self, run_id: int, context: Context) -> Run:
        run = await self._find(run_id, context)
        if isinstance(run, str):
            await context.abort(grpc.StatusCode.NOT_FOUND, run)
        return run

    async def _find(self, run_id: int, context: Context) -> Run | str:
        """A run (0: the newest), or why there is none."""
        driver = self._driver
        if not run_id:
            newest = next(reversed(driver.machine.runs), 0) if not driver.durable else 0
            rows = [] if newest else await self._asked(driver.tracker.rows(before=None, limit=1), context)
            run_id = newest or (rows[0].run_id if rows else 0)
            if not run_id:
                return "there are no runs yet"
        run = await self._asked(driver.find(run_id), context)
        return run if run is not None else f"there is no run {run_id}; `daggyr runs` lists them"

    async def _attempts(self, run: Run, number: int, context: Context) -> list[StoredAttempt]:
        """The ended attempts of a task under all the numbers that it has had."""
        found: list[StoredAttempt] = []
        for known in reversed(run.graph.lineage(number)):
            found += await self._asked(self._driver.tracker.attempts(run.run_id, known), context)
        return found

    async def _learn_parents(self, run: Run) -> None:
        """See to it that asking for a task's parents takes no time here: of a large run, they are found in a thread, once."""
        graph = run.graph
        if graph.size >= LARGE_RUN and not graph.knows_parents:
            frozen = graph.frozen()
            await asyncio.to_thread(frozen.parents, frozen.live)
            graph.learn_parents(frozen)

    async def _number(self, run: Run, task_id: str, context: Context, *, before: bool = False) -> int:
        """A task's number; `before`: also of one that an edit took away."""
        number = run.graph.number_of(task_id)
        if number is None and before:
            number = run.graph.number_before(task_id)
            now = run.graph.newest(number) if number is not None else None  # it may live on under another name
            number = now if now is not None else number
        if number is None:
            message = f"run {run.run_id} has no task {task_id[:1024]!r}; `daggyr tasks {run.run_id}` lists them"
            await context.abort(grpc.StatusCode.NOT_FOUND, fitting(message))
        return number

    async def _named(self, run: Run, names: Any, context: Context) -> tuple[int, ...] | None:
        """The numbers that plain names mean, None for no names."""
        if not names:
            return None
        numbers: list[int] = []
        for name in names:
            found = run.graph.named(name)
            if found is None:
                await self._number(run, name, context)
            elif run.graph.kind(found[0]) is not Kind.TASK:
                message = f"task {name!r} runs nothing: name the task that it belongs to, or one of its expansions"
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, fitting(message))
            else:
                numbers += found
        return tuple(dict.fromkeys(numbers))


class _Wanted:
    """Which runs a client asked to list."""

    def __init__(self, request: ListRunsRequest) -> None:
        self._tags = dict(request.tags)
        self._states = {State(state) for state in request.states if state}
        self._since = request.since.ToNanoseconds() / 1e9 if request.HasField("since") else -math.inf
        self._until = request.until.ToNanoseconds() / 1e9 if request.HasField("until") else math.inf

    def admits(self, tags: Mapping[str, str], state: State, submit_time: float) -> bool:
        return (
            (not self._states or state in self._states)
            and all(tags.get(name) == value for name, value in self._tags.items())
            and self._since <= submit_time < self._until
        )


def _by_now(run: Run, number: int) -> int:
    """The number of a task after what was awaited: an edit may have come in between. One that was taken away keeps its own."""
    now = run.graph.newest(number)
    return now if now is not None else number


def _task_edit(edit: TaskEdit) -> TaskEditMessage:
    message = TaskEditMessage(task_id=edit.task_id, kind=_EDIT_KINDS[edit.change], fields=edit.fields)
    if edit.state is not None:
        message.state = int(edit.state)  # type: ignore[assignment]
    return message


def _next_in(phases: bytearray, wanted: list[Phase], start: int) -> int | None:
    """The first number from `start` on whose phase is wanted."""
    if len(wanted) == len(Phase):
        return start if start < len(phases) else None
    found = [position for phase in wanted if (position := phases.find(int(phase), start)) >= 0]
    return min(found) if found else None


def _of(response: ListPoolsResponse, name: str) -> Pool:
    return next(pool for pool in response.pools if pool.name == name)


async def _token(token: str, context: Context) -> int | None:
    if not token:
        return None
    if not token.isdecimal() or len(token) > 20:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this page token was not made by this server")
    return int(token)


async def _abort(error: Refused | Closing | TrackerError, context: Context) -> NoReturn:
    if not isinstance(error, Refused):
        await context.abort(grpc.StatusCode.UNAVAILABLE, fitting(str(error)))
    await context.abort(_CODES[error.refusal.reason], fitting(str(error)))
