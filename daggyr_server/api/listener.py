"""Where the coordinator is reached: a grpc.aio server with its limits, behind one TCP address or one unix socket.

`daggyr-server` and `daggyr run` make a `Listener`, add their services to its `server`, then start it. A TCP socket always
has tokens in front of it, loopback too, since others share the host; a unix socket has neither tokens nor TLS, since only
its user can open it. Whether an address off loopback may go without TLS was settled by the configuration.

What gRPC would do quietly is refused here with a reason: sharing a port with another server, serving only one of the
addresses of a host name, and taking the socket file of a server that still runs.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
from pathlib import Path
from typing import NoReturn

import grpc

from daggyr.channel import CHANNEL_OPTIONS, check_address
from daggyr_server.api.authentication import Authentication, Tokens
from daggyr_server.api.malformed import MalformedMessages
from daggyr_server.config import Tls

MAX_CALLS = 10_000  # at once; agents and watchers hold one each. More are answered with RESOURCE_EXHAUSTED
MAX_SOCKET_PATH_BYTES = 107  # unix(7): sun_path

_SHARED = ("grpc.max_receive_message_length", "grpc.max_send_message_length", "grpc.keepalive_", "grpc.http2.")
SERVER_OPTIONS: tuple[tuple[str, int | str], ...] = (
    *(option for option in CHANNEL_OPTIONS if option[0].startswith(_SHARED)),
    ("grpc.so_reuseport", 0),
    # A client that pings more often than this is cut off; ours do it every keepalive_time_ms, twice this.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class ListenerError(Exception):
    """Nothing can be reached at the address that was asked for; the message says why and what to do."""


class Listener:
    """One address and the grpc.aio server behind it. Used from one event loop: make, add services, start, stop."""

    def __init__(self, address: str, *, tokens: Tokens | None, tls: Tls | None = None) -> None:
        """`address` is HOST:PORT (port 0: a free one) or unix:PATH; there, `tokens` and `tls` are left aside.

        Raises AddressError for an address of neither form, ListenerError for TCP without tokens.
        """
        self._address = check_address(address)
        self._socket_path = Path(address.removeprefix("unix:")) if address.startswith("unix:") else None
        self._tls = tls
        interceptors: list[grpc.aio.ServerInterceptor] = []
        if self._socket_path is None:
            if tokens is None:
                raise ListenerError(f"{address} needs tokens: only a unix socket goes without")
            interceptors.append(Authentication(tokens))
        interceptors.append(MalformedMessages())
        self.server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)

    async def start(self) -> str:
        """Listen and serve; returns the address with the real port. Services were added before.

        Raises ListenerError if the address is taken, no one's here or not allowed, or if TLS files cannot be used. After
        that, `stop` is still called.
        """
        if self._socket_path is not None:
            address = self._bind_socket(self._socket_path)
        else:
            address = await self._bind_port()
        await self.server.start()
        return address

    async def stop(self, grace: float) -> None:
        """Takes no new calls, gives those under way `grace` seconds, then cancels them. A socket file goes away."""
        await self.server.stop(grace)

    async def _bind_port(self) -> str:
        host, _, port_text = self._address.rpartition(":")
        port = int(port_text)
        credentials = _credentials(self._tls) if self._tls else None
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except socket.gaierror as error:
            raise self._error(f"no address of {host!r} is known ({error.strerror})") from None
        # gRPC serves what it can of a name's addresses and tells reasons only on stderr, so each is tried here first.
        faults = [fault for entry in found if (fault := _trial(entry[0], entry[4]))]
        absent = [fault for fault in faults if fault.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)]
        if len(faults) > len(absent) or len(absent) == len(found):  # `localhost` may do without its IPv6
            raise self._error(_reason(next((fault for fault in faults if fault not in absent), faults[0])))
        try:
            if credentials is None:
                port = self.server.add_insecure_port(self._address)
            else:
                port = self.server.add_secure_port(self._address, credentials)
        except RuntimeError:  # it was free a moment ago
            raise self._error(_TAKEN) from None
        return f"{host}:{port}"

    def _bind_socket(self, path: Path) -> str:
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise self._error(f"the path is longer than {MAX_SOCKET_PATH_BYTES} bytes")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = path.parent.stat()
            if stat.S_IMODE(folder.st_mode) & 0o077 or folder.st_uid != os.geteuid():
                raise self._error(
                    f"others may enter {path.parent}. Name a socket in a folder of your own (chmod 700), "
                    "or in one that does not exist yet: it will be made"
                )
            self._remove_stale(path)
            self.server.add_insecure_port(f"unix:{path}")
            path.chmod(0o600)
        except OSError as error:
            raise self._error(error.strerror or str(error)) from None
        except RuntimeError:
            raise self._error(f"no socket can be made in {path.parent}") from None
        return f"unix:{path}"

    def _remove_stale(self, path: Path) -> None:
        """Removes the socket file that a dead server left; the server of one that answers keeps it."""
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise self._error("there is a file, and it is no socket; name another path")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            trial.setblocking(False)
            try:
                trial.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except BlockingIOError:  # its queue is full, so it is there
                pass
        raise self._error(_TAKEN)

    def _error(self, reason: str) -> ListenerError:
        return ListenerError(f"cannot listen at {self._address}: {reason}")


_TAKEN = (
    "another program listens there already, maybe a daggyr-server: stop it, or listen elsewhere "
    "(--listen, port 0 takes a free one)"
)


def _reason(error: OSError) -> str:
    """Why a TCP address cannot be had, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return _TAKEN
    if error.errno == errno.EACCES:
        return "this user may not: ports below 1024 are root's, take a higher one (--listen)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this host has no such address: take one of its own, or 0.0.0.0 for all of them (--listen)"
    return error.strerror or str(error)


def _trial(family: int, address: tuple[object, ...]) -> OSError | None:
    """Why nothing can listen at `address`, or None."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        return error
    return None


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """What gRPC needs of the files, after OpenSSL has tried them: gRPC itself does not say which one is wrong, or why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = _pem(tls.certificate, "certificate"), _pem(tls.key, "key")
    authority = _pem(tls.client_ca, "client_ca") if tls.client_ca else None

    def no_passphrase() -> NoReturn:
        raise ListenerError(f"the TLS key {tls.key} has a passphrase: a server starts alone, so give it one without")

    try:
        context.load_cert_chain(tls.certificate, tls.key, no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ListenerError(f"the TLS key {tls.key} is not that of the certificate {tls.certificate}") from None
        raise ListenerError(
            f"the TLS certificate {tls.certificate} and key {tls.key} are not both PEM files ({error.reason or 'unreadable'})"
        ) from None
    if authority is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except ssl.SSLError as error:
            raise ListenerError(f"client_ca {tls.client_ca} holds no PEM certificate ({error.reason or 'unreadable'})") from None
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=authority, require_client_auth=authority is not None
    )


def _pem(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ListenerError(f"cannot read {path}, the `{setting}` in [server.tls]: {error.strerror}") from None
