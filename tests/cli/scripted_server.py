"""A server of the Runs service that does what a test tells it: the wire is real, and what happens in its runs is scripted.

Tests of the client and of the command line use it where they must decide when a task starts, what it wrote, and when a connection
breaks. It keeps the contract's promises about what clients see (request_id, change_seq, paging) and runs nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from daggyr.channel import CHANNEL_OPTIONS
from daggyr.v1 import runs_pb2 as pb
from daggyr.v1.run_pb2 import Attempt, RunSummary, State, Task, TaskSummary, TaskType
from daggyr.v1.runs_pb2_grpc import RunsServicer, add_RunsServicer_to_server
from daggyr.v1.task_pb2 import STDERR, STDOUT, AttemptOutcome, AttemptResult

TOKEN = "daggyr-client-for-tests"
QUEUED, RUNNING, COMPLETED, ERRORED, KILLED = (
    State.STATE_QUEUED,
    State.STATE_RUNNING,
    State.STATE_COMPLETED,
    State.STATE_ERRORED,
    State.STATE_KILLED,
)
_ENDED = (COMPLETED, ERRORED, KILLED)
_OUTCOMES = {COMPLETED: AttemptOutcome.SUCCEEDED, KILLED: AttemptOutcome.KILLED}


@dataclass
class Piece:
    data: bytes
    missing: int = 0


@dataclass
class ScriptedTask:
    task: Task
    changed: int = 0
    # The pieces of output, by attempt and stream.
    output: dict[tuple[int, int], list[Piece]] = field(default_factory=dict)

    @property
    def summary(self) -> TaskSummary:
        return self.task.summary


class ScriptedRun:
    """A run that a test steers. Every change wakes those who watch the run or follow its output."""

    def __init__(self, run_id: int, names: list[str], *, tags: dict[str, str] | None = None, pool: str = "") -> None:
        self.summary = RunSummary(run_id=run_id, state=QUEUED, tags=tags or {}, pool=pool or "default", revision=1)
        self.summary.submit_time.CopyFrom(stamp(1_700_000_000 + run_id))
        self.summary.change_seq = 1
        self.oldest_kept = 0
        self.tasks: dict[str, ScriptedTask] = {}
        self.changed = asyncio.Condition()
        self.add(*names)

    def add(self, *names: str, task_type: TaskType = TaskType.TASK_TYPE_COMMAND) -> None:
        for name in names:
            summary = TaskSummary(task_id=name, task_number=len(self.tasks), state=QUEUED, task_type=task_type)
            task = Task(summary=summary)
            if task_type != TaskType.TASK_TYPE_STRUCTURAL:
                task.summary.pool = self.summary.pool
                task.details.command.extend(["echo", name])
                task.details.resources["cores"] = 1
            self.tasks[name] = ScriptedTask(task)

    async def start(self, name: str) -> None:
        """Start a new attempt of `name`."""
        async with self.changed:
            scripted = self.tasks[name]
            attempt = Attempt(attempt=len(scripted.task.attempts) + 1, host="h1")
            attempt.placement.host = "agent-1"
            attempt.start_time.CopyFrom(stamp(1_700_000_100))
            scripted.task.attempts.append(attempt)
            scripted.summary.attempt_count += 1
            self.set(scripted, RUNNING)
            if not self.summary.HasField("start_time"):
                self.summary.start_time.CopyFrom(stamp(1_700_000_100))
            self.summary.state = RUNNING

    async def write(self, name: str, data: bytes, *, stream: int = STDOUT, missing: int = 0) -> None:
        async with self.changed:
            scripted = self.tasks[name]
            number = scripted.task.attempts[-1].attempt
            scripted.output.setdefault((number, stream), []).append(Piece(data, missing))
            self.changed.notify_all()

    async def finish(
        self, name: str, state: State = COMPLETED, *, exit_code: int = 0, notes: tuple[str, ...] = (), again: bool = False
    ) -> None:
        """End the attempt of `name`. With `again`, the task is QUEUED for a retry."""
        async with self.changed:
            scripted = self.tasks[name]
            outcome = _OUTCOMES.get(state, AttemptOutcome.FAILED)
            number = scripted.task.attempts[-1].attempt
            result = AttemptResult(outcome=outcome, exit_code=exit_code, notes=notes, cpu_seconds=0.25)
            result.max_rss_bytes = 3 * 1024 * 1024
            result.start_time.CopyFrom(stamp(1_700_000_100))
            result.stop_time.CopyFrom(stamp(1_700_000_101, 500_000_000))
            for stream, summary in ((STDOUT, result.stdout), (STDERR, result.stderr)):
                pieces = scripted.output.get((number, stream), [])
                summary.size_bytes = sum(len(piece.data) + piece.missing for piece in pieces)
                summary.cut_bytes = sum(piece.missing for piece in pieces)
            scripted.task.attempts[-1].result.CopyFrom(result)
            self.set(scripted, QUEUED if again else state)

    async def end(self, state: State = COMPLETED) -> None:
        async with self.changed:
            self.summary.state = state
            self.summary.stop_time.CopyFrom(stamp(1_700_000_160))
            self.summary.change_seq += 1
            self.changed.notify_all()

    async def complete(self) -> None:
        """Let every task start and succeed, and the run complete."""
        for name, scripted in self.tasks.items():
            if scripted.summary.task_type == TaskType.TASK_TYPE_STRUCTURAL:
                async with self.changed:
                    self.set(scripted, COMPLETED)
            else:
                await self.start(name)
                await self.finish(name)
        await self.end()

    def now(self) -> RunSummary:
        states: dict[str, int] = {}
        for scripted in self.tasks.values():
            name = State.Name(scripted.summary.state).removeprefix("STATE_")
            states[name] = states.get(name, 0) + 1
        self.summary.task_states.clear()
        self.summary.task_states.update(states)
        return self.summary

    def changes_since(self, change_seq: int) -> list[pb.TaskChange]:
        found = []
        for scripted in self.tasks.values():
            if scripted.changed > change_seq:
                summary, attempts = scripted.summary, scripted.task.attempts
                change = pb.TaskChange(task_id=summary.task_id, task_number=summary.task_number, state=summary.state)
                if attempts:
                    change.attempt = attempts[-1].attempt
                    # The change of a COMPLETED task tells no outcome. The real server does not look it up either.
                    if attempts[-1].HasField("result") and summary.state != COMPLETED:
                        change.outcome = attempts[-1].result.outcome
                        change.exit_code = attempts[-1].result.exit_code
                        change.notes.extend(attempts[-1].result.notes)
                found.append(change)
        return found

    def set(self, scripted: ScriptedTask, state: State) -> None:
        """Set a task's state. The caller holds `changed`."""
        scripted.summary.state = state
        self.summary.change_seq += 1
        scripted.changed = self.summary.change_seq
        self.changed.notify_all()


