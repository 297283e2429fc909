"""How a client or an agent opens a channel to the coordinator: address, TLS, token and limits in one place.

The client and the agent call `open_channel`; the server takes its message limit from here, so that both ends agree. Nothing here
calls the server or tries a second time: the holder of the channel does that.
"""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
PROTOCOL_VERSION = 1  # between agents and the coordinator: the lowest that this program speaks
HIGHEST_PROTOCOL_VERSION = 2  # from 2 on, keys of attempts have lives
DEFAULT_ADDRESS = "127.0.0.1:2503"
_MAX_PEM_BYTES = 4 * 1024 * 1024  # a file of all authorities that a distribution trusts has a tenth of that

# Keepalive finds a peer that went away without a word, and holds NAT entries open.
CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
    # Channels of one process must not share a connection: each has its own token.
    ("grpc.use_local_subchannel_pool", 1),
)


class AddressError(ValueError):
    """An address that is not HOST:PORT or unix:PATH, or a TLS file that cannot be read; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """What a client side needs for TLS; all paths to PEM files.

    Without `authority`, the certificates that gRPC brings are trusted. `certificate` and `key` go together, for a server
    that asks for a client certificate.
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def check_address(address: str) -> str:
    """`address` as gRPC takes it: HOST:PORT, [IPv6]:PORT or unix:PATH. Raises AddressError otherwise."""
    try:
        address.encode()
    except UnicodeEncodeError:
        raise AddressError(f"{address!r} is no address: it is no UTF-8") from None
    if address.startswith("unix:"):
        if len(address) > len("unix:"):
            return address
        raise AddressError(f"{address!r} names no socket: write unix:/path/of/the/socket")
    scheme, slashes, _ = address.partition("://")
    if slashes:
        raise AddressError(f"{address!r} is no address: write HOST:PORT, without `{scheme}://`")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise AddressError(f"{address!r} is no address: write HOST:PORT, for instance {DEFAULT_ADDRESS}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise AddressError(f"{address!r} is no address: write an IPv6 host in brackets, {_in_brackets(address)}")
    return address


def _in_brackets(address: str) -> str:
    """What `::1` or `::1:2503` was to say. The last part is a port if the part before it is an address by itself."""
    default_port = DEFAULT_ADDRESS.rpartition(":")[2]
    host, _, port = address.rpartition(":")
    for meant, its_port in ((host, port), (address, default_port)):
        with contextlib.suppress(ValueError):
            return f"[{ipaddress.IPv6Address(meant.strip('[]'))}]:{its_port}"
    return f"[::1]:{default_port}"


def is_loopback(address: str) -> bool:
    """Whether `address` is on this host only: a unix socket, an IP of loopback (127.0.0.0/8, ::1) or the name localhost.

    Other names are not looked up, because the answer could be another one by the time of the connection.
    """
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def check_exposure(address: str, token: str | None, tls: Tls | None, *, insecure: bool) -> None:
    """Check that `token` crosses no network where others may listen. Off loopback it goes over TLS only, unless a person said
    that the network is to be trusted (`insecure`). Raises AddressError."""
    if is_loopback(check_address(address)) or token is None or tls is not None or insecure:
        return
    raise AddressError(
        f"the token would go to {address} without TLS, for everybody on the way to read: use TLS (--tls-ca FILE names the "
        "server's certificate or its authority), or say --insecure if you trust the whole network between here and there"
    )


def open_channel(address: str, *, tls: Tls | None = None) -> grpc.aio.Channel:
    """A channel to `address`; nothing is sent before the first call. The caller closes it.

    The token is no part of it: calls carry `token_metadata(token)`, because gRPC refuses call credentials on a
    connection without TLS. Raises AddressError.
    """
    target = check_address(address)
    options = list(CHANNEL_OPTIONS)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.authority),
        private_key=_read(tls.key),
        certificate_chain=_read(tls.certificate),
    )
    return grpc.aio.secure_channel(target, credentials, options=options)


def token_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata that carries `token` with a call (RFC 6750's form); empty without one."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return read_bounded(path)
    except OSError as error:
        raise AddressError(f"cannot read {path}: {error.strerror}") from None


def read_bounded(path: Path) -> bytes:
    """The bytes of a TLS file. Raises OSError, or AddressError for a file that is too large to be one."""
    with path.open("rb") as file:
        data = file.read(_MAX_PEM_BYTES + 1)
    if len(data) > _MAX_PEM_BYTES:
        raise AddressError(
            f"{path} is larger than {_MAX_PEM_BYTES:,} bytes: name the PEM file of a certificate, authority or key"
        )
    return data
