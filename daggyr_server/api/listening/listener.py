"""Where the coordinator is reached: a grpc.aio server with its limits, behind one TCP address or one unix socket.

`daggyr-server` and `daggyr run` make a `Listener`, add their services to its `server`, then start it. A TCP socket always
has tokens in front of it, loopback too, since others share the host; a unix socket has neither tokens nor TLS, since only
its user can open it. Whether an address off loopback may go without TLS was settled by the configuration.

gRPC would share a port with another server, serve only some of a host name's addresses, and take the socket file of a server that
runs, and say nothing; here all three are refused with a reason.

A connection ends that says nothing, never finishes its beginning, or has had no call for a minute. There are never more of them
than this process has descriptors for, with some left for its files. `places` says how many calls there may be. Nothing here
answers a call.
"""

from __future__ import annotations

import socket
from typing import Any

import grpc

from daggyr.address import check_address
from daggyr.channel import CHANNEL_OPTIONS
from daggyr_server.api.listening.authentication import Authentication, Tokens
from daggyr_server.api.listening.binding import ListenerError, ListeningPlace, read_pem, server_context
from daggyr_server.api.listening.malformed import MalformedMessages
from daggyr_server.config import Tls
from daggyr_server.descriptors import connections
from daggyr_server.refused_callers import RefusedCallers

HANDSHAKE_SECONDS = 10.0  # from the acceptance of a connection to the end of TLS and of HTTP/2's beginning
MAX_STREAMS = 1_000  # calls of one connection at once; a client waits with more of them, and others get their turn
# Calls that have come and that Python has not looked at: a second's work. Further ones are cancelled, whoever makes them, and
# clients ask again.
MAX_PENDING = 3_000
CHECK_SECONDS = 1.0  # between two looks at whether gRPC still serves
IDLE_SECONDS = 60.0  # without a call, before a connection is ended; clients make another with their next call

_SHARED = ("grpc.max_receive_message_length", "grpc.max_send_message_length", "grpc.keepalive_", "grpc.http2.")
SERVER_OPTIONS: tuple[tuple[str, int | str], ...] = (
    *(option for option in CHANNEL_OPTIONS if option[0].startswith(_SHARED)),
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_SECONDS)),
    ("grpc.max_connection_idle_ms", int(1000 * IDLE_SECONDS)),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.server.max_pending_requests", MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
    # A client that pings more often than this is cut off; ours do it every keepalive_time_ms, twice this.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class Listener:
    """One address and the grpc.aio server behind it. Used from one event loop: make, add services, start, stop."""

    def __init__(self, address: str, *, tokens: Tokens | None, tls: Tls | None = None) -> None:
        """`address` is HOST:PORT, where port 0 means a free one, or unix:PATH, where `tokens` and `tls` are left aside.

        Raises AddressError for an address of neither form, ListenerError for TCP without tokens.
        """
        self._place = ListeningPlace(check_address(address), "--listen")
        self._tls = tls
        self._credentials: _Credentials | None = None
        self._authentication: Authentication | None = None
        self.refused = RefusedCallers()
        interceptors: list[grpc.aio.ServerInterceptor] = []
        if self._place.socket_path is None:
            if tokens is None:
                raise ListenerError(f"{address} needs tokens: only a unix socket goes without")
            self._authentication = Authentication(tokens, self.refused)
            interceptors.append(self._authentication)
        interceptors.append(MalformedMessages())
        options = (*SERVER_OPTIONS, ("grpc.max_allowed_incoming_connections", connections()))
        self.server = grpc.aio.server(interceptors=interceptors, options=options)

    async def start(self) -> str:
        """Listen and serve; returns the address with the real port. Services were added before.

        Raises ListenerError if the address is taken, no one's here or not allowed, or if TLS files cannot be used. After
        that, `stop` is still called.
        """
        address = await self._bind_port() if self._place.socket_path is None else self._bind_socket()
        await self.server.start()
        return address

    async def stop(self, grace: float) -> None:
        """Take no new calls, give those under way `grace` seconds, then cancel them. A socket file goes away."""
        await self.server.stop(grace)
        self.refused.close()

    async def ended(self) -> None:
        """Return when `stop` was called. Raises ListenerError if gRPC stops serving by itself, because nobody gets in then."""
        try:
            # Without a limit, gRPC would not tell of its failure while calls are open, and would not survive a cancellation.
            while await self.server.wait_for_termination(CHECK_SECONDS):
                pass
        except Exception as error:
            raise ListenerError(
                f"nothing is served at {self._place.address} any more, because gRPC {grpc.__version__} has failed "
                f"({type(error).__name__}): start this program again, and tell its authors"
            ) from None

    def replace_tokens(self, tokens: Tokens) -> None:
        """Take these tokens from now on, and end calls with other ones. Nothing happens behind a unix socket."""
        if self._authentication is not None:
            self._authentication.replace(tokens)

    def read_certificates_again(self) -> None:
        """Use what stands in the TLS files now for new connections. Blocks while it reads them; nothing happens without TLS.

        Raises ListenerError, with nothing changed, if the files cannot be used.
        """
        if self._credentials is not None:
            self._credentials.read()

    async def _bind_port(self) -> str:
        host, _, port_text = self._place.address.rpartition(":")
        port = int(port_text)
        self._credentials = _Credentials(self._tls) if self._tls else None
        # gRPC serves what it can of a name's addresses and tells reasons only on stderr, so each is tried here first.
        await self._place.each(_try)
        try:
            if self._credentials is None:
                port = self.server.add_insecure_port(self._place.address)
            else:
                port = self.server.add_secure_port(self._place.address, self._credentials.of_server())
        except RuntimeError:  # It was free a moment ago.
            raise self._place.taken() from None
        return f"{host}:{port}"

    def _bind_socket(self) -> str:
        path = self._place.socket_path
        assert path is not None
        self._place.prepare_socket(path)
        try:
            self.server.add_insecure_port(f"unix:{path}")
            path.chmod(0o600)
        except OSError as error:
            raise self._place.error(error.strerror or str(error)) from None
        except RuntimeError:
            raise self._place.error(f"no socket can be made in {path.parent}") from None
        return f"unix:{path}"


def _try(family: int, address: tuple[object, ...]) -> None:
    """Raise OSError if nothing can listen at `address`."""
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(address)


class _Credentials:
    """The contents of the TLS files for gRPC, read at the beginning and whenever `read` is called."""

    def __init__(self, tls: Tls) -> None:
        """Raises ListenerError."""
        self._tls = tls
        self._configuration = self._read()
        self._newer: grpc.ServerCertificateConfiguration | None = None

    def read(self) -> None:
        """Read the files again. Raises ListenerError, and leaves what was read before in use."""
        self._newer = self._read()

    def of_server(self) -> grpc.ServerCredentials:
        wanted = self._tls.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._configuration, self._fetch, require_client_authentication=wanted)

    def _fetch(self) -> Any:
        """gRPC calls this before each handshake, in a thread of its own. None means that nothing has changed."""
        newer, self._newer = self._newer, None
        return newer

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """OpenSSL tries the files first, because gRPC does not say which one is wrong, or why."""
        tls = self._tls
        server_context(tls)
        authority = read_pem(tls.client_ca, "client_ca") if tls.client_ca else None
        pair = read_pem(tls.key, "key"), read_pem(tls.certificate, "certificate")
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)