class ScriptedServer(RunsServicer):
    """The server. `runs` has its runs by id; `broken` has, by method, the statuses with which the next calls end at once."""

    def __init__(self) -> None:
        self.most_pruned = 1_000  # runs by one call
        self.runs: dict[int, ScriptedRun] = {}
        self.by_request: dict[str, int] = {}
        self.headers: list[pb.SubmitRunHeader] = []
        self.documents: list[bytes] = []
        self.chunk_sizes: list[int] = []
        self.broken: dict[str, list[tuple[grpc.StatusCode, str]]] = {}
        self.lose_next_answer = False
        self.calls: list[tuple[str, Any]] = []
        self.time_limits: dict[str, float | None] = {}  # seconds that the last call of a method gave, by method
        self._run_ids = itertools.count(1)  # the ids of deleted runs are not used again
        self.submitted = asyncio.Condition()
        self.watching = asyncio.Event()
        self.agents: list[pb.Agent] = []
        self.pools: list[pb.Pool] = []
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS)
        add_RunsServicer_to_server(self, self._server)
        self.port = 0

    async def start(self, credentials: grpc.ServerCredentials | None = None, socket: str | None = None) -> None:
        if socket is not None:
            self._server.add_insecure_port(f"unix:{socket}")
        elif credentials is not None:
            self.port = self._server.add_secure_port("localhost:0", credentials)
        else:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    def new_run(self, *names: str, tags: dict[str, str] | None = None, pool: str = "") -> ScriptedRun:
        run = ScriptedRun(next(self._run_ids), list(names), tags=tags, pool=pool)
        self.runs[run.summary.run_id] = run
        return run

    async def next_submitted(self) -> ScriptedRun:
        """Return the newest run, once there is one."""
        async with self.submitted:
            await self.submitted.wait_for(lambda: self.runs)
            return self.runs[max(self.runs)]

    async def SubmitRunStream(self, chunks: AsyncIterator[pb.SubmitRunChunk], context: Any) -> pb.SubmitRunResponse:
        await self._admit("SubmitRunStream", None, context)
        header, data = pb.SubmitRunHeader(), bytearray()
        async for chunk in chunks:
            if chunk.WhichOneof("chunk") == "header":
                header = chunk.header
            else:
                self.chunk_sizes.append(len(chunk.data))
                data += chunk.data
        self.headers.append(header)
        self.documents.append(bytes(data))
        names = list(json.loads(bytes(data))["tasks"])
        if "refuse" in names:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "tasks.a: unknown key 'chidlren'\ntasks.b: no command is given")
        async with self.submitted:
            if header.request_id not in self.by_request:
                run = self.new_run(*names, tags=dict(header.tags), pool=header.pool)
                self.by_request[header.request_id] = run.summary.run_id
            self.submitted.notify_all()
        if self.lose_next_answer:
            self.lose_next_answer = False
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke before the answer")
        return pb.SubmitRunResponse(run_id=self.by_request[header.request_id])

    async def SubmitRun(self, request: pb.SubmitRunRequest, context: Any) -> pb.SubmitRunResponse:
        await self._admit("SubmitRun", request, context)
        if request.request_id not in self.by_request:
            run = self.new_run(*request.spec.tasks, tags=dict(request.spec.tags), pool=request.spec.pool)
            self.by_request[request.request_id] = run.summary.run_id
        return pb.SubmitRunResponse(run_id=self.by_request[request.request_id])

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        await self._admit("ListRuns", request, context)
        found = [
            run.now()
            for run in sorted(self.runs.values(), key=lambda run: -run.summary.run_id)
            if request.tags.items() <= dict(run.summary.tags).items()
            and (not request.states or run.summary.state in request.states)
        ]
        first = int(request.page_token or 0)
        after = first + min(request.page_size, 2)  # pages are small, so that clients must turn them
        return pb.ListRunsResponse(runs=found[first:after], next_page_token=str(after) if after < len(found) else "")

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> RunSummary:
        await self._admit("GetRun", request, context)
        return (await self._run(request.run_id, context)).now()

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        await self._admit("ListTasks", request, context)
        run = await self._run(request.run_id, context)
        found = [
            scripted.summary for scripted in run.tasks.values() if not request.states or scripted.summary.state in request.states
        ]
        first = int(request.page_token or 0)
        after = first + min(request.page_size, 3)
        token = str(after) if after < len(found) else ""
        return pb.ListTasksResponse(tasks=found[first:after], next_page_token=token, run_id=run.summary.run_id)

    async def GetTask(self, request: pb.GetTaskRequest, context: Any) -> Task:
        await self._admit("GetTask", request, context)
        return (await self._task(request, context))[1].task

    async def ExplainTask(self, request: pb.GetTaskRequest, context: Any) -> pb.ExplainTaskResponse:
        await self._admit("ExplainTask", request, context)
        run, scripted = await self._task(request, context)
        return pb.ExplainTaskResponse(
            state=scripted.summary.state,
            reasons=["It waits for task a, which is RUNNING.", "Then it needs 1 core in pool default."],
            run_id=run.summary.run_id,
        )

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncIterator[pb.RunChange]:
        await self._admit("WatchRun", request, context)
        run = await self._run(request.run_id, context)
        seen = request.change_seq
        if seen and seen < run.oldest_kept:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "changes since then are no longer kept")
        while True:
            async with run.changed:
                summary = RunSummary()
                summary.CopyFrom(run.now())
                tasks = run.changes_since(seen) if seen and request.tasks else []
            yield pb.RunChange(run=summary, tasks=tasks)
            self.watching.set()
            if summary.state in _ENDED:
                return
            seen = summary.change_seq
            async with run.changed:
                await run.changed.wait_for(lambda: run.summary.change_seq > seen or self.broken.get("WatchRun.later"))  # noqa: B023
            if statuses := self.broken.pop("WatchRun.later", None):
                await context.abort(*statuses[0])

    async def ReadOutput(self, request: pb.ReadOutputRequest, context: Any) -> AsyncIterator[pb.ReadOutputResponse]:
        await self._admit("ReadOutput", request, context)
        run, scripted = await self._task(request, context)
        number = request.attempt or len(scripted.task.attempts)
        if not 1 <= number <= len(scripted.task.attempts):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"task {request.task_id} has no attempt yet")
        attempt = scripted.task.attempts[number - 1]
        offset = sent = 0
        while True:
            pieces = scripted.output.get((number, request.stream), [])
            for piece in pieces[sent:]:
                end = offset + piece.missing + len(piece.data)
                if end > request.offset:
                    skipped = max(0, request.offset - offset)
                    missing = max(0, piece.missing - skipped)
                    data = piece.data[max(0, skipped - piece.missing) :]
                    yield pb.ReadOutputResponse(data=data, offset=end - len(data), missing_bytes=missing, attempt=number)
                offset = end
                sent += 1  # more may have been written by now than what was sent
            async with run.changed:
                if len(scripted.output.get((number, request.stream), [])) == sent:
                    if not request.follow or attempt.HasField("result"):
                        return
                    await run.changed.wait()
            if statuses := self.broken.pop("ReadOutput.later", None):
                await context.abort(*statuses[0])

    async def KillRun(self, request: pb.KillRunRequest, context: Any) -> RunSummary:
        await self._admit("KillRun", request, context)
        run = await self._run(request.run_id, context)
        if run.summary.state in _ENDED:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"run {run.summary.run_id} has ended already")
        for name, scripted in run.tasks.items():
            if scripted.summary.state == RUNNING and (not request.tasks or name in request.tasks):
                await run.finish(name, KILLED)
        if not request.tasks:
            await run.end(KILLED)
        return run.now()

    async def RetryRun(self, request: pb.RetryRunRequest, context: Any) -> RunSummary:
        await self._admit("RetryRun", request, context)
        run = await self._run(request.run_id, context)
        if run.summary.state not in _ENDED:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"run {run.summary.run_id} has not ended yet")
        async with run.changed:
            run.summary.state = QUEUED
            run.summary.ClearField("stop_time")
        return run.now()

    async def MarkTasks(self, request: pb.MarkTasksRequest, context: Any) -> RunSummary:
        await self._admit("MarkTasks", request, context)
        run = await self._run(request.run_id, context)
        for name in request.tasks:
            if name not in run.tasks:
                await _missing(context, f"run {run.summary.run_id} has no task {name!r}")
            if run.tasks[name].summary.state == RUNNING:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"task {name} is with its host: wait for it")
        async with run.changed:
            for name in request.tasks:
                run.set(run.tasks[name], request.state)
            run.summary.state = QUEUED
            run.summary.ClearField("stop_time")
        return run.now()

    async def DeleteRun(self, request: pb.DeleteRunRequest, context: Any) -> pb.DeleteRunResponse:
        await self._admit("DeleteRun", request, context)
        if not request.run_id:
            await _missing(context, "which run is to be taken away?")
        run = await self._run(request.run_id, context)
        if run.summary.state not in _ENDED:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"run {run.summary.run_id} has not ended: kill it first")
        del self.runs[request.run_id]
        return pb.DeleteRunResponse()

    async def PruneRuns(self, request: pb.PruneRunsRequest, context: Any) -> pb.PruneRunsResponse:
        await self._admit("PruneRuns", request, context)
        before = request.ended_before.seconds
        gone = [
            run_id for run_id, run in self.runs.items() if run.summary.state in _ENDED and run.summary.stop_time.seconds < before
        ]
        page = sorted(gone, reverse=True)[: self.most_pruned]
        for run_id in page:
            del self.runs[run_id]
        return pb.PruneRunsResponse(runs=len(page), next_page_token=str(page[-1]) if len(page) < len(gone) else "")

    async def ListPools(self, request: pb.ListPoolsRequest, context: Any) -> pb.ListPoolsResponse:
        await self._admit("ListPools", request, context)
        return pb.ListPoolsResponse(pools=self.pools)

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Any) -> pb.ListAgentsResponse:
        await self._admit("ListAgents", request, context)
        return pb.ListAgentsResponse(agents=self.agents)

    async def DrainAgent(self, request: pb.DrainAgentRequest, context: Any) -> pb.DrainAgentResponse:
        await self._admit("DrainAgent", request, context)
        if request.name not in [agent.name for agent in self.agents]:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no agent is called {request.name!r}")
        return pb.DrainAgentResponse(running=2)

    async def _admit(self, method: str, request: Any, context: Any) -> None:
        self.calls.append((method, request))
        self.time_limits[method] = context.time_remaining()
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no valid token")
        if self.broken.get(method):
            await context.abort(*self.broken[method].pop(0))

    async def _run(self, run_id: int, context: Any) -> ScriptedRun:
        found = self.runs.get(run_id or max(self.runs, default=0))
        if found is None:
            await _missing(context, f"there is no run {run_id}" if run_id else "there are no runs yet")
        return found

    async def _task(self, request: Any, context: Any) -> tuple[ScriptedRun, ScriptedTask]:
        run = await self._run(request.run_id, context)
        if request.task_id not in run.tasks:
            await _missing(context, f"run {run.summary.run_id} has no task {request.task_id!r}")
        return run, run.tasks[request.task_id]


async def _missing(context: Any, message: str) -> NoReturn:
    await context.abort(grpc.StatusCode.NOT_FOUND, message)
    raise AssertionError("abort raises")


def stamp(seconds: int, nanos: int = 0) -> Timestamp:
    return Timestamp(seconds=seconds, nanos=nanos)
