"""Texts that people chose, cut so that they fit into a message: what both ends of the wire, and all answers, use.

A text that is cut says so at its end, and how long it was. Nothing here decides what is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_NOTE_BYTES = 4 * 1024  # of one note of a result
MAX_NOTES = 32
MAX_STATUS_BYTES = 7_000  # on the wire; the rest of 8 KiB is for the other entries


def cut(text: str, most: int) -> str:
    """`text`, which takes more than `most` bytes of UTF-8 only if it cannot be otherwise: for its mark."""
    if len(text) * 4 <= most:
        return text
    size = len(text.encode("utf-8", "replace"))
    if size <= most:
        return text
    mark = f"... ({size:,} bytes in all)"
    return text[:most].encode("utf-8", "replace")[: max(0, most - len(mark))].decode("utf-8", "ignore") + mark


def bounded_notes(notes: Iterable[str]) -> list[str]:
    """The notes of a result: at most MAX_NOTES of MAX_NOTE_BYTES each. What is bounded already stays as it is."""
    found = list(notes)
    if len(found) <= MAX_NOTES:
        return [cut(note, MAX_NOTE_BYTES) for note in found]
    left_out = len(found) - (MAX_NOTES - 1)
    return [*(cut(note, MAX_NOTE_BYTES) for note in found[: MAX_NOTES - 1]), f"and {left_out:,} more notes"]


def are_bounded(notes: Iterable[str]) -> bool:
    """Whether `bounded_notes` would change nothing; most results have no notes, so that this is quick."""
    for count, note in enumerate(notes, 1):
        if count > MAX_NOTES or (len(note) * 4 > MAX_NOTE_BYTES and len(note.encode("utf-8", "replace")) > MAX_NOTE_BYTES):
            return False
    return True


def status_text(message: str) -> str:
    """The words of a refused call, cut so that they arrive.

    A status message travels in the call's trailing metadata, percent-encoded (PROTOCOL-HTTP2.md of gRPC), and a client drops what
    is above 8 KiB there: all it would read is that something was too large.
    """
    if status_bytes(message) <= MAX_STATUS_BYTES:
        return message
    kept = message[:MAX_STATUS_BYTES].encode("utf-8", "replace")[: MAX_STATUS_BYTES // 3 - 3].decode("utf-8", "ignore")
    return f"{kept}..."


def status_bytes(message: str) -> int:
    """How many bytes a status message takes on the wire."""
    data = message.encode("utf-8", "replace")
    return len(data) + 2 * sum(not 0x20 <= byte <= 0x7E or byte == 0x25 for byte in data)
