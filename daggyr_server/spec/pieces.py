"""Decodes an object of tasks piece by piece, so that a document of hundreds of megabytes does not keep other threads waiting.

One call into msgspec holds the interpreter until it is done.

Where one task's definition ends and the next one begins is guessed from the text, and proven by decoding. If `{PIECE}` is an
object for each of the pieces, and the last one makes a document with what comes before the first one and behind itself, then the
pieces with commas between them are one object with all their members. A wrong guess does not decode; then the next one is
tried, and where nothing is found, all is decoded at once.

`decode` calls this. Pieces are not copied: the commas between them are overwritten for as long as one of them is decoded, which
needs a bytearray. Nothing here judges tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Raw

from daggyr_server.spec.document import RunSpec, TaskDefinition

PIECE_BYTES = 1024 * 1024
_MOST_GUESSES = 16  # for one cut
_MAX_HEAD_BYTES = 4 * 1024 * 1024  # of the part before the tasks
_MAX_REST_BYTES = 8 * 1024 * 1024  # of the last piece

_KEYS = "|".join(field.encode_name for field in msgspec.structs.fields(TaskDefinition)).encode()
# The end of a definition, a comma, the next one's name, and the first key in it.
_BOUNDARY = re.compile(
    rb'\}\s{0,1000}(,)\s{0,1000}"[^"\\]{1,2000}"\s{0,100}:\s{0,100}\{\s{0,1000}"(?:' + _KEYS + rb'|x-[^"\\]{0,100})"'
)
_HEAD = re.compile(rb'"tasks"\s{0,100}:\s{0,100}\{')


def decode_tasks_in_pieces(data: bytearray) -> dict[str, Raw] | None:
    """The members of the object `data`, if it is large and could be cut. None means that it must be decoded at once.

    Raises msgspec.DecodeError or UnicodeDecodeError if the last piece is wrong.
    """
    start = data.find(b"{")
    if start < 0 or data[:start].strip() or len(data) < 2 * PIECE_BYTES:
        return None
    tasks: dict[str, Raw] = {}
    count, last = _take(data, start, tasks)
    if last == start or len(data) - last > _MAX_REST_BYTES:
        return None
    rest = _objects.decode(b"{" + data[last + 1 :])
    return _merged(tasks, count, rest)


def decode_run_in_pieces(data: bytearray, decode: Callable[[bytes], tuple[RunSpec, int]]) -> tuple[RunSpec, int] | None:
    """The specification in `data`, if it is large and could be cut. None means that it must be decoded at once.

    `decode` reads the document with the last piece only, and what it tells beside the specification is told here.

    Raises what `decode` raises, if the document without its tasks, or the last piece, is wrong.
    """
    head = _HEAD.search(data, 0, _MAX_HEAD_BYTES)
    if head is None or len(data) < 2 * PIECE_BYTES:
        return None
    start = head.end() - 1
    before = bytes(data[: start + 1])
    if not _is_head(before):
        return None
    tasks: dict[str, Raw] = {}
    count, last = _take(data, start, tasks)
    if last == start or len(data) - last > _MAX_REST_BYTES:
        return None
    spec, beside = decode(before + data[last + 1 :])
    merged = _merged(tasks, count, spec.tasks)
    return None if merged is None else (msgspec.structs.replace(spec, tasks=merged), beside)


def _is_head(before: bytes) -> bool:
    """Whether a document's beginning `before` ends where the object of its tasks begins, and not in a text or deeper inside."""
    try:
        members = _objects.decode(before + b"}}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return list(members)[-1] == "tasks" and bytes(members["tasks"]).endswith(b"{}")


def _merged(tasks: dict[str, Raw], count: int, rest: dict[str, Raw]) -> dict[str, Raw] | None:
    """All members together. None means that a name comes twice."""
    count += len(rest)
    tasks.update(rest)
    return tasks if len(tasks) == count else None


def _take(data: bytearray, start: int, tasks: dict[str, Raw]) -> tuple[int, int]:
    """Put members into `tasks`, from the `{` at `start` on, up to a comma near the end.

    Returns how many members there were, with repeated names counted each time, and the position of that comma, which is `start`
    if nothing was cut.
    """
    count = 0
    with memoryview(data) as view:
        while len(data) - start > 2 * PIECE_BYTES:
            for comma in _guesses(data, start + PIECE_BYTES):
                data[comma] = ord("}")
                was, data[start] = data[start], ord("{")
                try:
                    members = _objects.decode(view[start : comma + 1])
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
                finally:
                    data[comma], data[start] = ord(","), was
                count += len(members)
                tasks.update(members)
                start = comma
                break
            else:
                break
    return count, start


def _guesses(data: bytearray, start: int) -> Iterator[int]:
    """The positions behind `start` at which a comma between two tasks may be."""
    for _ in range(_MOST_GUESSES):
        found = _BOUNDARY.search(data, start, start + PIECE_BYTES)
        if found is None:
            return
        yield found.start(1)
        start = found.end()


_objects = msgspec.json.Decoder(dict[str, Raw])
