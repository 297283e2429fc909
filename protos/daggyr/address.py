"""Addresses of coordinators: what is one, which are of this host only, and which a token may be sent to.

The checkers of settings call this in the server, the agent and the client, and so does whoever opens a channel (channel.py). It
opens nothing, looks no name up and loads no network, so that a program that refuses an option does so at once.
"""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ADDRESS = "127.0.0.1:2503"


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
