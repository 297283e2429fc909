"""Reads JSON documents: fast where all is well, and with all faults together where not.

The fast way decodes with msgspec and proves by counting that no key stands twice. `survey` reads a document again, piece by
piece, if the fast way does not accept it, and tells its faults. Expansion adds those that it finds in the tasks that could be
read, so that a person sees all faults at once.

`api` and the CLI call `decode_json`; `generated` calls `decode_tasks`. Nothing here reads files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from msgspec import Raw

from daggyr_server.spec.document import RunSpec, batches, decode_batch, has_control_characters, is_sound, name_fault
from daggyr_server.spec.expand import find_faults
from daggyr_server.spec.faults import Fault, Faults, SpecificationError
from daggyr_server.spec.pieces import decode_run_in_pieces, decode_tasks_in_pieces
from daggyr_server.spec.policies import PoolLimits
from daggyr_server.spec.sizes import INTO_A_FILE, MAX_DETAILS_BYTES
from daggyr_server.spec.survey import UNREADABLE, Survey, position

T = TypeVar("T")

# With these in a document, neither the count of its colons nor the absence of NUL characters can be told from its bytes.
_CLOSER_LOOK = (b"\\u0000", b"\\u003a", b"\\u003A")
_AT_ONCE = 4 * 1024 * 1024
_ENDLESS_BYTES = 16 * 1024 * 1024
_MARK = b"\xef\xbb\xbf"


def decode_json(
    data: bytes | bytearray,
    *,
    pool: str = "",
    pools: Mapping[str, PoolLimits] | None = None,
    default_pool: str = "",
    limited: bool = True,
) -> RunSpec:
    """The run specification in a JSON document (UTF-8, with a byte order mark or without).

    What concerns several tasks at once, and pools, is left to `expand`. Raises SpecificationError with all faults, also with
    those that `expand` would find in the rest of the document. For these it takes what `expand` takes, and `pool`, which
    goes over the document's own unless it is empty. A large document is best given as a bytearray, which is as it was
    afterwards and must not change as long as the specification is used: then no call into C takes long (see pieces.py).
    """
    data = _unmarked(data)
    if limited:
        _refuse_endless_text(data)
    try:
        spec = decode_run_in_pieces(data, _run_decoder.decode) if isinstance(data, bytearray) else None
        if spec is None:
            spec = _run_decoder.decode(data)
        if _proven(data, spec.tasks, msgspec.structs.replace(spec, tasks={})):
            return spec
    except UNREADABLE:
        pass
    faults = Faults()
    survey = Survey(data, faults, generated=False)
    if survey.spec is not None and faults.count:
        rest = msgspec.structs.replace(survey.spec, pool=pool) if pool else survey.spec
        find_faults(rest, faults, unsound=survey.unsound, pools=pools, default_pool=default_pool)
    faults.refuse_if_any()
    return _accepted(data, _run_decoder)


def decode_tasks(data: bytes | bytearray, *, limited: bool = True) -> dict[str, Raw]:
    """The tasks in what a generator printed: a JSON object of task definitions. Raises SpecificationError. Of `data` and
    `limited` holds what `decode_json` says."""
    data = _unmarked(data)
    if limited:
        _refuse_endless_text(data)
    try:
        tasks = decode_tasks_in_pieces(data) if isinstance(data, bytearray) else None
        if tasks is None:
            tasks = _tasks_decoder.decode(data)
        if _proven(data, tasks, None):
            return tasks
    except UNREADABLE:
        pass
    faults = Faults()
    Survey(data, faults, generated=True)
    faults.refuse_if_any()
    return _accepted(data, _tasks_decoder)


def _unmarked(data: bytes | bytearray) -> bytes | bytearray:
    """`data` without a byte order mark, which some editors put before the text."""
    return data[len(_MARK) :] if data.startswith(_MARK) else data


def _refuse_endless_text(data: bytes | bytearray) -> None:
    """Raise SpecificationError for a text that is far larger than any task: decoding it would take long, and say no more."""
    for start in range(0, len(data) - _ENDLESS_BYTES + 1, _ENDLESS_BYTES):
        beyond = start + _ENDLESS_BYTES
        if data.find(b'"', start, beyond) < 0 and not data[start:beyond].isspace():
            begin, end = data.rfind(b'"', 0, start), data.find(b'"', beyond)
            size = (end if end >= 0 else len(data)) - begin - 1
            message = f"a text of {size:,} bytes begins here; a task takes at most {MAX_DETAILS_BYTES:,}"
            raise SpecificationError([Fault(None, position(data, max(begin, 0)), message, INTO_A_FILE)])


def _accepted(data: bytes | bytearray, decoder: msgspec.json.Decoder[T]) -> T:
    """A document in which the careful way found no fault."""
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        raise SpecificationError([Fault(None, "", f"the document cannot be read: {error}")]) from None


def _proven(data: bytes | bytearray, tasks: dict[str, Raw], header: RunSpec | None) -> bool:
    """Whether a document's tasks are sound and no key stands twice in it.

    What was decoded and is encoded again has the same texts, so as many colons, unless a key (with the colon behind it) was
    dropped because it came again. Raises msgspec.DecodeError or UnicodeDecodeError if a task is no definition.
    """
    wanted = 0
    for start in range(0, len(data), _AT_ONCE):  # other threads have their turn in between
        if any(data.find(escape, start, start + _AT_ONCE + len(escape) - 1) >= 0 for escape in _CLOSER_LOOK):
            return False
        wanted += data.count(b":", start, start + _AT_ONCE)
    colons = len(tasks) + (_encode(header).count(b":") if header is not None else 0)
    for batch in batches(tasks):
        names = " ".join(batch)
        if "" in batch or has_control_characters(names) or any(len(name) > 256 and name_fault(name) for name in batch):
            return False
        definitions = decode_batch(batch)
        if not all(is_sound(definition.details) for definition in definitions):
            return False
        colons += names.count(":") + _encode(definitions).count(b":")
    return colons == wanted


_run_decoder = msgspec.json.Decoder(RunSpec)
_tasks_decoder = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode
