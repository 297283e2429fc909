"""Takes away the keys that begin with `x-`, at the top of a document and in its tasks, where people keep anchors and notes.

They are removed while a document is read, so that nothing behind `decode` meets one. `decode` proves by counting colons that no
key stands twice; so each function here also tells how many colons it took away. `decode` and `survey` call it. Nothing here
judges what the keys hold.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import msgspec
from msgspec import Raw

from daggyr_server.spec.document import RunSpec, TaskDefinition, decode_batch

PREFIX = "x-"


def without(members: MutableMapping[str, Raw]) -> int:
    """Remove the ignored keys of an object. Returns how many colons went with them."""
    ignored = [key for key in members if key.startswith(PREFIX)]
    return sum(key.count(":") + 1 + bytes(members.pop(key)).count(b":") for key in ignored)


def task_without(raw: Raw) -> tuple[Raw, int]:
    """A task's definition without ignored keys, and how many colons went with them. A definition without any comes back itself.

    Raises msgspec.DecodeError or UnicodeDecodeError for what is no object.
    """
    members = _objects.decode(raw)
    colons = without(members)
    return (Raw(msgspec.json.encode(members)), colons) if colons else (raw, 0)


def decode_batch_without(batch: Mapping[str, Raw], tasks: MutableMapping[str, Raw]) -> tuple[list[TaskDefinition], int]:
    """The definitions of a batch of `tasks`, and how many colons went with their ignored keys.

    Definitions without these keys are put into `tasks`. Raises msgspec.DecodeError or UnicodeDecodeError if one is wrong.
    """
    try:
        return decode_batch(batch), 0
    except msgspec.ValidationError:
        taken = {name: task_without(raw) for name, raw in batch.items()}
    kept = {name: raw for name, (raw, _) in taken.items()}
    definitions = decode_batch(kept)
    tasks.update(kept)
    return definitions, sum(colons for _, colons in taken.values())


def decode_run(data: bytes | bytearray) -> tuple[RunSpec, int]:
    """The specification in `data`, and how many colons went with ignored keys at the top. Tasks are not looked at.

    Raises msgspec.DecodeError or UnicodeDecodeError for what is no specification without those keys either.
    """
    try:
        return _run_decoder.decode(data), 0
    except msgspec.ValidationError:
        members = _objects.decode(data)
        colons = without(members)
        if not colons and "defaults" not in members:
            raise
    if "defaults" in members:
        members["defaults"], taken = task_without(members["defaults"])
        colons += taken
    tasks = _objects.decode(members.pop("tasks", b"{}"))
    header: dict[str, Any] = {**members, "tasks": _STAND_IN if tasks else {}}
    return msgspec.structs.replace(_run_decoder.decode(msgspec.json.encode(header)), tasks=tasks), colons


_STAND_IN: dict[str, Any] = {"-": {}}
_objects = msgspec.json.Decoder(dict[str, Raw])
_run_decoder = msgspec.json.Decoder(RunSpec)
