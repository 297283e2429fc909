"""What every listener of the coordinator checks before it serves: its addresses, the folder of its socket, and its TLS files.

`listener` (gRPC) and `scrapes` (metrics) call this, so that both refuse the same things in the same words. A `Place` is where one
of them was told to listen. Nothing here serves, and nothing reads a token.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from daggyr.address import AddressError, is_loopback
from daggyr.channel import read_bounded
from daggyr_server.config import Tls

MAX_SOCKET_PATH_BYTES = 107  # unix(7): sun_path

Taken = TypeVar("Taken")


class ListenerError(Exception):
    """Nothing can be reached at the address that was asked for; the message says why and what to do."""


@dataclass(frozen=True)
class ListeningPlace:
    """Where to listen: HOST:PORT or unix:PATH, checked, and the setting that says so, for advice."""

    address: str
    setting: str

    @property
    def socket_path(self) -> Path | None:
        return Path(self.address.removeprefix("unix:")) if self.address.startswith("unix:") else None

    async def each(self, take: Callable[[int, Any], Taken]) -> list[Taken]:
        """Call `take` with the family and each address of the host; returns what it returned. Addresses that this host lacks are
        left out if there are others, because `localhost` may do without its IPv6.

        `take` raises OSError. Raises ListenerError if an address is taken, not allowed, or none is this host's; sockets that were
        taken for the others are closed then.
        """
        host, _, port = self.address.rpartition(":")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except socket.gaierror as error:
            raise self.error(f"no address of {host!r} is known ({error.strerror})") from None
        except UnicodeError:  # a part of it is empty, or has more than 63 bytes (RFC 1035, 2.3.4)
            raise self.error(f"no address of {host!r} is known (it cannot be a name)") from None
        taken: list[Taken] = []
        faults: list[OSError] = []
        for entry in found:
            try:
                taken.append(take(entry[0], entry[4]))
            except OSError as error:
                faults.append(error)
        absent = [fault for fault in faults if fault.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)]
        if len(faults) > len(absent) or len(absent) == len(found):
            for one in taken:
                if isinstance(one, socket.socket):
                    one.close()
            raise self._error_of(next((fault for fault in faults if fault not in absent), faults[0]))
        return taken

    def prepare_socket(self, path: Path) -> None:
        """Make the folder of a unix socket, for this user only, and remove the socket file that a dead server left.

        Raises ListenerError, also if somebody answers there.
        """
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise self.error(f"the path is longer than {MAX_SOCKET_PATH_BYTES} bytes")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = path.parent.stat()
            if stat.S_IMODE(folder.st_mode) & 0o077 or folder.st_uid != os.geteuid():
                raise self.error(
                    f"others may enter {path.parent}. Name a socket in a folder of your own (chmod 700), "
                    "or in one that does not exist yet: it will be made"
                )
            self._remove_stale(path)
        except OSError as error:
            raise self.error(error.strerror or str(error)) from None

    def _remove_stale(self, path: Path) -> None:
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise self.error("there is a file, and it is no socket; name another path")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            trial.setblocking(False)
            try:
                trial.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except BlockingIOError:  # Its queue is full, so somebody is there.
                pass
        raise self.taken()

    def taken(self) -> ListenerError:
        """The error that somebody else listens there."""
        return self.error(
            "another program listens there already, maybe a daggyr-server: stop it, or listen elsewhere "
            f"({self.setting}, port 0 takes a free one)"
        )

    def error(self, reason: str) -> ListenerError:
        return ListenerError(f"cannot listen at {self.address}: {reason}")

    def _error_of(self, error: OSError) -> ListenerError:
        """Why this address cannot be had, and what to do."""
        if error.errno == errno.EADDRINUSE:
            return self.taken()
        if error.errno == errno.EACCES:
            return self.error(f"this user may not: ports below 1024 are root's, take a higher one ({self.setting})")
        if error.errno == errno.EADDRNOTAVAIL and is_loopback(self.address):
            other = "[::1]" if "." in self.address or "localhost" in self.address else "127.0.0.1"
            port = self.address.rpartition(":")[2]
            return self.error(f"this host has no such loopback address: take its other one, {other}:{port} ({self.setting})")
        if error.errno == errno.EADDRNOTAVAIL:
            return self.error(f"this host has no such address: take one of its own, or 0.0.0.0 for all of them ({self.setting})")
        return self.error(error.strerror or str(error))


def server_context(tls: Tls) -> ssl.SSLContext:
    """OpenSSL's view of the TLS files, for a server. Raises ListenerError that says which file is wrong, and why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for path, setting in ((tls.certificate, "certificate"), (tls.key, "key"), (tls.client_ca, "client_ca")):
        if path is not None:
            read_pem(path, setting)

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
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except ssl.SSLError as error:
            raise ListenerError(f"client_ca {tls.client_ca} holds no PEM certificate ({error.reason or 'unreadable'})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def read_pem(path: Path, setting: str) -> bytes:
    """The bytes of a TLS file. Raises ListenerError that names it."""
    try:
        return read_bounded(path)
    except OSError as error:
        raise ListenerError(f"cannot read {path}, the `{setting}` in [server.tls]: {error.strerror}") from None
    except AddressError as error:
        raise ListenerError(f"{error} (`{setting}` in [server.tls])") from None
