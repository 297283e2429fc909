"""The words of a refused call, cut so that they arrive.

A status message travels in the call's trailing metadata, percent-encoded (PROTOCOL-HTTP2.md of gRPC), and a client drops what
is above 8 KiB there: all it would read is that something was too large. The servicers pass every message through here that holds
what a caller sent. Nothing here decides what is refused.
"""

from __future__ import annotations

from daggyr_server.spec import SpecificationError

MAX_BYTES = 7_000  # on the wire; the rest of 8 KiB is for the other entries


def of_specification(error: SpecificationError) -> str:
    """As many of the faults as fit, one a line, and how many more there are."""
    limit = MAX_BYTES
    while _wire_bytes(text := error.text(limit)) > MAX_BYTES and limit > 200:
        limit //= 2
    return fitting(text)


def fitting(message: str) -> str:
    """`message`, cut at its end if it is too long."""
    if _wire_bytes(message) <= MAX_BYTES:
        return message
    kept = message.encode("utf-8", "replace")[: MAX_BYTES // 3 - 3].decode("utf-8", "ignore")
    return f"{kept}..."


def _wire_bytes(message: str) -> int:
    data = message.encode("utf-8", "replace")
    return len(data) + 2 * sum(not 0x20 <= byte <= 0x7E or byte == 0x25 for byte in data)
