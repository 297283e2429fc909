"""Small real services behind a Listener, for the tests of this folder: one method of each call kind, health, reflection."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from support.waiting import DEADLINE

from daggyr.v1 import agents_pb2, agents_pb2_grpc, run_pb2, runs_pb2, runs_pb2_grpc
from daggyr_server.api.listening.authentication import Tokens
from daggyr_server.api.listening.listener import Listener
from daggyr_server.config import Tls

TOKENS = Tokens(client="daggyr-client-abc", agent="daggyr-agent-def")


class Runs(runs_pb2_grpc.RunsServicer):
    """A method that answers once, one that sends a stream, and one that reads a stream."""

    async def GetRun(self, request: Any, context: Any) -> Any:
        return run_pb2.RunSummary(run_id=request.run_id)

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield runs_pb2.RunChange()
        yield runs_pb2.RunChange()

    async def SubmitRunStream(self, requests: Any, context: Any) -> Any:
        return runs_pb2.SubmitRunResponse(run_id=len([request async for request in requests]))


class Agents(agents_pb2_grpc.AgentsServicer):
    """A method that reads and sends a stream."""

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield agents_pb2.CoordinatorMessage()


@asynccontextmanager
async def serving(
    address: str = "127.0.0.1:0", *, tokens: Tokens | None = TOKENS, tls: Tls | None = None, agents: Any = None
) -> AsyncIterator[str]:
    """A server with all these services, and its real address."""
    listener = Listener(address, tokens=tokens, tls=tls)
    server = listener.server
    runs_pb2_grpc.add_RunsServicer_to_server(Runs(), server)
    agents_pb2_grpc.add_AgentsServicer_to_server(agents or Agents(), server)
    checks = health.aio.HealthServicer()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((reflection.SERVICE_NAME, "daggyr.v1.Runs"), server)
    try:
        yield await listener.start()
    finally:
        await listener.stop(0)


UNARY_UNARY = "/daggyr.v1.Runs/GetRun"
UNARY_STREAM = "/daggyr.v1.Runs/WatchRun"
STREAM_UNARY = "/daggyr.v1.Runs/SubmitRunStream"
STREAM_STREAM = "/daggyr.v1.Agents/Session"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def call(
    channel: Any, method: str, payloads: tuple[bytes, ...] = (b"",), authorization: tuple[str, ...] = ()
) -> list[bytes]:
    """Call `method` with raw messages and return the raw answers. Raises grpc.aio.AioRpcError unless it ends with OK."""
    metadata = tuple(("authorization", value) for value in authorization)

    async def requests() -> AsyncIterator[bytes]:
        for payload in payloads:
            yield payload

    if method in (STREAM_STREAM, REFLECTION):
        return [answer async for answer in channel.stream_stream(method)(requests(), metadata=metadata)]
    if method == STREAM_UNARY:
        return [await channel.stream_unary(method)(requests(), metadata=metadata)]
    if method == UNARY_STREAM:
        return [answer async for answer in channel.unary_stream(method)(payloads[0], metadata=metadata)]
    return [await channel.unary_unary(method)(payloads[0], metadata=metadata)]


async def status(
    channel: Any, method: str, payloads: tuple[bytes, ...] = (b"",), authorization: tuple[str, ...] = ()
) -> tuple[grpc.StatusCode, str]:
    """Return how such a call ends: its code and message.

    gRPC may end a call with an error of its own if the call is refused while its client is about to write. It is made again then.
    """
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            await call(channel, method, payloads, authorization)
        except grpc.aio.AioRpcError as error:
            if error.details() != "Internal error from Core":
                return error.code(), error.details() or ""
        else:
            return grpc.StatusCode.OK, ""
    raise AssertionError("gRPC never told how the call ended")
