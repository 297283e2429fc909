"""A small client of the coordinator: `daggyr.v1.Runs` with typed errors, paging, and the retries that it allows.

The command line uses it, and any program may. It submits, reads, watches and steers runs with the contract's messages,
sends each call with the token, and turns gRPC's errors into `ServerError`. What may be repeated is repeated with
backoff: a submission under its request_id, a watch from its last change, an output from its last byte; and what a server
cancels before it looks at it, because it has too much to do. Everything else is tried once. It never prints, reads no
environment and knows no files but the document that it is given.

    async with Client("127.0.0.1:2503", token=token) as client:
        run_id = await client.submit_document(io.BytesIO(document))
        async for change in client.watch(run_id):
            print(change.run.state)
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from daggyr.channel import Tls, check_exposure, open_channel, token_metadata
from daggyr.v1 import runs_pb2 as pb
from daggyr.v1.run_pb2 import RunSpec, RunSummary, State, Task, TaskSummary
from daggyr.v1.runs_pb2_grpc import RunsStub
from daggyr.v1.task_pb2 import OutputStream

CHUNK_BYTES = 256 * 1024  # of a document; a server waits 30 s for each, so that a slow connection brings it too
# Seconds for a call that answers with one message. Submitting and deleting take as long as they take; should the server go
# away meanwhile, the channel's keepalive finds out.
CALL_TIMEOUT = 60.0
PATIENCE = 60.0  # seconds without a word from the server until a watch or an output gives up
SUBMIT_PATIENCE = 5.0
BUSY_PATIENCE = 5.0  # seconds of trying again where the server cancels calls because it has too many to look at
ENDED = frozenset({State.STATE_COMPLETED, State.STATE_ERRORED, State.STATE_KILLED})

Answer = TypeVar("Answer")


# The server is going away. (A call that we cancel ourselves ends otherwise, with asyncio.CancelledError.)
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class ServerError(Exception):
    """A call that did not work. `code` is gRPC's status, `str()` the server's (or gRPC's) own words."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details or code.name)
        self.code = code


class Unreachable(ServerError):
    """No server answered: it is not there, went away (a server that stops cancels what it still does), or let a
    deadline pass: UNAVAILABLE, CANCELLED, DEADLINE_EXCEEDED."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch tells: the run as it is now, and the tasks that changed since the change before, each once.

    `missed`: tasks may have changed that are not told, so that whoever keeps track of tasks reads them again. So it is
    with the first change, and when the server no longer kept what came after the last one.
    """

    run: RunSummary
    tasks: Sequence[pb.TaskChange]
    missed: bool


class Client:
    """One connection to one server. Made inside a running event loop; `async with` or `close` ends it.

    Every method raises ServerError, or Unreachable where no server answers. A `run_id` of 0 is the newest run.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        insecure: bool = False,
        patience: float = PATIENCE,
        notice: Callable[[str], None] | None = None,
        warning: Callable[[str], None] | None = None,
    ) -> None:
        """`notice` is called with a sentence for people when a connection is lost and tried again, `warning` with one for what
        in a specification is valid and most likely not meant.

        Off loopback, a token goes over TLS only, unless `insecure` says that it need not. Nothing is sent yet. Raises
        daggyr.channel.AddressError.
        """
        check_exposure(address, token, tls, insecure=insecure)
        self._channel = open_channel(address, tls=tls)
        self._stub = RunsStub(self._channel)
        self._metadata = token_metadata(token)
        self._patience = patience
        self._notice = notice or (lambda sentence: None)
        self._warning = warning or (lambda sentence: None)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all calls and the connection."""
        await self._channel.close()

    async def submit_document(
        self, document: BinaryIO, *, tags: Mapping[str, str] | None = None, pool: str = "", request_id: str | None = None
    ) -> int:
        """The id of a new run from a JSON document of any size; it is durable when this returns.

        `document` is seekable and read from its start, once for each try; `tags` and `pool` go over the document's own.
        Tries that do not reach the server are repeated for a few seconds under the same request_id, which never makes a
        second run. A document that is refused is a ServerError with INVALID_ARGUMENT and one fault a line.
        """
        header = pb.SubmitRunHeader(request_id=request_id or str(uuid.uuid4()), tags=tags or {}, pool=pool)

        async def send() -> int:
            document.seek(0)
            call = self._stub.SubmitRunStream(metadata=self._metadata)
            try:
                # The server may end the call early, with a status that `await call` tells.
                with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    await call.write(pb.SubmitRunChunk(header=header))
                    while data := document.read(CHUNK_BYTES):
                        await call.write(pb.SubmitRunChunk(data=data))
                    await call.done_writing()
                answer: pb.SubmitRunResponse = await _translated(call)
            finally:
                call.cancel()
            self._warn(answer.warnings)
            return answer.run_id

        return await self._repeat(send)

    async def submit(self, spec: RunSpec, *, request_id: str | None = None) -> int:
        """The id of a new run from messages, at most 4 MiB of them. As submit_document otherwise."""
        request = pb.SubmitRunRequest(request_id=request_id or str(uuid.uuid4()), spec=spec)
        answer = await self._repeat(lambda: self._call(self._stub.SubmitRun, request))
        self._warn(answer.warnings)
        return int(answer.run_id)

    async def run(self, run_id: int) -> RunSummary:
        """The run as it is now. NOT_FOUND: no such run."""
        summary: RunSummary = await self._ask(self._stub.GetRun, pb.GetRunRequest(run_id=run_id))
        return summary

    async def runs(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        states: Iterable[State] = (),
        since: Timestamp | None = None,
        until: Timestamp | None = None,
    ) -> AsyncGenerator[Sequence[RunSummary], None]:
        """Pages of runs, newest first, with all of `tags`, any of `states`, submitted in [since, until)."""
        request = pb.ListRunsRequest(tags=tags or {}, states=states, since=since, until=until, page_size=1000)
        while True:
            page: pb.ListRunsResponse = await self._ask(self._stub.ListRuns, request)
            yield page.runs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def tasks(
        self, run_id: int, *, states: Iterable[State] = (), page_size: int = 10_000
    ) -> AsyncGenerator[Sequence[TaskSummary], None]:
        """Pages of a run's tasks by task number, in any of `states`; all pages are of one run."""
        request = pb.ListTasksRequest(run_id=run_id, states=states, page_size=page_size)
        while True:
            page: pb.ListTasksResponse = await self._ask(self._stub.ListTasks, request)
            yield page.tasks
            if not page.next_page_token:
                return
            request.run_id, request.page_token = page.run_id, page.next_page_token

    async def first_tasks(self, run_id: int, limit: int, *, states: Iterable[State] = ()) -> Sequence[TaskSummary]:
        """The first `limit` (at most 10,000) of a run's tasks in any of `states`."""
        found: list[TaskSummary] = []
        async with aclosing(self.tasks(run_id, states=states, page_size=limit)) as pages:
            async for page in pages:  # a server may give less than was asked for
                found += page
                if len(found) >= limit:
                    break
        return found[:limit]

    async def task(self, run_id: int, task_id: str) -> Task:
        """One task with all its attempts. NOT_FOUND: no such run or task."""
        request = pb.GetTaskRequest(run_id=run_id, task_id=task_id)
        task: Task = await self._ask(self._stub.GetTask, request)
        pages = [task]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(await self._ask(self._stub.GetTask, request))
        if len(pages) > 1:
            attempts = [attempt for page in reversed(pages) for attempt in page.attempts]
            del task.attempts[:]
            task.attempts.extend(attempts)
            task.next_page_token = ""
        return task

    async def explain(self, run_id: int, task_id: str) -> pb.ExplainTaskResponse:
        """Why a task is in the state it is in. NOT_FOUND: no such run or task."""
        request = pb.GetTaskRequest(run_id=run_id, task_id=task_id)
        answer: pb.ExplainTaskResponse = await self._ask(self._stub.ExplainTask, request)
        return answer

    async def watch(self, run_id: int, *, tasks: bool = False, heard: bool = False) -> AsyncGenerator[Change, None]:
        """Changes until the run has ended; the last one holds how. With `tasks`, also which tasks changed.

        The first call fails at once, unless the server was `heard` of before; a connection that is lost later is tried again
        from the last change.
        """
        request = pb.WatchRunRequest(run_id=run_id, tasks=tasks)
        backoff = _Backoff(self._patience, self._notice)
        missed, ended = True, False
        while not ended:
            stream = self._stub.WatchRun(request, metadata=self._metadata)
            try:
                async for message in stream:
                    heard, ended = True, message.run.state in ENDED
                    request.run_id, request.change_seq = message.run.run_id, message.run.change_seq
                    backoff.reset()
                    yield Change(message.run, message.tasks, missed)
                    missed = False
                if not ended:  # a server that goes away may end the stream in peace
                    await backoff.wait(Unreachable(grpc.StatusCode.UNAVAILABLE, "the server ended the watch"))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.OUT_OF_RANGE and request.change_seq:
                    request.change_seq, missed = 0, True
                elif ended:
                    return
                elif heard and error.code() in _GONE:
                    await backoff.wait(_typed(error))
                else:
                    raise _typed(error) from None
            finally:
                stream.cancel()

    async def output(
        self,
        run_id: int,
        task_id: str,
        *,
        attempt: int = 0,
        stream: OutputStream = OutputStream.STDOUT,
        offset: int = 0,
        follow: bool = False,
    ) -> AsyncGenerator[pb.ReadOutputResponse, None]:
        """Pieces of what one attempt (0: the last) wrote, from `offset` on, in order; with `follow`, until it ends.

        The first call fails at once; a connection that is lost later is tried again from the last byte.
        """
        request = pb.ReadOutputRequest(
            run_id=run_id, task_id=task_id, attempt=attempt, stream=stream, offset=offset, follow=follow
        )
        backoff = _Backoff(self._patience, self._notice)
        heard = False
        while True:
            pieces = self._stub.ReadOutput(request, metadata=self._metadata)
            try:
                async for piece in pieces:
                    heard = True
                    request.attempt, request.offset = piece.attempt, piece.offset + len(piece.data)
                    backoff.reset()
                    yield piece
                return
            except grpc.aio.AioRpcError as error:
                if not heard or error.code() not in _GONE:
                    raise _typed(error) from None
                await backoff.wait(_typed(error))
            finally:
                pieces.cancel()

    async def kill(self, run_id: int, tasks: Iterable[str] = ()) -> RunSummary:
        """Kills the run, or `tasks` of it; durable when this returns, while processes may take the grace period to end.

        NOT_FOUND: no such run or task. FAILED_PRECONDITION: it has ended already.
        """
        summary: RunSummary = await self._ask(self._stub.KillRun, pb.KillRunRequest(run_id=run_id, tasks=tasks))
        return summary

    async def retry(self, run_id: int, tasks: Iterable[str] = (), *, downstream: bool = False) -> RunSummary:
        """Queues what did not complete again, or `tasks`, with all that depends on them if `downstream`.

        NOT_FOUND: no such run or task. FAILED_PRECONDITION: the run, or a task that was named, has not ended.
        """
        request = pb.RetryRunRequest(run_id=run_id, tasks=tasks, downstream=downstream)
        summary: RunSummary = await self._call(self._stub.RetryRun, request)
        return summary

    async def mark(self, run_id: int, tasks: Iterable[str], state: State) -> RunSummary:
        """Says that `tasks` are COMPLETED or QUEUED; a run that had ended goes on. Durable when this returns.

        NOT_FOUND: no such run or task. FAILED_PRECONDITION: a task is in flight, or a generator whose tasks are part of the run
        was to be QUEUED. INVALID_ARGUMENT: another state, or no task.
        """
        request = pb.MarkTasksRequest(run_id=run_id, tasks=tasks, state=state)
        summary: RunSummary = await self._ask(self._stub.MarkTasks, request)
        return summary

    async def edit(
        self,
        run_id: int,
        document: BinaryIO,
        *,
        downstream: bool = False,
        plan: bool = False,
        revision: int = 0,
        remove: bool = False,
    ) -> AsyncGenerator[pb.EditRunResponse, None]:
        """Gives a run the specification in `document`, JSON of any size; durable when the last message has come.

        With `plan` nothing is changed, and the messages tell each task that would be. `revision`: only if the run has that one.
        `remove`: also where tasks are taken away that ran or run; otherwise that is FAILED_PRECONDITION.
        NOT_FOUND: no such run. INVALID_ARGUMENT: the document is refused, one fault a line. ABORTED: another edit was first, or
        the run has another revision. FAILED_PRECONDITION: the run is being killed.
        """
        header = pb.EditRunHeader(run_id=run_id, revision=revision, downstream=downstream, plan=plan, remove=remove)
        call = self._stub.EditRun(metadata=self._metadata)
        try:
            try:
                await call.write(pb.EditRunChunk(header=header))
                while data := document.read(CHUNK_BYTES):
                    await call.write(pb.EditRunChunk(data=data))
                await call.done_writing()
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                # The server has ended the call early; only its status says why.
                raise _of_status(await call.code(), await call.details()) from None
            async for message in call:
                self._warn(message.warnings)
                yield message
        except grpc.aio.AioRpcError as error:
            raise _typed(error) from None
        finally:
            call.cancel()

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self._warning(warning)

    async def delete(self, run_id: int) -> None:
        """Takes a run that has ended away, with its history and output, however long that takes. 0 is no run here.

        NOT_FOUND: no such run. FAILED_PRECONDITION: it has not ended.
        """
        await self._ask(self._stub.DeleteRun, pb.DeleteRunRequest(run_id=run_id), timeout=None)

    async def prune(self, ended_before: Timestamp) -> int:
        """Takes all runs away that ended before a time, however long that takes. Returns how many they were."""
        request = pb.PruneRunsRequest(ended_before=ended_before)
        answer: pb.PruneRunsResponse = await self._ask(self._stub.PruneRuns, request, timeout=None)
        return answer.runs

    async def pools(self) -> Sequence[pb.Pool]:
        found: list[pb.Pool] = []
        request = pb.ListPoolsRequest()
        while True:
            page: pb.ListPoolsResponse = await self._ask(self._stub.ListPools, request)
            found += page.pools
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def agents(self) -> Sequence[pb.Agent]:
        found: list[pb.Agent] = []
        request = pb.ListAgentsRequest()
        while True:
            page: pb.ListAgentsResponse = await self._ask(self._stub.ListAgents, request)
            found += page.agents
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def drain_agent(self, name: str) -> int:
        """How many attempts the agent still finishes before it leaves. NOT_FOUND: no agent of that name."""
        answer: pb.DrainAgentResponse = await self._ask(self._stub.DrainAgent, pb.DrainAgentRequest(name=name))
        return answer.running

    async def forget_agent(self, name: str) -> int:
        """How many attempts, LOST now, the agent still had. NOT_FOUND: none is known. FAILED_PRECONDITION: it is connected."""
        answer: pb.ForgetAgentResponse = await self._ask(self._stub.ForgetAgent, pb.ForgetAgentRequest(name=name))
        return answer.lost

    async def _call(self, method: Any, request: object, *, timeout: float | None = CALL_TIMEOUT) -> Any:
        return await _translated(method(request, metadata=self._metadata, timeout=timeout))

    async def _ask(self, method: Any, request: object, *, timeout: float | None = CALL_TIMEOUT) -> Any:
        """As `_call`, for what may be repeated: again if a server that has too much to do cancels it before it looks at it."""
        backoff = _Backoff(min(self._patience, BUSY_PATIENCE), lambda sentence: None, longest=0.2)
        while True:
            try:
                return await self._call(method, request, timeout=timeout)
            except Unreachable as error:
                if error.code is not grpc.StatusCode.CANCELLED:
                    raise
                await backoff.wait(error)

    async def _repeat(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        backoff = _Backoff(min(self._patience, SUBMIT_PATIENCE), self._notice)
        while True:
            try:
                return await call()
            except Unreachable as error:
                if error.code not in _GONE:
                    raise
                await backoff.wait(error)


class _Backoff:
    """The waits between tries: 0.2 s, doubling up to `longest`, with jitter, for `limit` seconds without success at most."""

    def __init__(self, limit: float, notice: Callable[[str], None], *, longest: float = 5.0) -> None:
        self._limit = limit
        self._longest = longest
        self._notice = notice
        self.reset()

    def reset(self) -> None:
        self._since: float | None = None
        self._delay = 0.2

    async def wait(self, error: ServerError) -> None:
        """Returns when it is time for another try; raises `error` when it is not worth one."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._notice("no connection to the server; trying again")
        if now + self._delay > self._since + self._limit:
            raise error from None
        await asyncio.sleep(self._delay * random.uniform(0.75, 1.0))
        self._delay = min(2 * self._delay, self._longest)


async def _translated(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _typed(error) from None


def _typed(error: grpc.aio.AioRpcError) -> ServerError:
    return _of_status(error.code(), error.details())


def _of_status(code: grpc.StatusCode, details: str | None) -> ServerError:
    unreachable = code in _GONE or code is grpc.StatusCode.DEADLINE_EXCEEDED
    return (Unreachable if unreachable else ServerError)(code, details or "")
