"""The calls that tell what is: runs, tasks, attempts, output, and why a task waits.

They never change anything. Part of `RunsService` (runs.py); a run's changes as they come are in watching.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Mapping

import grpc

from daggyr.v1.run_pb2 import RunSummary
from daggyr.v1.run_pb2 import Task as TaskMessage
from daggyr.v1.runs_pb2 import (
    ExplainTaskResponse,
    GetRunRequest,
    GetTaskRequest,
    ListRunsRequest,
    ListRunsResponse,
    ListTasksRequest,
    ListTasksResponse,
    ReadOutputRequest,
    ReadOutputResponse,
)
from daggyr.v1.task_pb2 import STDERR, STDOUT
from daggyr_server.api import views
from daggyr_server.api.asking import Asking, Context, refuse
from daggyr_server.api.output import read_output
from daggyr_server.api.reasons import reasons
from daggyr_server.api.statuses import fitting
from daggyr_server.core.run import Run
from daggyr_server.core.states import STATE_OF, Phase, State
from daggyr_server.trackers.base import StateChange, TrackerError

MAX_RUNS_A_PAGE = 1_000
MAX_TASKS_A_PAGE = 10_000


class Reading(Asking):
    """See runs.proto."""

    async def ListRuns(self, request: ListRunsRequest, context: Context) -> ListRunsResponse:
        before = await _page_start(request.page_token, context)
        most = min(request.page_size or 100, MAX_RUNS_A_PAGE)
        wanted = _Wanted(request)
        response = ListRunsResponse()
        while True:
            rows = await self.asked(self.driver.tracker.rows(before=before, limit=MAX_RUNS_A_PAGE), context)
            for row in rows:
                await self.driver.settled(row.run_id)
                run = self.driver.machine.runs.get(row.run_id)
                state = run.state if run is not None else row.state
                if not wanted.admits(row.tags, state, row.submit_time):
                    continue
                if len(response.runs) == most:
                    response.next_page_token = str(response.runs[-1].run_id)
                    return response
                response.runs.append(self.summary_now(run) if run is not None else views.stored_summary(row))
            if len(rows) < MAX_RUNS_A_PAGE:
                return response
            before = rows[-1].run_id

    async def GetRun(self, request: GetRunRequest, context: Context) -> RunSummary:
        run = await self.run(request.run_id, context)
        summary = await self.summary(run)
        with contextlib.suppress(TrackerError):  # in trouble, which the notes tell: what is in memory is told all the same
            summary.history.extend(views.history(await self.driver.tracker.history(run.run_id, None)))
        return summary

    async def ListTasks(self, request: ListTasksRequest, context: Context) -> ListTasksResponse:
        run = await self.run(request.run_id, context)
        number = max(await _page_start(request.page_token, context) or 0, run.graph.live)
        most = min(request.page_size or 1_000, MAX_TASKS_A_PAGE)
        states = {State(state) for state in request.states if state}
        wanted = [phase for phase in Phase if not states or STATE_OF[phase] in states]
        response = ListTasksResponse(run_id=run.run_id)
        await self.driver.settled(run.run_id)
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
        run = await self.run(request.run_id, context)
        number = await self.number(run, request.task_id, context, before=True)
        stored = await self.attempts(run, number, context)
        history: list[StateChange] = []
        for known in reversed(run.graph.lineage(number)):
            history += await self.asked(self.driver.tracker.history(run.run_id, known), context)
        await self.learn_parents(run)
        await self.driver.settled(run.run_id)
        try:
            message = views.task(run, _by_now(run, number), stored)
        except TrackerError as error:
            await refuse(error, context)
        message.history.extend(views.history(history))
        return message

    async def ExplainTask(self, request: GetTaskRequest, context: Context) -> ExplainTaskResponse:
        run = await self.run(request.run_id, context)
        number = await self.number(run, request.task_id, context)
        stored = await self.attempts(run, number, context)
        await self.learn_parents(run)
        await self.driver.settled(run.run_id)
        number = _by_now(run, number)
        return ExplainTaskResponse(
            run_id=run.run_id,
            state=int(views.whole_state(run, number)),  # type: ignore[arg-type]
            reasons=reasons(run, number, self.driver.machine, stored),
        )

    async def ReadOutput(self, request: ReadOutputRequest, context: Context) -> AsyncIterator[ReadOutputResponse]:
        run = await self.run(request.run_id, context)
        number = await self.number(run, request.task_id, context, before=True)
        stream = request.stream or STDOUT
        if stream not in (STDOUT, STDERR):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"there is no output stream {stream}")
        if request.attempt > run.attempts[number]:
            message = f"task {request.task_id!r} of run {run.run_id} has had {run.attempts[number]} attempts so far"
            await context.abort(grpc.StatusCode.NOT_FOUND, fitting(message))
        try:
            async for answer in read_output(
                self.driver, run, number, request.attempt, stream, request.offset, follow=request.follow
            ):
                yield answer
        except TrackerError as error:
            await refuse(error, context)


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


def _next_in(phases: bytearray, wanted: list[Phase], start: int) -> int | None:
    """The first number from `start` on whose phase is wanted."""
    if len(wanted) == len(Phase):
        return start if start < len(phases) else None
    found = [position for phase in wanted if (position := phases.find(int(phase), start)) >= 0]
    return min(found) if found else None


async def _page_start(token: str, context: Context) -> int | None:
    if not token:
        return None
    if not token.isdecimal() or len(token) > 20:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this page token was not made by this server")
    return int(token)
