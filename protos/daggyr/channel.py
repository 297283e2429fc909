"""How a client or an agent opens a channel to the coordinator: TLS, token and limits in one place.

The client and the agent call `open_channel`; the server takes its message limit from here, so that both ends agree. Nothing here
calls the server or tries a second time: the holder of the channel does that.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from daggyr.address import AddressError, Tls, check_address

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
PROTOCOL_VERSION = 1  # between agents and the coordinator: the lowest that this program speaks
HIGHEST_PROTOCOL_VERSION = 2  # from 2 on, keys of attempts have lives
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
