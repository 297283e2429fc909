"""Gives parameters of a document other values, as `--param` asks for: a document goes in, and one that says so comes out.

What comes out is an ordinary document. So the server needs to know nothing of it, keeps what it was sent, and an older server
understands it, too. The command line calls this. A document that cannot be read comes back as it is, because whoever decodes it
tells all of its faults; only names that mean no parameter of the run are faults here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from daggyr_server.spec.decode import decode_json
from daggyr_server.spec.document import batches
from daggyr_server.spec.expand import expand
from daggyr_server.spec.faults import Faults, SpecificationError, listed, nearest, quoted
from daggyr_server.spec.repeated import repeated_keys

_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)


class _Own(Struct):
    """The part of a task that has parameters of its own."""

    parameters: dict[str, Raw] | UnsetType = UNSET


def with_values(document: bytes, given: Mapping[str, Sequence[str]], warnings: list[str]) -> bytes:
    """`document`, a JSON specification, with other values for the run's parameters that `given` names.

    A name may leave out what stands around its letters and digits, such as braces. `warnings` takes a sentence for each task that
    keeps values of its own. Raises SpecificationError if a name means none of the run's parameters, or more than one.
    """
    document = document.removeprefix(b"\xef\xbb\xbf")
    try:
        top = _objects.decode(document)
        declared = _objects.decode(top["parameters"]) if "parameters" in top else {}
        tasks = _objects.decode(top["tasks"]) if "tasks" in top else {}
        if _may_repeat(document, top, declared) and repeated_keys(document.decode()):
            return document  # a key that came again would be lost here without a word
    except _UNREADABLE:
        return document
    faults = Faults()
    chosen: dict[str, Sequence[str]] = {}
    for name, values in given.items():
        place = f"--param {name}"
        meant = [name] if name in declared else [known for known in declared if bare(known) == bare(name)]
        if not meant:
            faults.add(place, "the run has no such parameter", _hint(name, list(declared), tasks))
        elif len(meant) > 1:
            faults.add(place, f"{listed(meant)} could be meant", "write the whole name")
        elif meant[0] in chosen:
            faults.add(place, f"{quoted(meant[0])} is given values twice", "write them into a file, one a line: NAME=@FILE")
        else:
            chosen[meant[0]] = values
    if faults.count:
        _find_faults(document, faults)
    faults.refuse_if_any()
    for name in chosen:
        owner = next(_owners(name, tasks), None)
        if owner is not None:
            warnings.append(f"tasks.{owner}.parameters: the task keeps its own values of {quoted(name)}, whatever --param says")
    values_now = {name: Raw(msgspec.json.encode(list(chosen[name]))) if name in chosen else declared[name] for name in declared}
    return msgspec.json.encode({**top, "parameters": values_now})


def _find_faults(document: bytes, faults: Faults) -> None:
    """Add the faults of the document itself, so that a person sees all at once. Nothing is known of pools here."""
    try:
        expand(decode_json(document), default_pool="")
    except SpecificationError as error:
        for fault in error.faults:
            faults.add(fault.place, fault.message, fault.hint, task=fault.task)


def bare(name: str) -> str:
    """A parameter's name without what stands before its first letter or digit, and behind its last."""
    inner = [index for index, character in enumerate(name) if character.isalnum() or character == "_"]
    return name[inner[0] : inner[-1] + 1] if inner else name


def _may_repeat(document: bytes, top: Mapping[str, Raw], declared: Mapping[str, Raw]) -> bool:
    """Whether a key may stand twice at the top of a document or among its parameters.

    If one does, what was read has fewer colons than the document. An escaped colon would hide that.
    """
    if b"\\u003" in document:
        return True
    colons = sum(key.count(":") + 1 + bytes(raw).count(b":") for key, raw in top.items())
    inner = sum(key.count(":") + 1 + bytes(raw).count(b":") for key, raw in declared.items())
    return colons != document.count(b":") or ("parameters" in top and inner != bytes(top["parameters"]).count(b":"))


def _hint(name: str, declared: Sequence[str], tasks: Mapping[str, Raw]) -> str:
    owner = next(_owners(name, tasks), None)
    if owner is not None:
        return f"the task {quoted(owner)} has it as its own; --param is for those under `parameters` of the run"
    if not declared:
        return "it has none; they are listed under `parameters`"
    return nearest(bare(name), [bare(known) for known in declared]) or f"its parameters are {listed(declared)}"


def _owners(name: str, tasks: Mapping[str, Raw]) -> Iterator[str]:
    """The tasks that have a parameter of that name of their own."""
    text = msgspec.json.encode(bare(name))[1:-1]
    for batch in batches(tasks):
        if not any(text in bytes(raw) for raw in batch.values()):
            continue
        for task, raw in batch.items():
            try:
                own = _own.decode(raw).parameters
            except _UNREADABLE:
                continue
            if own and any(known == name or bare(known) == bare(name) for known in own):
                yield task


_objects = msgspec.json.Decoder(dict[str, Raw])
_own = msgspec.json.Decoder(_Own)
