"""How a JSON document of any size travels to the server, in chunks: to submit it as a run, or as another specification of one.

`Client` calls these. They read the document that they are given and nothing else of the disk; they never look into it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from typing import BinaryIO

import grpc

from daggyr.client.calls import Calls
from daggyr.client.errors import of_status, translated, typed
from daggyr.v1 import runs_pb2 as pb

CHUNK_BYTES = 256 * 1024  # a server waits 30 s for each chunk, so that a slow connection brings one in time


async def send_run(calls: Calls, document: BinaryIO, header: pb.SubmitRunHeader) -> pb.SubmitRunResponse:
    """The server's answer to one try. The document is read from its start. Raises ServerError."""
    document.seek(0)
    call = calls.stub.SubmitRunStream(metadata=calls.metadata)
    try:
        # The server may end the call early, with a status that awaiting the call tells.
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await call.write(pb.SubmitRunChunk(header=header))
            while data := document.read(CHUNK_BYTES):
                await call.write(pb.SubmitRunChunk(data=data))
            await call.done_writing()
        answer: pb.SubmitRunResponse = await translated(call)
        return answer
    finally:
        call.cancel()


async def send_edit(
    calls: Calls, document: BinaryIO, header: pb.EditRunHeader, warn: Callable[[Iterable[str]], None]
) -> AsyncGenerator[pb.EditRunResponse, None]:
    """The server's messages on one edit, which is tried once; `warn` is told of the warnings in them. Raises ServerError."""
    call = calls.stub.EditRun(metadata=calls.metadata)
    try:
        try:
            await call.write(pb.EditRunChunk(header=header))
            while data := document.read(CHUNK_BYTES):
                await call.write(pb.EditRunChunk(data=data))
            await call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            # The server has ended the call early; only its status says why.
            raise of_status(await call.code(), await call.details()) from None
        async for message in call:
            warn(message.warnings)
            yield message
    except grpc.aio.AioRpcError as error:
        raise typed(error) from None
    finally:
        call.cancel()
