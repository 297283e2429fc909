"""The calls that say what is to become of runs: kill, retry, mark, delete, prune.

Each answers once what it asked for is durable, and changes nothing by itself. Part of `RunsService` (runs.py). An edit brings a
specification, and stands in submitting.py.
"""

from __future__ import annotations

import grpc

from daggyr.v1.run_pb2 import STATE_COMPLETED, STATE_QUEUED, RunSummary
from daggyr.v1.runs_pb2 import (
    DeleteRunRequest,
    DeleteRunResponse,
    KillRunRequest,
    MarkTasksRequest,
    PruneRunsRequest,
    PruneRunsResponse,
    RetryRunRequest,
)
from daggyr_server.api.servicer import MAX_INTEGER, Context, Servicer, page_start


class Steering(Servicer):
    """See runs.proto."""

    async def KillRun(self, request: KillRunRequest, context: Context) -> RunSummary:
        run = await self.run(request.run_id, context)
        numbers = await self.named(run, request.tasks, context)
        await self.answered(self.requests.kill(run.run_id, numbers), context)
        return await self.summary(run)

    async def RetryRun(self, request: RetryRunRequest, context: Context) -> RunSummary:
        run = await self.run(request.run_id, context)
        numbers = await self.named(run, request.tasks, context)
        if request.downstream and numbers is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "downstream of which task? Name one, or leave downstream out")
        await self.answered(
            self.requests.retry(run.run_id, numbers, downstream=request.downstream, everything=request.all), context
        )
        return await self.summary(run)

    async def MarkTasks(self, request: MarkTasksRequest, context: Context) -> RunSummary:
        run = await self.run(request.run_id, context)
        numbers = await self.named(run, request.tasks, context)
        if numbers is None or request.state not in (STATE_COMPLETED, STATE_QUEUED):
            message = "name tasks, and the state to mark them with: COMPLETED or QUEUED"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        completed = request.state == STATE_COMPLETED
        marked = self.requests.mark(run.run_id, numbers, completed=completed, everything=request.all)
        await self.answered(marked, context)
        return await self.summary(run)

    async def DeleteRun(self, request: DeleteRunRequest, context: Context) -> DeleteRunResponse:
        if not request.run_id:
            await context.abort(grpc.StatusCode.NOT_FOUND, "which run is to be taken away? Name its id")
        run_id = request.run_id
        run = self.reader.in_memory(run_id)
        if run is None:
            # Its row tells all that is needed: to make a large run again takes long, and all of it would go.
            row = await self.answered(self.reader.row(run_id), context) if run_id < MAX_INTEGER else None
            ended = row is not None and row.state.has_ended
            if row is None or not (ended or row.damage or await self.damaged(run_id) is not None):
                run = await self.run(run_id, context)
        if run is not None and not run.has_ended:
            message = f"run {run_id} has not ended: it is {run.state.name}; kill it first"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        await self.answered(self.requests.delete(run_id), context)
        return DeleteRunResponse()

    async def PruneRuns(self, request: PruneRunsRequest, context: Context) -> PruneRunsResponse:
        if not request.HasField("ended_before"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prune what ended before when?")
        before = request.ended_before.ToNanoseconds() / 1e9
        newest = await page_start(request.page_token, context)
        runs, left = await self.answered(self.requests.prune(before, limit=request.limit, newest=newest), context)
        return PruneRunsResponse(runs=runs, next_page_token="" if left is None else str(left))
