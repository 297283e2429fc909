"""Two clients that edit a run at the same time: what the first one has done stands, the second is told."""

from __future__ import annotations

import asyncio
import io
import json

import grpc
import pytest
from deployment import Deployment, shell

from daggyr.v1 import runs_pb2 as pb
from daggyr_server.client import Client, ServerError


async def test_an_edit_that_another_one_overtook_is_refused(local: Deployment) -> None:
    run_id = await asyncio.to_thread(local.submit, {"a": shell("true")})
    await asyncio.to_thread(local.watch, run_id)

    def document(script: str) -> bytes:
        return json.dumps({"tasks": {"a": shell(script)}}).encode()

    async with local.client() as slow, local.client() as fast:
        call = slow._stub.EditRun(metadata=slow._metadata)
        await call.write(pb.EditRunChunk(header=pb.EditRunHeader(run_id=run_id)))
        await call.write(pb.EditRunChunk(data=document("slow")[:10]))
        await overtaken(slow, fast, run_id, document("fast"))
        await call.write(pb.EditRunChunk(data=document("slow")[10:]))
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in call:
                pytest.fail("it was answered")
        assert error.value.code() is grpc.StatusCode.ABORTED
        assert "was edited meanwhile" in (error.value.details() or "")
        assert (await fast.task(run_id, "a")).details.command[-1] == "fast"


async def overtaken(slow: Client, fast: Client, run_id: int, document: bytes) -> None:
    """The second edit's header has arrived when this one is made: it is in the server's hands before the first answer of another
    call on the same connection."""
    await slow.run(run_id)
    try:
        async for _ in fast.edit(run_id, io.BytesIO(document)):
            pass
    except ServerError as error:
        pytest.fail(str(error))
