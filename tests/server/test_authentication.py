"""Tokens and malformed messages, on a real server: every role against every service and call kind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from services import (
    HEALTH,
    REFLECTION,
    STREAM_STREAM,
    STREAM_UNARY,
    TOKENS,
    UNARY_STREAM,
    UNARY_UNARY,
    call,
    serving,
    status,
)
from support.waiting import DEADLINE

from daggyr.channel import MAX_MESSAGE_BYTES, open_channel, token_metadata
from daggyr.tokens import TokenError
from daggyr.v1 import agents_pb2, agents_pb2_grpc, runs_pb2, runs_pb2_grpc
from daggyr_server.api.listening.authentication import Tokens

WATCH = "/grpc.health.v1.Health/Watch"
OK = grpc.StatusCode.OK
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT

CLIENT = (f"Bearer {TOKENS.client}",)
AGENT = (f"Bearer {TOKENS.agent}",)
NONE: tuple[str, ...] = ()
WRONG = ("Bearer daggyr-client-abd",)


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    async with serving() as address, open_channel(address) as channel:
        yield channel


@pytest.mark.parametrize("method", [UNARY_UNARY, UNARY_STREAM, STREAM_UNARY])
@pytest.mark.parametrize(
    ("authorization", "code"), [(CLIENT, OK), (AGENT, PERMISSION_DENIED), (NONE, UNAUTHENTICATED), (WRONG, UNAUTHENTICATED)]
)
async def test_runs_are_for_clients(
    channel: grpc.aio.Channel, method: str, authorization: tuple[str, ...], code: grpc.StatusCode
) -> None:
    found, message = await status(channel, method, authorization=authorization)
    assert found is code
    assert code is OK or "client token" in message


@pytest.mark.parametrize(
    ("authorization", "code"), [(AGENT, OK), (CLIENT, PERMISSION_DENIED), (NONE, UNAUTHENTICATED), (WRONG, UNAUTHENTICATED)]
)
async def test_sessions_are_for_agents(channel: grpc.aio.Channel, authorization: tuple[str, ...], code: grpc.StatusCode) -> None:
    found, message = await status(channel, STREAM_STREAM, authorization=authorization)
    assert found is code
    assert code is OK or "agent token" in message


@pytest.mark.parametrize(
    ("authorization", "code"), [(CLIENT, OK), (AGENT, OK), (NONE, UNAUTHENTICATED), (WRONG, UNAUTHENTICATED)]
)
async def test_reflection_is_for_either_role(
    channel: grpc.aio.Channel, authorization: tuple[str, ...], code: grpc.StatusCode
) -> None:
    assert (await status(channel, REFLECTION, authorization=authorization))[0] is code


@pytest.mark.parametrize("authorization", [NONE, WRONG, CLIENT, AGENT])
async def test_health_is_watched_by_token_holders_only(channel: grpc.aio.Channel, authorization: tuple[str, ...]) -> None:
    watch: Any = channel.unary_stream(WATCH)(b"", metadata=tuple(("authorization", value) for value in authorization))
    if authorization in (CLIENT, AGENT):
        assert await watch.read()
        watch.cancel()
    else:
        assert await watch.code() is UNAUTHENTICATED


@pytest.mark.parametrize("authorization", [NONE, WRONG, CLIENT, AGENT])
async def test_health_checks_are_open(channel: grpc.aio.Channel, authorization: tuple[str, ...]) -> None:
    assert (await status(channel, HEALTH, authorization=authorization))[0] is OK


async def test_a_method_that_no_service_has_is_told_to_token_holders_only(channel: grpc.aio.Channel) -> None:
    for method in ("/daggyr.v1.Runs/Nothing", "/no.such.Service/Nothing"):
        assert (await status(channel, method))[0] is UNAUTHENTICATED
        assert (await status(channel, method, authorization=CLIENT))[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "authorization",
    [
        ("Basic abc",),
        ("Bearer",),
        ("Bearer ",),
        (TOKENS.client,),
        (f"Bearer {TOKENS.client} x",),
        (f"Bearer {TOKENS.client[:-1]}",),
        (*CLIENT, *CLIENT),
        (*WRONG, *CLIENT),
    ],
)
async def test_only_one_whole_bearer_token_counts(channel: grpc.aio.Channel, authorization: tuple[str, ...]) -> None:
    assert (await status(channel, UNARY_UNARY, authorization=authorization))[0] is UNAUTHENTICATED


async def test_the_scheme_is_read_in_any_case(channel: grpc.aio.Channel) -> None:
    assert (await status(channel, UNARY_UNARY, authorization=(f"bearer {TOKENS.client}",)))[0] is OK


async def test_generated_stubs_get_through_with_the_metadata_of_the_channel_module(channel: grpc.aio.Channel) -> None:
    runs = runs_pb2_grpc.RunsStub(channel)
    metadata = token_metadata(TOKENS.client)
    assert (await runs.GetRun(runs_pb2.GetRunRequest(run_id=7), metadata=metadata)).run_id == 7
    assert len([change async for change in runs.WatchRun(runs_pb2.WatchRunRequest(), metadata=metadata)]) == 2


async def test_no_message_and_no_log_holds_a_token(channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for authorization in (WRONG, AGENT, (f"Bearer {TOKENS.client} x",)):
        _, message = await status(channel, UNARY_UNARY, authorization=authorization)
        for secret in (TOKENS.client, TOKENS.agent, "daggyr-client-abd"):
            assert secret not in message
            assert secret not in caplog.text
    assert TOKENS.client not in repr(TOKENS)


async def test_a_call_without_a_token_ends_while_it_still_sends(channel: grpc.aio.Channel) -> None:
    more = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        yield b""
        await more.wait()

    session: Any = channel.stream_stream(STREAM_STREAM)(requests())
    assert await asyncio.wait_for(session.code(), DEADLINE) is UNAUTHENTICATED
    more.set()


LONG = "x" * 16


@pytest.mark.parametrize(("client", "agent"), [(LONG, LONG), ("", LONG), (LONG, ""), (LONG, LONG[1:])])
def test_tokens_that_tell_no_roles_apart_are_refused(client: str, agent: str) -> None:
    with pytest.raises(TokenError):
        Tokens(client=client, agent=agent)


@pytest.mark.parametrize(
    ("method", "authorization"),
    [(UNARY_UNARY, CLIENT), (UNARY_STREAM, CLIENT), (STREAM_UNARY, CLIENT), (STREAM_STREAM, AGENT), (HEALTH, NONE)],
)
async def test_a_message_that_is_no_protobuf_is_an_invalid_argument(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture, method: str, authorization: tuple[str, ...]
) -> None:
    code, message = await status(channel, method, (b"\xff\xff",), authorization)
    assert code is INVALID_ARGUMENT
    assert "could not be read" in message
    assert caplog.records == []
    assert await call(channel, method, authorization=authorization)


async def test_what_came_before_a_malformed_message_was_answered(channel: grpc.aio.Channel) -> None:
    session: Any = channel.stream_stream(STREAM_STREAM)(metadata=token_metadata(TOKENS.agent))
    await session.write(b"")
    assert await session.read() == b""
    await session.write(b"\xff\xff")
    assert await session.code() is INVALID_ARGUMENT


class _TaskGroupAgents(agents_pb2_grpc.AgentsServicer):
    """A service that reads in a task of its own, as a session does that also sends by itself."""

    async def Session(self, requests: Any, context: Any) -> None:
        async def read() -> None:
            async for _ in requests:
                await context.write(agents_pb2.CoordinatorMessage())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            tasks.create_task(asyncio.Event().wait())


async def test_a_malformed_message_is_found_out_of_a_task_group() -> None:
    async with serving(agents=_TaskGroupAgents()) as address, open_channel(address) as channel:
        assert (await status(channel, STREAM_STREAM, (b"", b"\xff\xff"), AGENT))[0] is INVALID_ARGUMENT


class _FailingAgents(agents_pb2_grpc.AgentsServicer):
    async def Session(self, requests: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "that name is taken")


async def test_a_status_of_a_service_comes_through() -> None:
    async with serving(agents=_FailingAgents()) as address, open_channel(address) as channel:
        assert await status(channel, STREAM_STREAM, authorization=AGENT) == (
            grpc.StatusCode.ALREADY_EXISTS,
            "that name is taken",
        )


async def test_a_message_over_the_limit_is_refused_and_the_server_goes_on() -> None:
    async with serving() as address, grpc.aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        code, _ = await status(channel, UNARY_UNARY, (bytes(MAX_MESSAGE_BYTES + 1),), CLIENT)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await status(channel, UNARY_UNARY, authorization=CLIENT))[0] is OK
