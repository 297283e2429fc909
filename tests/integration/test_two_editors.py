"""Two clients that edit a run at the same time: the first edit stands, and the second client is told of it."""

from __future__ import annotations

import asyncio
import io
import json

import grpc
import pytest
from support.deployment import Deployment, shell

from daggyr.client import Client, ServerError
from daggyr.v1 import runs_pb2 as pb


async def test_an_edit_that_another_one_overtook_is_refused(local: Deployment) -> None:
    run_id = await asyncio.to_thread(local.submit, {"a": shell("true")})
    await asyncio.to_thread(local.watch, run_id)

    def document(script: str) -> bytes:
        return json.dumps({"tasks": {"a": shell(script)}}).encode()

    async with local.client() as slow, local.client() as fast:
        call = slow._calls.stub.EditRun(metadata=slow._calls.metadata)
        await call.write(pb.EditRunChunk(header=pb.EditRunHeader(run_id=run_id)))
        # More than fits on the way, so that the server has taken the header, and reads on, when all of it is written (RFC 9113,
        # section 5.2).
        for _ in range(16):
            await call.write(pb.EditRunChunk(data=b" " * (1 << 20)))
        await overtaken(fast, run_id, document("fast"))
        await call.write(pb.EditRunChunk(data=document("slow")))
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in call:
                pytest.fail("it was answered")
        assert error.value.code() is grpc.StatusCode.ABORTED
        assert "was edited meanwhile" in (error.value.details() or "")
        assert (await fast.task(run_id, "a")).details.command[-1] == "fast"


async def overtaken(fast: Client, run_id: int, document: bytes) -> None:
    """Make an edit that overtakes the other client's."""
    try:
        async for _ in fast.edit(run_id, io.BytesIO(document)):
            pass
    except ServerError as error:
        pytest.fail(str(error))
