"""The calls that bring specifications: submitting a run, and editing one.

Documents are received by arriving.py, decoded and expanded in threads, and given to the driver with what came of them. Part of
`RunsService` (runs.py). Nothing here decides what a specification may hold.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from daggyr.v1.runs_pb2 import (
    TASK_EDIT_KIND_ADDED,
    TASK_EDIT_KIND_ADJUSTED,
    TASK_EDIT_KIND_CHANGED,
    TASK_EDIT_KIND_QUEUED_AGAIN,
    TASK_EDIT_KIND_REMOVED,
    EditRunChunk,
    EditRunResponse,
    EditTotals,
    SubmitRunChunk,
    SubmitRunRequest,
    SubmitRunResponse,
)
from daggyr.v1.runs_pb2 import TaskEdit as TaskEditMessage
from daggyr_server.api.arriving import C, Document, NotTaken
from daggyr_server.api.servicer import MAX_PAGE_BYTES, Context, Servicer, end_call
from daggyr_server.api.statuses import of_specification
from daggyr_server.core.graph.graph import Addition
from daggyr_server.core.graph.run import Run
from daggyr_server.driver.edit_plan import Change, Plan, TaskEdit
from daggyr_server.spec import (
    RunSpec,
    SpecificationError,
    decode_json,
    encode_json,
    expand,
    run_spec_from_message,
)
from daggyr_server.trackers.base import TrackerError

MAX_REQUEST_ID_BYTES = 128
MAX_EDITS_A_PAGE = 1_000
_EDIT_KINDS = {
    Change.CHANGED: TASK_EDIT_KIND_CHANGED,
    Change.ADDED: TASK_EDIT_KIND_ADDED,
    Change.REMOVED: TASK_EDIT_KIND_REMOVED,
    Change.QUEUED_AGAIN: TASK_EDIT_KIND_QUEUED_AGAIN,
    Change.ADJUSTED: TASK_EDIT_KIND_ADJUSTED,
}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A specification that becomes a run."""

    tags: dict[str, str]
    pool: str
    parameters: dict[str, tuple[str, ...]]
    addition: Addition
    warnings: list[str]


