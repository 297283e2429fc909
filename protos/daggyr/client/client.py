"""`Client`: the calls of the `Runs` service as methods, for programs.

A method makes one request, reads all its pages, and returns the contract's messages (`daggyr/v1/runs.proto` and `run.proto` say
what their fields mean). How calls travel is in `calls`, `documents` and `following`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import BinaryIO

from google.protobuf.timestamp_pb2 import Timestamp

from daggyr.address import Tls
from daggyr.client.calls import Calls
from daggyr.client.documents import send_edit, send_run
from daggyr.client.following import Change, changes_of, pieces_of
from daggyr.v1 import runs_pb2 as pb
from daggyr.v1.run_pb2 import RunSpec, RunSummary, State, Task, TaskSummary
from daggyr.v1.task_pb2 import OutputStream

PATIENCE = 60.0  # seconds without a word from the server, until a watch or an output that was lost gives up


class Client:
    """One connection to one server. It is made inside a running event loop; `async with` or `close` ends it.

    Every method raises ServerError, and of these Unreachable where no server answers. Each docstring names the codes that are the
    caller's to handle. A `run_id` of 0 means the newest run, unless a method says otherwise.
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
        """Nothing is sent yet. Raises daggyr.address.AddressError for an address or a TLS file that cannot be used.

        `address` is HOST:PORT or unix:PATH. `token` is the text of a client token (`daggyr.tokens` finds and reads its file). Off
        loopback a token goes over TLS only, unless `insecure` says that the network is trusted. `patience` is in seconds.
        `notice` is called with a sentence for people when a connection was lost and is tried again, and `warning` with one for
        what is valid in a specification and most likely not meant.
        """
        self._calls = Calls(
            address, token=token, tls=tls, insecure=insecure, patience=patience, notice=notice or (lambda sentence: None)
        )
        self._warning = warning or (lambda sentence: None)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._calls.close()

    async def submit_document(
        self, document: BinaryIO, *, tags: Mapping[str, str] | None = None, pool: str = "", request_id: str | None = None
    ) -> int:
        """Submit a JSON document of any size and return the id of its run. The run is durable when this returns.

        `document` must be seekable; each try reads it from its start. `tags` and `pool` win over those in the document. Tries
        that do not reach the server are repeated for five seconds under the same `request_id` (a random one unless given), so
        that the run is made once. INVALID_ARGUMENT: the specification is refused, and the message has one fault a line.
        """
        header = pb.SubmitRunHeader(request_id=request_id or str(uuid.uuid4()), tags=tags or {}, pool=pool)
        answer = await self._calls.submitted(lambda: send_run(self._calls, document, header))
        self._warn(answer.warnings)
        return answer.run_id

    async def submit(self, spec: RunSpec, *, request_id: str | None = None) -> int:
        """Submit a specification made of messages, of at most 4 MiB. All else is as with `submit_document`."""
        request = pb.SubmitRunRequest(request_id=request_id or str(uuid.uuid4()), spec=spec)
        answer = await self._calls.submitted(lambda: self._calls.once(self._calls.stub.SubmitRun, request))
        self._warn(answer.warnings)
        return int(answer.run_id)

    async def run(self, run_id: int) -> RunSummary:
        """The run as it is now. NOT_FOUND: there is no such run."""
        summary: RunSummary = await self._calls.repeatable(self._calls.stub.GetRun, pb.GetRunRequest(run_id=run_id))
        return summary

    async def runs(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        states: Iterable[State] = (),
        since: Timestamp | None = None,
        until: Timestamp | None = None,
    ) -> AsyncGenerator[Sequence[RunSummary], None]:
        """Pages of runs, newest first: those with all of `tags`, in any of `states` (all if there are none), submitted in
        [since, until)."""
        request = pb.ListRunsRequest(tags=tags or {}, states=states, since=since, until=until, page_size=1000)
        async with aclosing(self._calls.pages(self._calls.stub.ListRuns, request)) as pages:
            async for page in pages:
                yield page.runs

    async def tasks(
        self, run_id: int, *, states: Iterable[State] = (), page_size: int = 10_000, output_sizes: bool = False
    ) -> AsyncGenerator[Sequence[TaskSummary], None]:
        """Pages of a run's tasks in the order of their numbers: those in any of `states` (all if there are none).

        With `output_sizes`, they also tell how much the last attempts wrote, unless the server is too old to know.
        All pages are of one run, even where `run_id` is 0 and another run is submitted meanwhile. `page_size` is at most 10,000.
        NOT_FOUND: there is no such run.
        """
        request = pb.ListTasksRequest(run_id=run_id, states=states, page_size=page_size, output_sizes=output_sizes)
        async with aclosing(self._calls.pages(self._calls.stub.ListTasks, request)) as pages:
            async for page in pages:
                yield page.tasks
                request.run_id = page.run_id

    async def first_tasks(self, run_id: int, limit: int, *, states: Iterable[State] = ()) -> Sequence[TaskSummary]:
        """The first `limit` (at most 10,000) tasks that `tasks` would give."""
        found: list[TaskSummary] = []
        async with aclosing(self.tasks(run_id, states=states, page_size=limit)) as pages:
            async for page in pages:  # a server may give less than was asked for
                found += page
                if len(found) >= limit:
                    break
        return found[:limit]

    async def task(self, run_id: int, task_id: str) -> Task:
        """One task with all its attempts, oldest first. NOT_FOUND: there is no such run or task."""
        request = pb.GetTaskRequest(run_id=run_id, task_id=task_id)
        task: Task = await self._calls.repeatable(self._calls.stub.GetTask, request)
        pages = [task]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(await self._calls.repeatable(self._calls.stub.GetTask, request))
        if len(pages) > 1:
            attempts = [attempt for page in reversed(pages) for attempt in page.attempts]
            del task.attempts[:]
            task.attempts.extend(attempts)
            task.next_page_token = ""
        return task

    async def explain(self, run_id: int, task_id: str) -> pb.ExplainTaskResponse:
        """Why a task is in its state, in sentences for people. NOT_FOUND: there is no such run or task."""
        request = pb.GetTaskRequest(run_id=run_id, task_id=task_id)
        answer: pb.ExplainTaskResponse = await self._calls.repeatable(self._calls.stub.ExplainTask, request)
        return answer

    def watch(self, run_id: int, *, tasks: bool = False, heard: bool = False) -> AsyncGenerator[Change, None]:
        """Changes of a run until it has ended; the last one holds how it ended. With `tasks`, each says which tasks changed.

        The first call is tried once, unless the caller has `heard` from the server before. A connection that is lost later is
        tried again for `patience` seconds, and the watch goes on from its last change. NOT_FOUND: there is no such run.
        """
        return changes_of(self._calls, pb.WatchRunRequest(run_id=run_id, tasks=tasks), heard=heard)

    async def wait(self, run_id: int) -> RunSummary:
        """The run once it has ended, however long that takes; its `state` is in ENDED. It goes on after a lost connection as
        `watch` does. NOT_FOUND: there is no such run."""
        run = RunSummary()
        async with aclosing(self.watch(run_id)) as changes:
            async for change in changes:
                run = change.run
        return run

    def output(
        self,
        run_id: int,
        task_id: str,
        *,
        attempt: int = 0,
        stream: OutputStream = OutputStream.STDOUT,
        offset: int = 0,
        follow: bool = False,
    ) -> AsyncGenerator[pb.ReadOutputResponse, None]:
        """Pieces of what one attempt (0 is the last one) wrote to `stream`, in order, from the byte `offset` on.

        With `follow`, pieces come until the attempt has ended, otherwise until there are no more. `missing_bytes` of a piece is
        what the server did not keep right before it. The first call is tried once; a connection that is lost later is tried again
        for `patience` seconds, and the output goes on at the last byte. NOT_FOUND: there is no such run, task or attempt.
        """
        request = pb.ReadOutputRequest(
            run_id=run_id, task_id=task_id, attempt=attempt, stream=stream, offset=offset, follow=follow
        )
        return pieces_of(self._calls, request)

    async def kill(self, run_id: int, tasks: Iterable[str] = ()) -> RunSummary:
        """Kill the run, or `tasks` of it. The order is durable when this returns; processes may take the grace period to end.

        NOT_FOUND: there is no such run or task. FAILED_PRECONDITION: it has ended already.
        """
        request = pb.KillRunRequest(run_id=run_id, tasks=tasks)
        summary: RunSummary = await self._calls.repeatable(self._calls.stub.KillRun, request)
        return summary

    async def retry(self, run_id: int, tasks: Iterable[str] = (), *, downstream: bool = False, all: bool = False) -> RunSummary:
        """Queue what did not complete again; or `tasks`, with all that depends on them if `downstream`.

        Of a run that was killed, other tasks that the kill left behind stay so, unless `all` is given.
        NOT_FOUND: there is no such run or task. FAILED_PRECONDITION: the run, or a task that was named, has not ended. After
        Unreachable, read the run before a second try: the first one may have worked.
        """
        request = pb.RetryRunRequest(run_id=run_id, tasks=tasks, downstream=downstream, all=all)
        summary: RunSummary = await self._calls.once(self._calls.stub.RetryRun, request)
        return summary

    async def mark(self, run_id: int, tasks: Iterable[str], state: State, *, all: bool = False) -> RunSummary:
        """Say that `tasks` are COMPLETED or QUEUED. It is durable when this returns, and a run that had ended goes on.

        What a kill of the run left behind stays so, unless `all` is given.

        NOT_FOUND: there is no such run or task. FAILED_PRECONDITION: an attempt of a task has not ended, or a generator whose
        tasks are part of the run was to be QUEUED. INVALID_ARGUMENT: it is another state, or there is no task.
        """
        request = pb.MarkTasksRequest(run_id=run_id, tasks=tasks, state=state, all=all)
        summary: RunSummary = await self._calls.repeatable(self._calls.stub.MarkTasks, request)
        return summary

    def edit(
        self,
        run_id: int,
        document: BinaryIO,
        *,
        downstream: bool = False,
        plan: bool = False,
        revision: int = 0,
        remove: bool = False,
        all: bool = False,
    ) -> AsyncGenerator[pb.EditRunResponse, None]:
        """Give a run the specification in `document`, JSON of any size. It is durable when the last message has come.

        With `plan` nothing is changed, and the messages tell each task that would be. With `revision`, the run is changed only
        if it has that one. `remove` allows to take tasks away that ran or run. What a kill of the run left behind and is
        unchanged stays so, unless `all` is given. `downstream` also queues what depends on COMPLETED tasks that are changed.
        NOT_FOUND: there is no such run. INVALID_ARGUMENT: the document is refused, with one fault a line. ABORTED: another edit
        was first, or the run has another revision. FAILED_PRECONDITION: the run is being killed, or tasks would be taken away
        without `remove`.
        """
        header = pb.EditRunHeader(run_id=run_id, revision=revision, downstream=downstream, plan=plan, remove=remove, all=all)
        return send_edit(self._calls, document, header, self._warn)

    async def delete(self, run_id: int) -> None:
        """Take a run that has ended away, with its history and output, however long that takes. 0 is no run here.

        NOT_FOUND: there is no such run. FAILED_PRECONDITION: it has not ended.
        """
        await self._calls.repeatable(self._calls.stub.DeleteRun, pb.DeleteRunRequest(run_id=run_id), timeout=None)

    async def prune(self, ended_before: Timestamp) -> int:
        """Take all runs away that ended before a time, however long that takes. Returns how many they were."""
        async with aclosing(self.pruned(ended_before)) as answers:
            return sum([answer.runs async for answer in answers])

    async def pruned(self, ended_before: Timestamp, *, limit: int = 5_000) -> AsyncGenerator[pb.PruneRunsResponse, None]:
        """The same, `limit` runs a call. Gives the answers of the calls, so that a person can be told how far it has come."""
        request = pb.PruneRunsRequest(ended_before=ended_before, limit=limit)
        while True:
            answer: pb.PruneRunsResponse = await self._calls.repeatable(self._calls.stub.PruneRuns, request, timeout=None)
            yield answer
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def pools(self) -> Sequence[pb.Pool]:
        """All pools with what their hosts offer and what is in use."""
        pages = self._calls.pages(self._calls.stub.ListPools, pb.ListPoolsRequest())
        return [one async for page in pages for one in page.pools]

    async def agents(self) -> Sequence[pb.Agent]:
        """All agents that are connected, or whose lease has not ended yet."""
        pages = self._calls.pages(self._calls.stub.ListAgents, pb.ListAgentsRequest())
        return [one async for page in pages for one in page.agents]

    async def drain_agent(self, name: str) -> int:
        """Let an agent finish what it runs and leave. Returns how many attempts it still finishes.

        NOT_FOUND: there is no agent of that name.
        """
        answer: pb.DrainAgentResponse = await self._calls.repeatable(self._calls.stub.DrainAgent, pb.DrainAgentRequest(name=name))
        return answer.running

    async def forget_agent(self, name: str) -> int:
        """Forget an agent of this name or id and its key. Returns how many attempts, which are LOST now, it still had.

        NOT_FOUND: no such agent is known. FAILED_PRECONDITION: it is connected.
        """
        request = pb.ForgetAgentRequest(name=name)
        answer: pb.ForgetAgentResponse = await self._calls.repeatable(self._calls.stub.ForgetAgent, request)
        return answer.lost

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self._warning(warning)
