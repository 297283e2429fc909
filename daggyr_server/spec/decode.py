"""Reads JSON documents: fast where all is well, otherwise carefully, so that all faults are told together.

The fast way decodes with msgspec and proves by counting that no key stands twice. `survey` reads a document again, piece by
piece, if the fast way does not accept it, and tells its faults. Expansion adds those that it finds in the tasks that could be
read, so that a person sees all faults at once.

The API, the driver and the CLI call `decode_json`; `generated` calls `decode_tasks`. Nothing here reads files.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Raw

from daggyr_server.spec.document import RunSpec, are_sound, batches, has_control_characters, is_sound, name_fault
from daggyr_server.spec.expand import find_faults
from daggyr_server.spec.faults import Fault, Faults, SpecificationError
from daggyr_server.spec.ignored import decode_batch_without, decode_run
from daggyr_server.spec.pieces import decode_run_in_pieces, decode_tasks_in_pieces
from daggyr_server.spec.policies import PoolLimits
from daggyr_server.spec.sizes import INTO_A_FILE, MAX_DETAILS_BYTES
from daggyr_server.spec.survey import UNREADABLE, Survey, position

# If a document has one of these, its bytes do not tell how many colons its texts have, or whether they have NUL characters.
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

    Rules that concern several tasks at once, and those about pools, are left to `expand`. Raises SpecificationError with all
    faults, those included that `expand` would find in the rest of the document. To find them, this function takes the arguments
    of `expand`, and `pool`, which replaces the document's own pool unless it is empty.

    A large document should be given as a bytearray, because then no call into C takes long (see pieces.py). The bytearray is
    unchanged afterwards, and must stay so as long as the specification is used.
    """
    data = _unmarked(data)
    if limited:
        _refuse_endless_text(data)
    try:
        found = decode_run_in_pieces(data, decode_run) if isinstance(data, bytearray) else None
        spec, ignored = decode_run(data) if found is None else found
        if _proven(data, spec.tasks, msgspec.structs.replace(spec, tasks={}), ignored):
            return spec
    except UNREADABLE:
        pass
    faults = Faults()
    survey = Survey(data, faults, generated=False)
    if survey.spec is not None and faults.count:
        rest = msgspec.structs.replace(survey.spec, pool=pool) if pool else survey.spec
        find_faults(rest, faults, unsound=survey.unsound, pools=pools, default_pool=default_pool)
    faults.refuse_if_any()
    return _accepted(survey)


def decode_tasks(data: bytes | bytearray, *, limited: bool = True) -> dict[str, Raw]:
    """The tasks in what a generator printed, which is a JSON object of task definitions. Raises SpecificationError.

    `data` and `limited` mean what they mean in `decode_json`.
    """
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
    survey = Survey(data, faults, generated=True)
    faults.refuse_if_any()
    return _accepted(survey).tasks


def _unmarked(data: bytes | bytearray) -> bytes | bytearray:
    """`data` without a byte order mark, which some editors put before the text."""
    return data[len(_MARK) :] if data.startswith(_MARK) else data


def _refuse_endless_text(data: bytes | bytearray) -> None:
    """Raise SpecificationError if a text is far larger than any task. To decode such a text would take long and tell no more."""
    for start in range(0, len(data) - _ENDLESS_BYTES + 1, _ENDLESS_BYTES):
        beyond = start + _ENDLESS_BYTES
        if data.find(b'"', start, beyond) < 0 and not data[start:beyond].isspace():
            begin, end = data.rfind(b'"', 0, start), data.find(b'"', beyond)
            size = (end if end >= 0 else len(data)) - begin - 1
            message = f"a text of {size:,} bytes begins here; a task takes at most {MAX_DETAILS_BYTES:,}"
            raise SpecificationError([Fault(None, position(data, max(begin, 0)), message, INTO_A_FILE)])


def _accepted(survey: Survey) -> RunSpec:
    """What the careful way has read of a document in which it found no fault."""
    if survey.spec is None:
        raise SpecificationError([Fault(None, "", "the document cannot be read")])
    return survey.spec


def _proven(data: bytes | bytearray, tasks: dict[str, Raw], header: RunSpec | None, ignored: int = 0) -> bool:
    """Whether a document's tasks are sound and no key stands twice in it.

    A document that is decoded and encoded again has the same texts, and so as many colons. Only a key that came again was
    dropped, together with the colon behind it. `ignored` is how many colons went with ignored keys; where tasks have such keys,
    those are removed from `tasks` here. Raises msgspec.DecodeError or UnicodeDecodeError if a task is no definition.
    """
    wanted = 0
    for start in range(0, len(data), _AT_ONCE):  # in parts, so that other threads run in between
        if any(data.find(escape, start, start + _AT_ONCE + len(escape) - 1) >= 0 for escape in _CLOSER_LOOK):
            return False
        wanted += data.count(b":", start, start + _AT_ONCE)
    if header is not None and header.defaults and header.defaults.details and not are_sound(header.defaults.details):
        return False
    colons = ignored + len(tasks) + (_encode(header).count(b":") if header is not None else 0)
    for batch in batches(tasks):
        names = " ".join(batch)
        if "" in batch or has_control_characters(names) or any(len(name) > 256 and name_fault(name) for name in batch):
            return False
        definitions, taken = decode_batch_without(batch, tasks)
        if not all(is_sound(definition.details) for definition in definitions):
            return False
        colons += names.count(":") + taken + _encode(definitions).count(b":")
    return colons == wanted


_tasks_decoder = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode
