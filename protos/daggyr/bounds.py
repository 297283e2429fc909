"""The bounds that both ends of the wire share, and how a text is cut that is longer than its bound.

Agents and pools check their settings against these bounds, and the coordinator checks what agents say against the same ones, so
that an agent never offers what the coordinator refuses. Texts that people chose (notes, names, the words of an error) are cut by
`cut` on both sides, so that they fit into a message. A text that is cut says so at its end. Nothing here refuses anything.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_UNITS = 10**15  # of one resource of one host: the sum over 9,000 hosts still fits an int64
MAX_RESOURCES = 1_000  # names of resources of one host
MAX_WORD = 200  # characters of the name of an agent or a resource
MAX_NOTE_BYTES = 4 * 1024  # of one note of a result
MAX_NOTES = 32  # of one result
MAX_STATUS_BYTES = 7_000  # of a status message on the wire; the rest of 8 KiB is for the other metadata


def cut(text: str, most: int) -> str:
    """`text` in at most `most` bytes of UTF-8. A longer text ends with a mark that tells its length, `... (12,345 bytes in all)`;
    where `most` is smaller than the mark, the mark alone comes back."""
    if len(text) * 4 <= most:
        return text
    size = len(text.encode("utf-8", "replace"))
    if size <= most:
        return text
    mark = f"... ({size:,} bytes in all)"
    return text[:most].encode("utf-8", "replace")[: max(0, most - len(mark))].decode("utf-8", "ignore") + mark


def bounded_notes(notes: Iterable[str]) -> list[str]:
    """The notes of a result: at most MAX_NOTES, each of at most MAX_NOTE_BYTES. Notes within these bounds come back unchanged."""
    found = list(notes)
    if len(found) <= MAX_NOTES:
        return [cut(note, MAX_NOTE_BYTES) for note in found]
    left_out = len(found) - (MAX_NOTES - 1)
    return [*(cut(note, MAX_NOTE_BYTES) for note in found[: MAX_NOTES - 1]), f"and {left_out:,} more notes"]


def are_bounded(notes: Iterable[str]) -> bool:
    """Whether `bounded_notes` would change nothing. Every result is asked this and most have no notes, so it makes no copy."""
    for count, note in enumerate(notes, 1):
        if count > MAX_NOTES or (len(note) * 4 > MAX_NOTE_BYTES and len(note.encode("utf-8", "replace")) > MAX_NOTE_BYTES):
            return False
    return True


def status_text(message: str) -> str:
    """The status message of a refused call, cut so that it arrives.

    A status message travels in the call's trailing metadata, percent-encoded (PROTOCOL-HTTP2.md of gRPC). A client drops metadata
    above 8 KiB, and its user would then read only that something was too large.
    """
    if status_bytes(message) <= MAX_STATUS_BYTES:
        return message
    kept = message[:MAX_STATUS_BYTES].encode("utf-8", "replace")[: MAX_STATUS_BYTES // 3 - 3].decode("utf-8", "ignore")
    return f"{kept}..."


def status_bytes(message: str) -> int:
    """How many bytes a status message takes on the wire, percent-encoded."""
    data = message.encode("utf-8", "replace")
    return len(data) + 2 * sum(not 0x20 <= byte <= 0x7E or byte == 0x25 for byte in data)
