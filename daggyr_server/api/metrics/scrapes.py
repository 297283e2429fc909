"""Where Prometheus scrapes: `GET /metrics` over HTTP/1.1 at one TCP address or one unix socket.

`daggyr-server` starts one if `[server] metrics` names an address. As with gRPC, a TCP socket has tokens in front of it, loopback
too, and the TLS of `[server.tls]`; a unix socket has neither. It takes one request a connection, reads no body, and never waits
for a slow reader: every connection has its time, there are few at once, and the oldest that has not shown the token yet makes
room for one more. The text is made in a thread, one at a time, so that the event loop is free meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from daggyr.address import check_address
from daggyr_server.api.listening.authentication import Tokens
from daggyr_server.api.listening.binding import ListenerError, ListeningPlace, server_context
from daggyr_server.api.metrics.exposition import CONTENT_TYPE, Exposition
from daggyr_server.api.metrics.lag import Lag
from daggyr_server.config import Tls
from daggyr_server.driver.figures import FiguresReader
from daggyr_server.refused_callers import RefusedCallers

PATH = "/metrics"
MAX_SCRAPES = 32  # with the token, at once; more are answered with 503
MAX_CONNECTIONS = 256  # that have not shown the token yet, at once
MAX_HEAD_BYTES = 16 * 1024
SECONDS = 10.0  # for a connection, from its acceptance to its end; Prometheus' own limit is 10 s unless told otherwise

_ADVICE = "`authorization: {credentials_file: ...}` of Prometheus' scrape_config names the file of the client token"


@dataclass(frozen=True)
class _Answer:
    """An answer of HTTP."""

    status: HTTPStatus
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    def encoded(self, *, with_body: bool) -> bytes:
        headers = (
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            *self.headers,
        )
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + (self.body if with_body else b"")


class Scrapes:
    """One address and what answers there. Used from one event loop: make, start, stop."""

    def __init__(
        self,
        address: str,
        figures: FiguresReader,
        executors: Mapping[str, str],
        *,
        tokens: Tokens | None,
        tls: Tls | None = None,
    ) -> None:
        """`address` is HOST:PORT, where port 0 means a free one, or unix:PATH, where `tokens` and `tls` are left aside.

        `executors` has the executor's name of each pool that is configured.

        Raises AddressError for an address of neither form, ListenerError for TCP without tokens.
        """
        self._place = ListeningPlace(check_address(address), "`metrics` in [server]")
        self._tokens = tokens if self._place.socket_path is None else None
        if self._place.socket_path is None and tokens is None:
            raise ListenerError(f"{address} needs tokens: only a unix socket goes without")
        self._tls = tls
        self._figures = figures
        self._exposition = Exposition(executors)
        self._one_at_a_time = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._lag = Lag()
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._unknown: dict[asyncio.Task[None], None] = {}  # of these, those without the token so far, the oldest first
        self._scraping = 0
        self._refused = RefusedCallers()
        self._context: ssl.SSLContext | None = None
        self._stopping = False

    async def start(self) -> str:
        """Listen and serve; returns the address with the real port.

        Raises ListenerError if the address is taken, no one's here or not allowed, or if TLS files cannot be used. After
        that, `stop` is still called.
        """
        address = await self._bind_port() if self._place.socket_path is None else await self._bind_socket()
        self._lag.start()
        return address

    async def stop(self) -> None:
        """End all connections. When it returns, nothing is left: no socket file, no thread."""
        self._stopping = True
        self._lag.stop()
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()
        if self._servers and self._place.socket_path is not None:
            self._place.socket_path.unlink(missing_ok=True)
        self._servers = []
        self._refused.close()
        await asyncio.to_thread(self._thread.shutdown)

    def replace_tokens(self, tokens: Tokens) -> None:
        """Take these from now on. Nothing happens behind a unix socket."""
        if self._tokens is not None:
            self._tokens = tokens

    def read_certificates_again(self) -> None:
        """New connections get what stands in the TLS files now. Raises ListenerError if they cannot be used; nothing changes
        then. Nothing happens without TLS. Blocks for the time that it takes to read the files."""
        if self._context is not None and self._tls is not None:
            self._context = server_context(self._tls)

    async def _bind_port(self) -> str:
        self._context = server_context(self._tls) if self._tls else None
        host, _, port = self._place.address.rpartition(":")
        free = int(port)

        def take(family: int, address: Any) -> socket.socket:
            nonlocal free
            dual = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
            taken = socket.create_server((address[0], free), family=family, dualstack_ipv6=dual)
            free = taken.getsockname()[1]  # the same for all addresses of the host
            return taken

        for listening in await self._place.each(take):
            self._servers.append(await asyncio.start_server(self._accepted, sock=listening, limit=MAX_HEAD_BYTES))
        return f"{host}:{free}"

    async def _bind_socket(self) -> str:
        path = self._place.socket_path
        assert path is not None
        self._place.prepare_socket(path)
        try:
            self._servers.append(await asyncio.start_unix_server(self._accepted, path, limit=MAX_HEAD_BYTES))
            path.chmod(0o600)
        except OSError as error:
            raise self._place.error(error.strerror or str(error)) from None
        return f"unix:{path}"

    # -- a connection -------------------------------------------------------------------------------------------------

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopping:
            writer.transport.abort()
            return
        connection = asyncio.create_task(self._serve(reader, writer), name="scrape")
        self._connections.add(connection)
        self._unknown[connection] = None
        connection.add_done_callback(self._left)
        if len(self._unknown) > MAX_CONNECTIONS:
            oldest = next(iter(self._unknown))
            del self._unknown[oldest]
            oldest.cancel()

    def _left(self, connection: asyncio.Task[None]) -> None:
        self._connections.discard(connection)
        self._unknown.pop(connection, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A caller that goes away or is too slow cannot be told anything.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(SECONDS):
                    # The handshake happens here, so that it belongs to the connection and to its time.
                    if self._context is not None:
                        await writer.start_tls(self._context)
                    writer.write(await self._answered(reader, _peer(writer)))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()  # It ends here unless it was closed above.

    async def _answered(self, reader: asyncio.StreamReader, peer: str) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _said(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too long").encoded(with_body=True)
        # RFC 9112: a request line, then fields. A token is ASCII, so that it does not matter how the rest is decoded.
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _said(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request").encoded(with_body=True)
        method, target, _ = words
        fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        authorizations = [value for name, value in fields if name == "authorization"]
        answer = self._refusal(authorizations, peer) or await self._scraped(method, target.partition("?")[0])
        return answer.encoded(with_body=method != "HEAD")

    async def _scraped(self, method: str, path: str) -> _Answer:
        """The answer for a caller with the token, who makes room for nobody any more."""
        if self._scraping >= MAX_SCRAPES:
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, "too many scrapes at once")
        connection = asyncio.current_task()
        if connection is not None:
            self._unknown.pop(connection, None)
        self._scraping += 1
        try:
            return await self._answer(method, path)
        finally:
            self._scraping -= 1

    def _refusal(self, authorizations: list[str], peer: str) -> _Answer | None:
        """The answer for a caller without the client's token; None for one who has it."""
        if self._tokens is None:
            return None
        role, fault = self._tokens.holder(authorizations)
        if role == "client":
            return None
        self._refused.note(peer, f"a scrape, {fault or f'the token is the {role} token'}")
        if role is None:
            # RFC 6750, section 3
            return _said(HTTPStatus.UNAUTHORIZED, f"{fault}: {_ADVICE}", ("WWW-Authenticate", 'Bearer realm="daggyr"'))
        return _said(HTTPStatus.FORBIDDEN, f"this is the {role} token: {_ADVICE}")

    async def _answer(self, method: str, path: str) -> _Answer:
        if path != PATH:
            return _said(HTTPStatus.NOT_FOUND, f"there is {PATH} and nothing else")
        if method not in ("GET", "HEAD"):
            return _said(HTTPStatus.METHOD_NOT_ALLOWED, "metrics are for reading", ("Allow", "GET, HEAD"))
        async with self._one_at_a_time:
            figures, lag = await self._figures.read(), self._lag.seconds
            text = await asyncio.get_running_loop().run_in_executor(self._thread, self._exposition.text, figures, lag)
        return _Answer(HTTPStatus.OK, text, (("Content-Type", CONTENT_TYPE),))


def _peer(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


def _said(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> _Answer:
    return _Answer(status, f"{text}\n".encode(), (("Content-Type", "text/plain; charset=utf-8"), *headers))
