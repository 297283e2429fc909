"""Places of calls and connections: which callers can keep others out of a real server that has few of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from services import HEALTH, STREAM_STREAM, STREAM_UNARY, TOKENS, UNARY_STREAM, UNARY_UNARY, Agents, Runs, status

from daggyr.channel import open_channel, token_metadata
from daggyr.v1 import agents_pb2_grpc, runs_pb2, runs_pb2_grpc
from daggyr_server.api.listening.authentication import Authentication, Tokens
from daggyr_server.api.listening.malformed import MalformedMessages
from daggyr_server.api.listening.places import StrangersPlaces

CLIENT = (f"Bearer {TOKENS.client}",)
AGENT = (f"Bearer {TOKENS.agent}",)
OK = (grpc.StatusCode.OK, "")


class Watched(Runs):
    """A service whose watches go on until `over` is set."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield runs_pb2.RunChange()
        await self.over.wait()


@contextlib.asynccontextmanager
async def few_places(
    *, calls: int = 2, strangers: StrangersPlaces | None = None, runs: Runs | None = None
) -> AsyncIterator[tuple[Any, Authentication]]:
    """A channel to a server with so many places for each token, and what guards them."""
    authentication = Authentication(TOKENS, calls=calls, strangers=strangers)
    server = grpc.aio.server(interceptors=[authentication, MalformedMessages()])
    runs_pb2_grpc.add_RunsServicer_to_server(runs or Runs(), server)
    agents_pb2_grpc.add_AgentsServicer_to_server(Agents(), server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield channel, authentication
    finally:
        await server.stop(0)


async def held_session(channel: Any, token: str = TOKENS.agent) -> Any:
    """An agent's session that was answered and goes on."""
    session = channel.stream_stream(STREAM_STREAM)(metadata=token_metadata(token))
    await session.write(b"")
    assert await session.read() == b""
    return session


async def test_clients_that_hold_all_their_places_keep_out_clients_only() -> None:
    runs = Watched()
    async with few_places(calls=2, runs=runs) as (channel, _):
        held = [channel.unary_stream(UNARY_STREAM)(b"", metadata=token_metadata(TOKENS.client)) for _ in range(2)]
        for call in held:
            await call.read()  # the call has its place
        code, message = await status(channel, UNARY_UNARY, authorization=CLIENT)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 calls with the client token are under way" in message
        assert await status(channel, HEALTH) == OK
        session = await held_session(channel)
        runs.over.set()
        for call in held:
            assert await call.code() is grpc.StatusCode.OK
        assert await status(channel, UNARY_UNARY, authorization=CLIENT) == OK
        session.cancel()


@pytest.mark.parametrize("method", [HEALTH, UNARY_UNARY])
async def test_strangers_take_nobodys_place(method: str) -> None:
    """Strangers take no place of callers who may ask. Among strangers, the oldest makes room for a new one."""
    async with few_places(strangers=StrangersPlaces(limit=2, seconds=1e6)) as (channel, _):
        silent = [channel.stream_stream(method)() for _ in range(20)]
        ends = asyncio.as_completed([call.code() for call in silent])
        for _ in range(18):  # whichever came first; two may keep their places
            assert await next(ends) is not grpc.StatusCode.OK
        assert await status(channel, HEALTH) == OK
        assert await status(channel, UNARY_UNARY, authorization=CLIENT) == OK
        session = await held_session(channel)
        session.cancel()
        for call in silent:
            call.cancel()
        for _ in range(2):
            await next(ends)


async def test_a_strangers_call_has_its_time() -> None:
    async with few_places(strangers=StrangersPlaces(seconds=0.01)) as (channel, _):
        silent = channel.stream_stream(HEALTH)()
        assert await silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "without a token" in await silent.details()


async def test_a_call_that_ends_without_its_message_is_an_invalid_argument() -> None:
    async with few_places() as (channel, _):
        call = channel.stream_stream(UNARY_UNARY)(metadata=token_metadata(TOKENS.client))
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_calls_of_a_token_that_was_replaced_end_and_the_others_go_on() -> None:
    async with few_places() as (channel, authentication):
        upload = channel.stream_unary(STREAM_UNARY)(metadata=token_metadata(TOKENS.client))
        await upload.write(b"")
        session = await held_session(channel)
        newer = Tokens(client=TOKENS.client, agent="daggyr-agent-newer")
        authentication.replace(newer)
        assert await session.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "agent token was replaced" in await session.details()
        assert (await status(channel, STREAM_STREAM, authorization=AGENT))[0] is grpc.StatusCode.UNAUTHENTICATED
        other = await held_session(channel, newer.agent)
        other.cancel()
        await upload.done_writing()
        assert await upload
        authentication.replace(newer)
        assert await status(channel, UNARY_UNARY, authorization=CLIENT) == OK
