"""One connection of a client and how a single call goes over it: with the token, a deadline, and the repetitions that are safe.

`Client` has one `Calls`, and the modules beside this one (`documents`, `following`) get it from there. It knows no run and no
message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from daggyr.address import Tls, check_exposure
from daggyr.backoff import Backoff
from daggyr.channel import open_channel, token_metadata
from daggyr.client.errors import GONE, ServerError, Unreachable, translated
from daggyr.v1.runs_pb2_grpc import RunsStub

# Seconds for a call that answers with one message. Submitting and deleting take as long as they take; the channel's keepalive
# finds out if the server goes away meanwhile.
CALL_SECONDS = 60.0
SUBMIT_SECONDS = 5.0  # of trying again to submit, where no server is reached
BUSY_SECONDS = 5.0  # of trying again, where the server cancels calls because it has too many to look at

Answer = TypeVar("Answer")


class Calls:
    """The channel to one server, its stub, and the token that every call carries."""

    def __init__(
        self, address: str, *, token: str | None, tls: Tls | None, insecure: bool, patience: float, notice: Callable[[str], None]
    ) -> None:
        """`patience` (seconds) and `notice` are those of `Client`. Nothing is sent yet. Raises daggyr.address.AddressError."""
        check_exposure(address, token, tls, insecure=insecure)
        self._channel = open_channel(address, tls=tls)
        self.stub = RunsStub(self._channel)
        self.metadata = token_metadata(token)
        self._patience = patience
        self._notice = notice

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close()

    async def once(self, method: Any, request: object, *, timeout: float | None = CALL_SECONDS) -> Any:
        """The answer to one call, tried once. Raises ServerError."""
        return await translated(method(request, metadata=self.metadata, timeout=timeout))

    async def repeatable(self, method: Any, request: object, *, timeout: float | None = CALL_SECONDS) -> Any:
        """The answer to a call that may be repeated: it is made again if a busy server cancels it before looking at it."""
        retries = Retries(min(self._patience, BUSY_SECONDS), lambda sentence: None, longest=0.2)
        while True:
            try:
                return await self.once(method, request, timeout=timeout)
            except Unreachable as error:
                if error.code is not grpc.StatusCode.CANCELLED:
                    raise
                await retries.wait(error)

    async def pages(self, method: Any, request: Any) -> AsyncGenerator[Any, None]:
        """The answers to a call that lists something a page at a time, each asked for with the mark that the one before gave.

        The caller may change `request` between two pages. Raises ServerError.
        """
        while True:
            page = await self.repeatable(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def submitted(self, submit: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `submit` returns. It is called again where no server is reached; its request_id keeps the run from being made
        twice."""
        retries = Retries(min(self._patience, SUBMIT_SECONDS), self._notice)
        while True:
            try:
                return await submit()
            except Unreachable as error:
                if error.code not in GONE:
                    raise
                await retries.wait(error)

    def retries(self) -> Retries:
        """The waits of a stream that is opened again where it was lost."""
        return Retries(self._patience, self._notice)


class Retries:
    """The waits between tries: 0.2 s, doubling up to `longest`, with jitter, until `limit` seconds have passed without
    success."""

    def __init__(self, limit: float, notice: Callable[[str], None], *, longest: float = 5.0) -> None:
        """`notice` is told once, with a sentence for people, when the first try has failed."""
        self._limit = limit
        self._backoff = Backoff(0.2, longest, jitter=0.25)
        self._notice = notice
        self.reset()

    def reset(self) -> None:
        """The last try worked: the next failure begins a new series."""
        self._since: float | None = None
        self._backoff.reset()

    async def wait(self, error: ServerError) -> None:
        """Return when it is time for another try. Raises `error` if the time is over."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._notice("no connection to the server; trying again")
        pause = self._backoff.next()
        if now + pause > self._since + self._limit:
            raise error from None
        await asyncio.sleep(pause)
