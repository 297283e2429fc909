"""Calls of a server from the process of the tests: what a test submits, waits for and looks at when it is not about `daggyr`.

`Deployment` makes one for its server. A call costs a millisecond or two, where a program that is started for it costs a third
of a second of a core. Each answer is a value of the shape that `daggyr --output json` prints, so that a test may take either. It
has no event loop, and so tests with one and tests without one may use it. What changes
a run is in its own calls, from `submit` to `edit`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc

from daggyr.channel import CHANNEL_OPTIONS, token_metadata
from daggyr.v1 import runs_pb2 as pb
from daggyr.v1.run_pb2 import RunSummary, State
from daggyr.v1.runs_pb2_grpc import RunsStub
from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputStream
from daggyr_server.cli import shapes
from daggyr_server.cli.commands.look import wrote_nothing
from support.waiting import DEADLINE

_CHUNK_BYTES = 256 * 1024
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_ENDED = ("COMPLETED", "ERRORED", "KILLED")


class ServerCalls:
    """Life: made with the server's address and the client token; any calls, over one connection; `close`."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=list(CHANNEL_OPTIONS))
        self._stub: Any = RunsStub(self._channel)
        self._given = {"metadata": token_metadata(token), "timeout": DEADLINE}

    def close(self) -> None:
        self._channel.close()

    def submit(self, document: Path, *, pool: str = "", request_id: str = "") -> int:
        """Submit a file of JSON; returns the run's id. Raises grpc.RpcError if it is refused. `request_id` is for repetitions."""

        def chunks() -> Iterator[pb.SubmitRunChunk]:
            yield pb.SubmitRunChunk(header=pb.SubmitRunHeader(request_id=request_id or str(uuid.uuid4()), pool=pool))
            with document.open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    yield pb.SubmitRunChunk(data=data)

        return int(self._stub.SubmitRunStream(chunks(), **self._given).run_id)

    def delete(self, run_id: int) -> None:
        self._stub.DeleteRun(pb.DeleteRunRequest(run_id=run_id), **self._given)

    def kill(self, run_id: int, tasks: Iterable[str] = ()) -> None:
        """This and the calls that follow raise grpc.RpcError if they are refused."""
        self._stub.KillRun(pb.KillRunRequest(run_id=run_id, tasks=tasks), **self._given)

    def retry(self, run_id: int, tasks: Iterable[str] = (), *, downstream: bool = False, all: bool = False) -> None:
        self._stub.RetryRun(pb.RetryRunRequest(run_id=run_id, tasks=tasks, downstream=downstream, all=all), **self._given)

    def mark(self, run_id: int, tasks: Iterable[str], state: str, *, all: bool = False) -> None:
        request = pb.MarkTasksRequest(run_id=run_id, tasks=tasks, state=State.Value(f"STATE_{state}"), all=all)
        self._stub.MarkTasks(request, **self._given)

    def edit(self, run_id: int, document: bytes, **options: bool) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """The totals of an edit and, with `plan`, each task that would be changed. `options` are those of EditRunHeader."""
        chunks = [pb.EditRunChunk(header=pb.EditRunHeader(run_id=run_id, **options)), pb.EditRunChunk(data=document)]
        totals, tasks = pb.EditTotals(), list[dict[str, Any]]()
        for answer in self._stub.EditRun(iter(chunks), **self._given):
            totals.MergeFrom(answer.totals)
            tasks += map(shapes.task_edit, answer.tasks)
        return shapes.edit_totals(totals), tasks

    def ended(self, run_id: int) -> RunSummary:
        """The run, once it has ended. A server that goes away meanwhile is waited for, as `daggyr watch` does."""
        heard = False
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                for message in self._stub.WatchRun(pb.WatchRunRequest(run_id=run_id), **self._given):
                    heard = True
                    if shapes.run(message.run)["state"] in _ENDED:
                        return self._stub.GetRun(pb.GetRunRequest(run_id=run_id), **self._given)
            except grpc.RpcError as error:
                if not heard or error.code() not in _GONE:  # type: ignore[attr-defined]
                    raise
            assert time.monotonic() < deadline, f"the end of run {run_id} never came"
            time.sleep(0.05)

    def run(self, run_id: int) -> dict[str, Any]:
        """As `show`."""
        return shown(self._stub.GetRun(pb.GetRunRequest(run_id=run_id), **self._given))

    def runs(self) -> list[dict[str, Any]]:
        request = pb.ListRunsRequest(page_size=1000)
        return [shapes.run(run) for page in self._pages(self._stub.ListRuns, request) for run in page.runs]

    def tasks(self, run_id: int) -> list[dict[str, Any]]:
        request = pb.ListTasksRequest(run_id=run_id, page_size=10_000)
        return [shapes.task_summary(task) for page in self._pages(self._stub.ListTasks, request) for task in page.tasks]

    def task(self, run_id: int, task_id: str) -> dict[str, Any]:
        """With all its attempts, and what they wrote."""
        request = pb.GetTaskRequest(run_id=run_id, task_id=task_id)
        pages = list(self._pages(self._stub.GetTask, request))
        task = pages[0]
        attempts = [attempt for page in reversed(pages) for attempt in page.attempts]
        del task.attempts[:]
        task.attempts.extend(attempts)
        outputs = {}
        for attempt in attempts:
            read = [
                b"" if wrote_nothing(attempt, stream) else self._output(run_id, task_id, attempt.attempt, stream)
                for stream in (STDOUT, STDERR)
            ]
            outputs[attempt.attempt] = (read[0], read[1])
        return shapes.task(task, outputs)

    def why(self, run_id: int, task_id: str) -> list[str]:
        """The reasons that `why` tells."""
        return list(self._stub.ExplainTask(pb.GetTaskRequest(run_id=run_id, task_id=task_id), **self._given).reasons)

    def pools(self) -> list[dict[str, Any]]:
        return [shapes.pool(pool) for page in self._pages(self._stub.ListPools, pb.ListPoolsRequest()) for pool in page.pools]

    def agents(self) -> list[dict[str, Any]]:
        pages = self._pages(self._stub.ListAgents, pb.ListAgentsRequest())
        return [shapes.agent(agent) for page in pages for agent in page.agents]

    def _output(self, run_id: int, task_id: str, attempt: int, stream: OutputStream) -> bytes:
        request = pb.ReadOutputRequest(run_id=run_id, task_id=task_id, attempt=attempt, stream=stream)
        kept = bytearray()
        for piece in self._stub.ReadOutput(request, **self._given):
            if piece.missing_bytes:
                new_line = b"" if not kept or kept.endswith(b"\n") else b"\n"
                kept += new_line + f"[... {piece.missing_bytes} bytes not kept ...]\n".encode()
            kept += piece.data
        return bytes(kept)

    def _pages(self, method: Callable[..., Any], request: Any) -> Iterable[Any]:
        while True:
            page = method(request, **self._given)
            yield page
            if not page.next_page_token:
                return
            if hasattr(page, "run_id") and hasattr(request, "run_id"):
                request.run_id = page.run_id  # 0 was the newest run, of which all pages are
            request.page_token = page.next_page_token


def shown(run: RunSummary) -> dict[str, Any]:
    """A run as `daggyr --output json show` prints it."""
    return {**shapes.run(run), "history": shapes.history(run.history)}
