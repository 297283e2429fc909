"""When the server's certificates end, told in time.

`renewal` asks at the start and once a day. A certificate that has ended is still served, because clients may have been told to
trust it all the same: this file tells, and decides nothing. The time comes in from outside.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from daggyr_server.api.listening.binding import ListenerError, read_pem
from daggyr_server.config import Tls

WARNED_DAYS = 14
_DAY = 86_400.0
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def warnings(tls: Tls, now: float) -> list[str]:
    """A sentence for each file with a certificate that has ended, or ends within `WARNED_DAYS`. `now` is in seconds since the
    epoch."""
    said = []
    for path, setting in ((tls.certificate, "certificate"), (tls.client_ca, "client_ca")):
        end = None if path is None else ends(path, setting)
        if end is None or end > now + WARNED_DAYS * _DAY:
            continue
        when = f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M:%S} UTC"
        what = f"the TLS `{setting}` {path}"
        refused = "clients refuse it" if setting == "certificate" else "clients that it signed are refused"
        if end <= now:
            said.append(f"{what} expired at {when}: {refused}. Put a new one in its place and send this process SIGHUP")
        else:
            said.append(f"{what} expires at {when}: put a new one in its place in time and send this process SIGHUP")
    return said


def ends(path: Path, setting: str) -> float | None:
    """When the first certificate of a file ends, in seconds since the epoch; None if none can be read."""
    try:
        return min(_ends(read_pem(path, setting)), default=None)
    except (ListenerError, ValueError, IndexError):
        return None


def _ends(pem: bytes) -> Iterator[float]:
    for block in _PEM.findall(pem):
        # RFC 5280, 4.1: Certificate > tbsCertificate > [version], number, algorithm, issuer, validity > notBefore, notAfter
        certificate = _elements(ssl.PEM_cert_to_DER_cert(block.decode("ascii")))[0][1]
        fields = [element for element in _elements(_elements(certificate)[0][1]) if element[0] != 0xA0]
        tag, text = _elements(fields[3][1])[1]
        # 4.1.2.5: UTCTime until 2049, GeneralizedTime after that
        if tag == 0x17:
            text = (b"20" if text < b"50" else b"19") + text
        yield datetime.strptime(text.decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and contents of each element (X.690, 8.1). Raises IndexError if they are not whole."""
    at = 0
    found = []
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        found.append((tag, der[at : at + length]))
        at += length
    return found
