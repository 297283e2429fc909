"""The calls that show what is: runs, tasks, attempts, output, and why a task waits.

They never change anything. Part of `RunsService` (runs.py). The call that tells a run's changes as they come is in watching.py.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import grpc

from daggyr.bounds import MAX_NOTE_BYTES, cut
from daggyr.v1.run_pb2 import Attempt, RunSummary, TaskSummary
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
from daggyr_server.api.explanation import explanation
from daggyr_server.api.output import read_output
from daggyr_server.api.servicer import MAX_INTEGER, MAX_PAGE_BYTES, STRANGE_TOKEN, TURN, Context, Servicer, end_call, page_start
from daggyr_server.api.statuses import fitting
from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import STATE_OF, Phase, State
from daggyr_server.core.stored import RunFilter
from daggyr_server.trackers.base import MAX_ATTEMPTS, StateChange, StoredAttempt, TrackerError

_WITH_HOSTS = frozenset({Phase.READY, Phase.ASSIGNED, Phase.RUNNING})
MAX_RUNS_A_PAGE = 1_000
RUNS_A_TURN = 50  # summaries of runs that are made before everybody else has a turn: a millisecond
MAX_TASKS_A_PAGE = 10_000
MAX_ATTEMPTS_BYTES = 512 * 1024  # of one answer: a task's details may take the rest


class Reading(Servicer):
    """See runs.proto."""

    async def ListRuns(self, request: ListRunsRequest, context: Context) -> ListRunsResponse:
        before = await page_start(request.page_token, context)
        most = min(request.page_size or 100, MAX_RUNS_A_PAGE)
        wanted = _wanted(request)
        response = ListRunsResponse()
        size = 0
        while rows := await self.answered(self.reader.rows(before=before, limit=TURN, wanted=self._stored(wanted)), context):
            for number, row in enumerate(rows, 1):
                if not number % RUNS_A_TURN:
                    await asyncio.sleep(0)
                await self.reader.settled(row.run_id)
                run = self.reader.in_memory(row.run_id)
                state = run.state if run is not None else row.state
                if not wanted.admits(row.tags, state, row.submit_time, None):
                    continue
                summary = self.summary_now(run) if run is not None else self.stored_summary(row)
                size += summary.ByteSize()
                if response.runs and (len(response.runs) == most or size > MAX_PAGE_BYTES):
                    response.next_page_token = str(response.runs[-1].run_id)
                    return response
                response.runs.append(summary)
            before = rows[-1].run_id
            await asyncio.sleep(0)
        return response

    def _stored(self, wanted: RunFilter) -> RunFilter:
        """What the tracker is to look for. While nothing can be made durable, a run's state there is not the one that is told."""
        return wanted if self.reader.trouble is None else replace(wanted, states=frozenset())

    async def GetRun(self, request: GetRunRequest, context: Context) -> RunSummary:
        newest = await self.answered(self.reader.newest(), context) if not request.run_id else None
        run_id = request.run_id or newest or 0
        summary = None
        if self.reader.being_restored(run_id) is not None and (row := await self.answered(self.reader.row(run_id), context)):
            summary = self.stored_summary(row)
        elif (damaged := await self.damaged(run_id)) is not None:
            return damaged
        if summary is None:
            summary = await self.summary(await self.run(run_id, context))
        try:  # What is in memory is told all the same.
            run = self.reader.in_memory(summary.run_id)
            history = await self.reader.history(summary.run_id, None)
            summary.history.extend(views.history(history, run.graph if run is not None else None))
        except TrackerError as error:
            summary.notes.append(cut(f"its history cannot be read: {error}", MAX_NOTE_BYTES))
        return summary

    async def ListTasks(self, request: ListTasksRequest, context: Context) -> ListTasksResponse:
        run = await self.run(request.run_id, context)
        start = await page_start(request.page_token, context) or 0
        most = min(request.page_size or 1_000, MAX_TASKS_A_PAGE)
        states = {State(state) for state in request.states if state}
        wanted = [phase for phase in Phase if not states or STATE_OF[phase] in states]
        response = ListTasksResponse(run_id=run.run_id)
        size = 0
        while True:
            await self.reader.settled(run.run_id)
            turn = min(TURN, most + 1 - len(response.tasks))  # one more than the page takes says where the next one begins
            numbers = islice(_numbers_in(run.phases, wanted, max(start, run.graph.live)), turn)
            summaries = [views.task_summary(run, number) for number in numbers]
            if request.output_sizes:
                await self._tell_sizes(run, summaries, context)
            for summary in summaries:
                size += summary.ByteSize()
                if response.tasks and (len(response.tasks) == most or size > MAX_PAGE_BYTES):
                    response.next_page_token = str(summary.task_number)
                    return response
                response.tasks.append(summary)
            if len(summaries) < turn:
                return response
            start = summaries[-1].task_number + 1
            await asyncio.sleep(0)

    async def _tell_sizes(self, run: Run, summaries: Sequence[TaskSummary], context: Context) -> None:
        """Have the tasks tell how much their last attempts wrote, as far as these have ended.

        A task that an edit renumbered has its attempts under the numbers that it had before.
        """
        tasks = [task for task in summaries if task.attempt_count and task.task_number not in run.in_flight]
        sought = {(task.task_number, task.attempt_count): task for task in tasks}
        back = 0
        while sought:
            found = await self.answered(self.reader.results(run.run_id, list(sought)), context)
            for key, result in found.items():
                views.tell_sizes(sought.pop(key), result)
            back += 1
            left = [(run.graph.lineage(task.task_number), task) for task in sought.values()]
            sought = {(lineage[back], task.attempt_count): task for lineage, task in left if back < len(lineage)}

    async def GetTask(self, request: GetTaskRequest, context: Context) -> TaskMessage:
        start = await _attempts_start(request.page_token, context)
        run = await self.run(start[0] if start else request.run_id, context)
        number = await self.number(run, request.task_id, context, before=True)
        stored = await self.attempts(run, number, context, limit=MAX_ATTEMPTS, since=start[1:] if start else None)
        if start is not None:
            return _with_attempts(TaskMessage(), run, stored)
        history: list[StateChange] = []
        for known in reversed(run.graph.lineage(number)):
            history += await self.answered(self.reader.history(run.run_id, known), context)
        await self.learn_parents(run)
        await self.reader.settled(run.run_id)
        try:
            message = views.task(run, _by_now(run, number))
            where = self.reader.placement(run, _by_now(run, number))
            if where is not None and message.attempts:
                message.attempts[-1].placement.CopyFrom(where)
        except TrackerError as error:
            await end_call(error, context)
        message.history.extend(views.history(history, run.graph))
        return _with_attempts(message, run, stored)

    async def ExplainTask(self, request: GetTaskRequest, context: Context) -> ExplainTaskResponse:
        run = await self.run(request.run_id, context)
        number = await self.number(run, request.task_id, context, before=True)
        last = await self.last_attempt(run, number, context)
        await self.learn_parents(run)
        await self.reader.settled(run.run_id)
        number = _by_now(run, number)
        return ExplainTaskResponse(
            run_id=run.run_id,
            state=int(views.whole_state(run, number)),  # type: ignore[arg-type]
            reasons=[
                *explanation(
                    run, number, self.reader.pools, self.reader.now(), last, self.reader.placement(run, number), self.reader.notes
                ),
                *self._refused(run, number),
            ],
        )

    def _refused(self, run: Run, number: int) -> Sequence[str]:
        """Of a task that waits for a host or is with one: which agents of its pool are refused, and why."""
        if Phase(run.phases[number]) not in _WITH_HOSTS:
            return ()
        return [f"{words[0].upper()}{words[1:]}." for words in self.refused_agents().get(run.graph.policy(number).pool, ())]

    async def ReadOutput(self, request: ReadOutputRequest, context: Context) -> AsyncIterator[ReadOutputResponse]:
        run = await self.run(request.run_id, context)
        number = await self.number(run, request.task_id, context, before=True)
        stream = request.stream or STDOUT
        if stream not in (STDOUT, STDERR):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"there is no output stream {stream}")
        if request.offset > MAX_INTEGER:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no output reaches to the offset {request.offset}")
        if request.attempt > run.attempts[number]:
            message = f"task {request.task_id!r} of run {run.run_id} has had {run.attempts[number]} attempts so far"
            await context.abort(grpc.StatusCode.NOT_FOUND, fitting(message))
        try:
            async for answer in read_output(
                self.reader, self.changes, run, number, request.attempt, stream, request.offset, follow=request.follow
            ):
                yield answer
        except TrackerError as error:
            await end_call(error, context)


def _wanted(request: ListRunsRequest) -> RunFilter:
    """Which runs a client asked to list."""
    return RunFilter(
        states=frozenset(State(state) for state in request.states if state),
        tags=dict(request.tags),
        since=request.since.ToNanoseconds() / 1e9 if request.HasField("since") else -math.inf,
        until=request.until.ToNanoseconds() / 1e9 if request.HasField("until") else math.inf,
    )


def _by_now(run: Run, number: int) -> int:
    """The number that a task has by now: while something was awaited, an edit may have renumbered it. A task that was taken away
    keeps its number."""
    now = run.graph.newest(number)
    return now if now is not None else number


def _numbers_in(phases: bytearray, wanted: Sequence[Phase], start: int) -> Iterator[int]:
    """The numbers from `start` on whose phases are wanted, ascending. Nothing changes while it is iterated over."""
    if len(wanted) == len(Phase):
        yield from range(start, len(phases))
        return
    following = {phase: phases.find(int(phase), start) for phase in wanted}
    while there := [(number, phase) for phase, number in following.items() if number >= 0]:
        number, phase = min(there)
        yield number
        following[phase] = phases.find(int(phase), number + 1)


def _with_attempts(message: TaskMessage, run: Run, stored: Sequence[tuple[int, StoredAttempt]]) -> TaskMessage:
    """Put the ended attempts before those in flight: the last ones, as many as an answer takes, and a token for the others."""
    size = 0
    shown: list[Attempt] = []
    for number, attempt in reversed(stored):
        entry = views.ended_attempt(attempt)
        size += entry.ByteSize()
        if shown and size > MAX_ATTEMPTS_BYTES:
            break
        shown.append(entry)
        message.next_page_token = f"{run.run_id}-{number}-{attempt.attempt}"
    if len(shown) == len(stored) < MAX_ATTEMPTS:
        message.next_page_token = ""
    in_flight = list(message.attempts)
    del message.attempts[:]
    message.attempts.extend([*reversed(shown), *in_flight])
    return message


async def _attempts_start(token: str, context: Context) -> tuple[int, int, int] | None:
    """Where a page of attempts goes on: a run, a task's number and an attempt."""
    if not token:
        return None
    match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,10})-([0-9]{1,10})", token)
    if match is None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, STRANGE_TOKEN)
    return int(match[1]), int(match[2]), int(match[3])
