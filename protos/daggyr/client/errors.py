"""The errors of the client: gRPC's statuses as two types, so that a program tells `no server answers` from `the server refuses`.

Every call of `Client` raises these, and nothing of gRPC's own error types leaves the client.
"""

from __future__ import annotations

from typing import Any

import grpc

# The server is going away. (A call that the client itself cancels ends otherwise, with asyncio.CancelledError.)
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class ServerError(Exception):
    """A call that did not work. `code` is gRPC's status; `str()` is what the server (or gRPC) said of it.

    The comments in `daggyr/v1/runs.proto` name the codes of each call. The frequent ones: NOT_FOUND, INVALID_ARGUMENT (a refused
    specification, one fault a line), FAILED_PRECONDITION, UNAUTHENTICATED and PERMISSION_DENIED (no token, or one that opens
    other calls), RESOURCE_EXHAUSTED (too large for the server).
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details or code.name)
        self.code = code


class Unreachable(ServerError):
    """No server answered. It is not there (UNAVAILABLE), it went away or is too busy to look at the call (CANCELLED), or it did
    not answer in time (DEADLINE_EXCEEDED). Whether the call had an effect is not known."""


def of_status(code: grpc.StatusCode, details: str | None) -> ServerError:
    """The error for a call that ended with this status."""
    unreachable = code in GONE or code is grpc.StatusCode.DEADLINE_EXCEEDED
    return (Unreachable if unreachable else ServerError)(code, details or "")


def typed(error: grpc.aio.AioRpcError) -> ServerError:
    """gRPC's error as the client's."""
    return of_status(error.code(), error.details())


async def translated(call: Any) -> Any:
    """The answer of a gRPC call. Raises ServerError where gRPC raises its own error."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise typed(error) from None
