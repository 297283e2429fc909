"""A message that is no protobuf, or has an enum of no known value, is answered with INVALID_ARGUMENT: no traceback, no UNKNOWN.

`listener` puts a `MalformedMessages` in front of every service, because gRPC decodes requests before a servicer sees them. Enums
are looked at in calls that bring one message. Agents' messages come too often to be looked through here; their session checks
them where it reads them anyhow. Nothing here looks at anything else of a message.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from daggyr_server.api.listening.unknown_values import unknown_value

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Any], Any]


class MalformedMessage(Exception):
    """Raised while a servicer iterates over a call's requests, where one of them is no protobuf. Servicers let it pass."""


class MalformedMessages(grpc.aio.ServerInterceptor):
    """Wraps each method once. A call costs one Python call more, and a streamed request another one."""

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}  # by method: as it came, and wrapped

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """gRPC calls this once a call. Methods that are not asynchronous, or take bytes, stay as they are."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        known = self._wrapped.get(handler_call_details.method)
        if known is None or known[0] is not handler:
            known = (handler, _wrap(handler))
            self._wrapped[handler_call_details.method] = known
        return known[1]


def _wrap(handler: Handler) -> Handler:
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    decode = handler.request_deserializer
    if decode is None or not (inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)):
        return handler
    answer = _written_out(behaviour) if inspect.isasyncgenfunction(behaviour) else behaviour
    if handler.request_streaming:
        wrapped, decode_request = _stream(answer), _decoding_each(decode)
    else:
        wrapped, decode_request = _unary(decode, answer), None
    make = (
        (grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler),
        (grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler),
    )[bool(handler.request_streaming)][bool(handler.response_streaming)]
    return make(wrapped, request_deserializer=decode_request, response_serializer=handler.response_serializer)


def _written_out(behaviour: Behaviour) -> Behaviour:
    """An asynchronous generator as a coroutine that writes, which is what grpc makes of it too."""

    async def answer(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with aclosing(behaviour(requests, context)) as responses:
            async for response in responses:
                await context.write(response)

    return answer


def _unary(decode: Callable[[bytes], Any], answer: Behaviour) -> Behaviour:
    async def call(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            request = decode(data)
        except DecodeError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _message(error))
        if (found := unknown_value(request)) is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{found}; is the caller of another version?")
        return await answer(request, context)

    return call


def _stream(answer: Behaviour) -> Behaviour:
    async def call(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        problem = ""
        try:
            return await answer(requests, context)
        except* MalformedMessage as faults:  # It comes alone, or out of a task group of the servicer.
            problem = str(_first(faults))
        return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)

    return call


def _decoding_each(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode_one(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            raise MalformedMessage(_message(error)) from None

    return decode_one


def _message(error: DecodeError) -> str:
    return f"a message could not be read, is the caller of another version? {error}"


def _first(faults: BaseException) -> BaseException:
    while isinstance(faults, BaseExceptionGroup):
        faults = faults.exceptions[0]
    return faults
