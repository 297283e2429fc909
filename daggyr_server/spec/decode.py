"""Reads JSON documents: fast where all is well, and with all faults together where not.

The fast way decodes with msgspec and proves by counting that no key stands twice. A document that it does not accept is
looked at again, piece by piece, by `survey`, which tells faults; with them come those that expansion finds in the tasks that
could be read, so that a person sees all at once.

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
from daggyr_server.spec.policies import PoolLimits
from daggyr_server.spec.survey import UNREADABLE, Survey

T = TypeVar("T")

# With these in a document, neither the count of its colons nor the absence of NUL characters can be told from its bytes.
_CLOSER_LOOK = (b"\\u0000", b"\\u003a", b"\\u003A")


def decode_json(data: bytes, *, pool: str = "", pools: Mapping[str, PoolLimits] | None = None, default_pool: str = "") -> RunSpec:
    """The run specification in a JSON document (UTF-8).

    What concerns several tasks at once, and pools, is left to `expand`. Raises SpecificationError with all faults, also with
    those that `expand` would find in the rest of the document. For these it takes what `expand` takes, and `pool`, which
    goes over the document's own unless it is empty.
    """
    try:
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


def decode_tasks(data: bytes) -> dict[str, Raw]:
    """The tasks in what a generator printed: a JSON object of task definitions. Raises SpecificationError."""
    try:
        tasks = _tasks_decoder.decode(data)
        if _proven(data, tasks, None):
            return tasks
    except UNREADABLE:
        pass
    faults = Faults()
    Survey(data, faults, generated=True)
    faults.refuse_if_any()
    return _accepted(data, _tasks_decoder)


def _accepted(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A document in which the careful way found no fault."""
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        raise SpecificationError([Fault(None, "", f"the document cannot be read: {error}")]) from None


def _proven(data: bytes, tasks: dict[str, Raw], header: RunSpec | None) -> bool:
    """Whether a document's tasks are sound and no key stands twice in it.

    What was decoded and is encoded again has the same texts, so as many colons, unless a key (with the colon behind it) was
    dropped because it came again. Raises msgspec.DecodeError or UnicodeDecodeError if a task is no definition.
    """
    if any(escape in data for escape in _CLOSER_LOOK):
        return False
    names = " ".join(tasks)
    if "" in tasks or has_control_characters(names) or any(len(name) > 256 and name_fault(name) for name in tasks):
        return False
    colons = names.count(":") + len(tasks)
    if header is not None:
        colons += _encode(header).count(b":")
    for batch in batches(tasks):
        definitions = decode_batch(batch)
        if not all(is_sound(definition.details) for definition in definitions):
            return False
        colons += _encode(definitions).count(b":")
    return colons == data.count(b":")


_run_decoder = msgspec.json.Decoder(RunSpec)
_tasks_decoder = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode
