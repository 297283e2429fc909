"""Documents on their way to the server: one budget on disk for all, given back at once, and no client waited for in vain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from drivers import still_driver
from support.waiting import DEADLINE

from daggyr.channel import open_channel
from daggyr.v1 import runs_pb2
from daggyr.v1.runs_pb2_grpc import RunsStub, add_RunsServicer_to_server
from daggyr_server.api.listening.listener import Listener
from daggyr_server.api.runs import RunsService
from daggyr_server.api.servicer import Limits
from daggyr_server.spec import PoolLimits

MEGABYTE = 1024 * 1024


class Serving:
    """A server without executors, and a client's stub."""

    def __init__(self, service: RunsService, stub: RunsStub) -> None:
        self.service = service
        self.arriving = service.arriving
        self.stub = stub

    async def begun(self, size: int, method: str = "SubmitRunStream") -> Any:
        """Return a call that has brought a header and this many bytes and has not ended."""
        before = self.arriving.taken
        call = getattr(self.stub, method)()
        header = {"request_id": os.urandom(8).hex()} if method == "SubmitRunStream" else {"run_id": 1}
        await call.write({"SubmitRunStream": runs_pb2.SubmitRunChunk, "EditRun": runs_pb2.EditRunChunk}[method](header=header))
        left = size
        while left:
            await call.write(runs_pb2.SubmitRunChunk(data=b" " * min(left, MEGABYTE)))
            left -= min(left, MEGABYTE)
        await self.until(lambda: self.arriving.taken >= before + size)
        return call

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0)


@asynccontextmanager
async def serving(tmp_path: Path, **limits: Any) -> AsyncIterator[Serving]:
    (tmp_path / "socket").mkdir(mode=0o700)
    driver = still_driver("main")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(driver.close)
        await driver.start({})
        given: dict[str, Any] = {"max_bytes": 2**30, "max_tasks": 1000, **limits}
        allowed = Limits(pools={"main": PoolLimits()}, executors={"main": "noop"}, default_pool="main", **given)
        service = RunsService(driver.requests, driver.reader, driver.changes, allowed)
        listener = Listener(f"unix:{tmp_path}/socket/s", tokens=None)
        add_RunsServicer_to_server(service, listener.server)
        stack.push_async_callback(listener.stop, 0)
        address = await listener.start()
        channel = await stack.enter_async_context(open_channel(address))
        yield Serving(service, RunsStub(channel))
        await Serving(service, RunsStub(channel)).until(lambda: service.arriving.taken == 0)
        assert (service.arriving.in_memory, service.arriving.files) == (0, 0)


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with asyncio.timeout(DEADLINE):
            await call if not hasattr(call, "read") else await call.read()
    return refused.value.code(), refused.value.details() or ""


def open_files() -> int:
    """Return the files without a name that this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            target = str(entry.readlink())
            found += target.startswith("/") and target.endswith(" (deleted)")
    return found


@pytest.mark.parametrize("size", [0, 1, MEGABYTE - 1, MEGABYTE, 5 * MEGABYTE + 3, 40 * MEGABYTE])
async def test_a_document_of_any_size_arrives_whole(tmp_path: Path, size: int) -> None:
    async with serving(tmp_path) as server:
        tasks = {"a": {"details": {"command": ["x"]}}}
        document = json.dumps({"tasks": tasks}).encode() + b" " * size
        call = server.stub.SubmitRunStream()
        await call.write(runs_pb2.SubmitRunChunk(header=runs_pb2.SubmitRunHeader(request_id="r")))
        for start in range(0, len(document), 300_000):
            await call.write(runs_pb2.SubmitRunChunk(data=document[start : start + 300_000]))
        await call.done_writing()
        run_id = (await call).run_id
        assert await server.service.reader.document(run_id) == document
        assert msgspec.json.decode(document) == {"tasks": tasks}


async def test_all_documents_share_one_budget_which_a_call_gives_back_however_it_ends(tmp_path: Path) -> None:
    async with serving(tmp_path, max_arriving_bytes=10 * MEGABYTE) as server:
        before = open_files()
        first, second = await server.begun(6 * MEGABYTE), await server.begun(3 * MEGABYTE)
        assert server.arriving.files == 2 and server.arriving.in_memory < 2 * MEGABYTE
        assert open_files() == before + 2
        third = server.stub.SubmitRunStream()
        await third.write(runs_pb2.SubmitRunChunk(header=runs_pb2.SubmitRunHeader(request_id="third")))
        await third.write(runs_pb2.SubmitRunChunk(data=b" " * (2 * MEGABYTE)))
        code, words = await code_of(third)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"{9 * MEGABYTE:,} bytes" in words and "max_arriving_bytes" in words and "try again" in words
        first.cancel()
        await server.until(lambda: server.arriving.taken == 3 * MEGABYTE)
        await server.until(lambda: open_files() == before + 1)
        fourth = await server.begun(6 * MEGABYTE)
        second.cancel()
        fourth.cancel()  # otherwise the server would wait a minute for more of it


@pytest.mark.parametrize("method", ["SubmitRunStream", "EditRun"])
@pytest.mark.parametrize("size", [0, 10, 2 * MEGABYTE])
async def test_a_stream_that_brings_nothing_is_ended(tmp_path: Path, method: str, size: int) -> None:
    async with serving(tmp_path, arriving_seconds=0.2) as server:
        call = getattr(server.stub, method)()
        if size:
            made = {"SubmitRunStream": runs_pb2.SubmitRunChunk, "EditRun": runs_pb2.EditRunChunk}[method]
            header = {"request_id": "r"} if method == "SubmitRunStream" else {"run_id": 1}
            await call.write(made(header=header))
            await call.write(made(data=b" " * size))
        code, words = await code_of(call)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert words == "nothing of the specification came for 0.2 s"


async def test_a_folder_that_takes_nothing_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.arriving._folder = tmp_path / "nowhere"
        call = server.stub.SubmitRunStream()
        await call.write(runs_pb2.SubmitRunChunk(header=runs_pb2.SubmitRunHeader(request_id="r")))
        await call.write(runs_pb2.SubmitRunChunk(data=b" " * MEGABYTE))
        code, words = await code_of(call)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert words == "the server has no room for the specification: No such file or directory"
