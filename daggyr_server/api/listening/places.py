"""How many calls there may be at once: each token has places of its own; calls without a token have a few, for a short time.

`authentication` says whose place a call takes, and gets a handler back that takes it. Places are never lent, so that clients
cannot keep agents out, nor strangers either of them. Nothing here reads a token or decides who may call what.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc

MAX_CALLS = 10_000  # of one token at once; an agent and a watcher hold one each
MAX_STRANGERS = 200  # calls without a token at once: health checks, and refusals that are on their way
STRANGER_SECONDS = 5.0  # for a call without a token, from its start to its end
MESSAGE_SECONDS = 30.0  # for the one message of a call that brings one

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Places:
    """The places of one token, or of the calls without one. Used from one event loop."""

    def __init__(self, whose: str, limit: int = MAX_CALLS) -> None:
        """`whose` is a word for people: `client`, `agent`."""
        self._whose = whose
        self._limit = limit
        self._calls: dict[asyncio.Task[Any], None] = {}  # the oldest first
        self._ended: dict[asyncio.Task[Any], tuple[grpc.StatusCode, str]] = {}  # those that are asked to end, with how
        self._over: tuple[grpc.StatusCode, str] | None = None
        self._handlers: dict[str, tuple[Handler, Handler]] = {}  # by method: the service's, and the one that takes a place

    def handler(self, method: str, served: Handler) -> Handler:
        """A handler that answers a call of `method` as `served` does, and takes a place for as long as that lasts.

        A handler that is no coroutine stays as it is; the coordinator has none of its own.
        """
        known = self._handlers.get(method)
        if known is None or known[0] is not served:
            known = (served, self._wrap(served))
            self._handlers[method] = known
        return known[1]

    def end_all(self, code: grpc.StatusCode, message: str) -> None:
        """End all calls with this status, also those that come from now on."""
        self._over = (code, message)
        for call in list(self._calls):
            self._end(call, code, message)

    def _wrap(self, served: Handler) -> Handler:
        behaviour = served.unary_unary or served.unary_stream or served.stream_unary or served.stream_stream
        if not inspect.iscoroutinefunction(behaviour):
            return served

        async def streamed(requests: Any, context: Context) -> Any:
            async with self._place(context):
                return await behaviour(requests, context)

        async def single(_: Any, context: Context) -> Any:
            # gRPC itself would wait for the message without taking a place, and for ever.
            async with self._place(context):
                return await behaviour(await one_message(context), context)

        make = grpc.stream_stream_rpc_method_handler if served.response_streaming else grpc.stream_unary_rpc_method_handler
        return make(
            streamed if served.request_streaming else single,
            request_deserializer=served.request_deserializer,
            response_serializer=served.response_serializer,
        )

    @asynccontextmanager
    async def _place(self, context: Context) -> AsyncIterator[None]:
        """A place for as long as the block lasts. A call that gets none, or loses it, ends with the status that says why."""
        call = asyncio.current_task()
        assert call is not None
        if self._over is not None:
            await context.abort(*self._over)
        if len(self._calls) >= self._limit:
            await self._make_room(context)
        self._calls[call] = None
        try:
            yield
        except asyncio.CancelledError:
            if call not in self._ended:
                raise
            call.uncancel()
            try:
                with contextlib.suppress(grpc.aio.UsageError):  # It was ending already, with a caller who does not read.
                    await context.abort(*self._ended[call])
            except grpc.aio.InternalError:  # It was about to write its first message, which gRPC cannot take back.
                raise asyncio.CancelledError from None  # It ends without words; whoever calls again hears them.
        finally:
            self._calls.pop(call, None)
            self._ended.pop(call, None)

    async def _make_room(self, context: Context) -> None:
        message = f"{self._limit} calls with the {self._whose} token are under way: end some of them first"
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)

    def _end(self, call: asyncio.Task[Any], code: grpc.StatusCode, message: str) -> None:
        if call not in self._ended:
            self._ended[call] = (code, message)
            call.cancel()


class StrangersPlaces(Places):
    """The places of calls without a token. Each call has `STRANGER_SECONDS`, and the oldest makes room for one more.

    A health check takes an instant, so that the oldest call has had more time than it needed.
    """

    def __init__(self, limit: int = MAX_STRANGERS, seconds: float = STRANGER_SECONDS) -> None:
        super().__init__("no", limit)
        self._seconds = seconds

    @asynccontextmanager
    async def _place(self, context: Context) -> AsyncIterator[None]:
        try:
            async with super()._place(context), asyncio.timeout(self._seconds):
                yield
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"a call without a token has {self._seconds:g} s")

    async def _make_room(self, context: Context) -> None:
        oldest = next(iter(self._calls))
        del self._calls[oldest]
        self._end(oldest, grpc.StatusCode.RESOURCE_EXHAUSTED, "there are too many calls without a token")


async def one_message(context: Context) -> Any:
    """The message of a call that brings one. The call ends if none comes."""
    try:
        async with asyncio.timeout(MESSAGE_SECONDS):
            message = await context.read()
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no message came within {MESSAGE_SECONDS:g} s")
    if message is grpc.aio.EOF:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call brought no message")
    return message