class Submitting(Servicer):
    """See runs.proto."""

    async def SubmitRun(self, request: SubmitRunRequest, context: Context) -> SubmitRunResponse:
        known = await self._known_request(request.request_id, context)
        if known is not None:
            return known

        def read() -> tuple[Accepted, bytes]:
            spec = run_spec_from_message(request.spec)
            return self._expanded(spec), encode_json(spec)

        try:
            accepted, document = await asyncio.to_thread(read)
        except SpecificationError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, of_specification(error))
        return await self._submit(request.request_id, accepted, document, context)

    async def SubmitRunStream(self, request_iterator: AsyncIterator[SubmitRunChunk], context: Context) -> SubmitRunResponse:
        async with self._document(context) as arriving:
            first = await self.arriving.next(request_iterator)
            if first is None or first.WhichOneof("chunk") != "header":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message carries the header")
            header = first.header
            known = await self._known_request(header.request_id, context)
            if known is not None:
                return known
            await self._receive(request_iterator, arriving, context)
            async with self.arriving.turn(arriving):

                def read(document: bytes | bytearray) -> Accepted:
                    limits = self.limits
                    spec = decode_json(document, pool=header.pool, pools=limits.pools, default_pool=limits.default_pool)
                    return self._expanded(spec.with_overrides(tags=header.tags, pool=header.pool))

                try:
                    accepted = await asyncio.to_thread(read, await arriving.read())
                except SpecificationError as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, of_specification(error))
                # The document is read once more. What was decoded is gone by now, so that memory holds one copy at a time.
                return await self._submit(header.request_id, accepted, await arriving.content(), context)

    @contextlib.asynccontextmanager
    async def _document(self, context: Context) -> AsyncIterator[Document]:
        """A document that is about to come. The call ends if it is not received further; its room is given back in any case."""
        document, refused = Document(self.arriving), None
        try:
            yield document
        except NotTaken as error:
            refused = error
        finally:
            document.close()
        if refused is not None:
            await context.abort(refused.code, str(refused))

    async def _receive(self, chunks: AsyncIterator[C], arriving: Document, context: Context) -> None:
        """Receive the document that follows the header. Raises NotTaken."""
        while (chunk := await self.arriving.next(chunks)) is not None:
            if chunk.WhichOneof("chunk") != "data":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "after the header, messages carry data")
            if arriving.size + len(chunk.data) > self.limits.max_bytes:
                message = f"the specification is larger than {self.limits.max_bytes:,} bytes ([server] max_run_bytes)"
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
            await arriving.add(chunk.data)

    async def _known_request(self, request_id: str, context: Context) -> SubmitRunResponse | None:
        if not 0 < len(request_id.encode()) <= MAX_REQUEST_ID_BYTES:
            message = f"a request_id has 1 to {MAX_REQUEST_ID_BYTES} bytes"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        known = await self.answered(self.reader.requested_as(request_id), context)
        return SubmitRunResponse(run_id=known) if known is not None else None

    def _expanded(self, spec: RunSpec) -> Accepted:
        """A specification, expanded. Nothing here keeps the tasks as they were given. Raises SpecificationError."""
        limits, warnings = self.limits, list[str]()
        addition = expand(spec, pools=limits.pools, default_pool=limits.default_pool, keep=self.requests.keep, warnings=warnings)
        return Accepted(spec.tags or {}, spec.pool or limits.default_pool, spec.run_parameters(), addition, warnings)

    async def _submit(self, request_id: str, accepted: Accepted, document: bytes, context: Context) -> SubmitRunResponse:
        tasks, most = sum(segment.size for segment in accepted.addition.segments), self.limits.max_tasks
        if tasks > most:
            message = f"the run has {tasks:,} tasks; the most is {most:,} ([server] max_run_tasks)"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        submitted = self.requests.submit(
            request_id=request_id,
            tags=accepted.tags,
            pool=accepted.pool,
            parameters=accepted.parameters,
            addition=accepted.addition,
            document=document,
        )
        return SubmitRunResponse(run_id=await self.answered(submitted, context), warnings=accepted.warnings)

    async def EditRun(self, request_iterator: AsyncIterator[EditRunChunk], context: Context) -> AsyncIterator[EditRunResponse]:
        async with self._document(context) as arriving:
            first = await self.arriving.next(request_iterator)
            if first is None or first.WhichOneof("chunk") != "header":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message carries the header")
            header = first.header
            run = await self.find(header.run_id, context)
            # Whoever edits the run while this client sends its document is first.
            edits, revision = (len(run.graph.edits), run.revision) if isinstance(run, Run) else (0, 0)
            # All of the document is read first: a call that ends while its client sends would end there with an error of gRPC's.
            await self._receive(request_iterator, arriving, context)
            if isinstance(run, str):
                await context.abort(grpc.StatusCode.NOT_FOUND, run)
            if header.revision not in (0, revision):
                message = f"run {run.run_id} has revision {revision}, not {header.revision}: look at it again"
                await context.abort(grpc.StatusCode.ABORTED, message)
            limits = self.limits
            async with self.arriving.turn(arriving):
                try:
                    spec = await asyncio.to_thread(decode_json, await arriving.read(), pools=limits.pools, default_pool=run.pool)
                    if header.plan:
                        planned = self.requests.plan(run, spec, pools=limits.pools, downstream=header.downstream)
                        plan = await self.answered(planned, context)
                    else:
                        edited = self.requests.edit(
                            run,
                            spec,
                            await arriving.content(),
                            edits,
                            pools=limits.pools,
                            downstream=header.downstream,
                            remove=header.remove,
                            everything=header.all,
                            most=limits.max_tasks,
                        )
                        plan = await self.answered(edited, context)
                except SpecificationError as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, of_specification(error))
        if not header.plan:
            yield EditRunResponse(run=await self.summary(run), warnings=plan.warnings, totals=await _totals(plan))
            return
        async for response in self._planned(run, plan, context):
            yield response

    async def _planned(self, run: Run, plan: Plan, context: Context) -> AsyncIterator[EditRunResponse]:
        """What an edit would do, a page at a time; everybody else has turns in between."""
        tasks = map(_task_edit, plan.tasks())
        summary = await self.summary(run)
        beside: dict[str, Any] = {"warnings": plan.warnings, "totals": await _totals(plan)}
        left: list[TaskEditMessage] = []
        while True:
            if run.graph.edits and run.graph.live != plan.snapshot.live:
                await context.abort(grpc.StatusCode.ABORTED, f"run {run.run_id} was edited meanwhile: look at it again")
            try:
                # In a thread, because from one task that changes to the next a million may be looked at.
                page, left = await asyncio.to_thread(_page, tasks, left)
            except TrackerError as error:
                await end_call(error, context)
            yield EditRunResponse(run=summary, tasks=page, **beside)
            beside = {}
            if not left and len(page) < MAX_EDITS_A_PAGE:
                return


async def _totals(plan: Plan) -> EditTotals:
    return EditTotals(**(await asyncio.to_thread(plan.totals))._asdict())


def _page(tasks: Iterator[TaskEditMessage], left: list[TaskEditMessage]) -> tuple[list[TaskEditMessage], list[TaskEditMessage]]:
    """A page that begins with what was left of the one before, and what is left of it: one that did not fit, or nothing."""
    page, size = left, sum(edit.ByteSize() for edit in left)
    while len(page) < MAX_EDITS_A_PAGE and (edit := next(tasks, None)) is not None:
        size += edit.ByteSize()
        if page and size > MAX_PAGE_BYTES:
            return page, [edit]
        page.append(edit)
    return page, []


def _task_edit(edit: TaskEdit) -> TaskEditMessage:
    message = TaskEditMessage(task_id=edit.task_id, kind=_EDIT_KINDS[edit.change], fields=edit.fields)
    if edit.state is not None:
        message.state = int(edit.state)  # type: ignore[assignment]
    return message
