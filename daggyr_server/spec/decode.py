"""Reads JSON documents: fast where all is well, and with all faults together where not.

The fast way decodes with msgspec and proves by counting that no key stands twice. A document that it does not accept is
looked at again, piece by piece, with `check`; that way alone tells faults. It also tells what expansion finds wrong with
the tasks that could be read, so that a person sees all at once. Both ways accept the same documents (a test holds them
together).

`api` and the CLI call `decode_json`; `generated` calls `decode_tasks`. Nothing here reads files.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw

from daggyr_server.spec.check import Check, fields_of, shape_of
from daggyr_server.spec.document import (
    RunSpec,
    TaskDefinition,
    batches,
    decode_batch,
    has_control_characters,
    name_fault,
)
from daggyr_server.spec.faults import Faults, shown
from daggyr_server.spec.repeated import repeated_keys

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# With these in a document, neither the count of its colons nor the absence of NUL characters can be told from its bytes.
_CLOSER_LOOK = (b"\\u0000", b"\\u003a", b"\\u003A")

_TASK_SHAPE = shape_of(TaskDefinition)
_RUN_FIELDS = fields_of(RunSpec)


def decode_json(data: bytes) -> RunSpec:
    """The run specification in a JSON document (UTF-8).

    What concerns several tasks at once, and pools, is left to `expand`. Raises SpecificationError with all faults, also with
    those that `expand` would find in the rest of the document (but for pools, which are not known here).
    """
    try:
        spec = _run_decoder.decode(data)
        if _proven(data, spec.tasks, msgspec.structs.replace(spec, tasks={})):
            return spec
    except _UNREADABLE:
        pass
    faults = Faults()
    survey = Survey(data, faults, generated=False)
    if survey.spec is not None and faults.count:
        from daggyr_server.spec.expand import find_faults

        find_faults(survey.spec, faults, unsound=survey.unsound)
    faults.refuse_if_any()
    return _run_decoder.decode(data)


def decode_tasks(data: bytes) -> dict[str, Raw]:
    """The tasks in what a generator printed: a JSON object of task definitions. Raises SpecificationError."""
    try:
        tasks = _tasks_decoder.decode(data)
        if _proven(data, tasks, None):
            return tasks
    except _UNREADABLE:
        pass
    faults = Faults()
    Survey(data, faults, generated=True)
    faults.refuse_if_any()
    return _tasks_decoder.decode(data)


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
        if not all(definition.details.command[0] for definition in definitions):
            return False
        colons += _encode(definitions).count(b":")
    return colons == data.count(b":")


class Survey:
    """A document that is not known to be well formed, looked at piece by piece.

    `spec` is what could be read, None if that is nothing. Of the tasks in `unsound` not all could be read: they are
    stand-ins that keep what is known of their edges, or the run's parameters are not known.
    """

    def __init__(self, data: bytes, faults: Faults, *, generated: bool) -> None:
        self.spec: RunSpec | None = None
        self.unsound: set[str] = set()
        self._faults = faults
        self._generated = generated
        top = self._read(data)
        if top is None:
            return
        tasks: Any = top
        header: dict[str, Any] = {}
        if not generated:
            Check(faults, None).keys(top, _RUN_FIELDS, "")
            for key in ("tags", "parameters", "pool"):
                if key in top and (value := self._header(key, top[key])) is not None:
                    header[key] = value
            tasks = self._objects(top["tasks"], "tasks") if "tasks" in top else None
        if tasks is None:
            return
        if not generated and not tasks:
            faults.add("tasks", "there is no task", "a run has one task at least")
        root = "" if generated else "tasks."
        readable = {name: self._task(name, raw, f"{root}{shown(name)}") for name, raw in tasks.items()}
        if "parameters" in top and "parameters" not in header:
            self.unsound.update(tasks)
        self.spec = RunSpec(tasks=readable, **header)

    def _read(self, data: bytes) -> dict[str, Raw] | None:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            self._faults.add(_position(data, error.start), "the document is not UTF-8", "save it as UTF-8")
            return None
        try:
            msgspec.json.decode(data, type=Raw)
            repeated = repeated_keys(text)
        except msgspec.DecodeError as error:
            found = re.search(r"\(byte (\d+)\)", str(error))
            offset = int(found[1]) if found else len(data)
            what = re.sub(r"^JSON is malformed: | \(byte \d+\)$", "", str(error))
            self._faults.add(_position(data, offset), f"the document is no JSON: {what}")
            return None
        except RecursionError:
            self._faults.add("", "the document is nested too deeply")
            return None
        del text
        above = () if self._generated else ("tasks",)
        for path, key in repeated:
            inside = path[: len(above)] == above
            task = path[len(above)] if inside and len(path) > len(above) else key if path == above else None
            place = ".".join(shown(part) for part in (*path, key)).replace(".[", "[")
            what = "a task of this name stands" if path == above else "this key stands"
            self._faults.add(place, f"{what} more than once", "all but one would be lost", task=task)
        return self._objects(data, "")

    def _objects(self, raw: Raw | bytes, place: str) -> dict[str, Raw] | None:
        """The values of an object by their keys; None, and a fault, if `raw` is no such thing."""
        try:
            return msgspec.json.decode(raw, type=dict[str, Raw])
        except msgspec.ValidationError:
            tasks = place == "tasks" or self._generated
            hint = "tasks stand in it by their names" if tasks else "it holds `tasks`"
            self._faults.add(place, "an object (in braces) is needed", hint)
        except _UNREADABLE as error:
            self._faults.add(place, f"a name cannot be read: {error}")
        return None

    def _value(self, raw: Raw, place: str, task: str | None) -> tuple[Any, bool]:
        try:
            return msgspec.json.decode(raw), True
        except _UNREADABLE as error:
            # Of what is well formed, this remains: half a surrogate pair, a number beyond a double's range.
            self._faults.add(place, f"a value cannot be read: {error}", task=task)
            return None, False

    def _header(self, key: str, raw: Raw) -> Any:
        before = self._faults.count
        value, read = self._value(raw, key, None)
        if read:
            Check(self._faults, None).value(value, _RUN_FIELDS[key].type, key)
        if self._faults.count == before:
            return value
        return None

    def _task(self, name: str, raw: Raw, place: str) -> Raw:
        """`raw`, or what stands in for a definition that has faults."""
        before = self._faults.count
        wrong = name_fault(name)
        if wrong:
            self._faults.add(place, wrong, task=name)
        value, read = self._value(raw, place, name)
        if read:
            Check(self._faults, name).value(value, _TASK_SHAPE, place)
        if self._faults.count == before:
            return raw
        self.unsound.add(name)
        stand_in: dict[str, Any] = {"details": {"command": ["-"]}}
        if isinstance(value, dict):
            for key in ("children", "parents"):
                edges = value.get(key)
                if isinstance(edges, list):
                    ends = (edge.get("task") if isinstance(edge, dict) else edge for edge in edges)
                    stand_in[key] = [end if isinstance(end, str) else "" for end in ends]
        return Raw(_encode(stand_in))


def _position(data: bytes, offset: int) -> str:
    """Where a byte of the document is, for a person."""
    before = data[:offset]
    start = before.rfind(b"\n") + 1
    line, column = before.count(b"\n") + 1, len(before[start:].decode(errors="replace")) + 1
    return f"line {line}, column {column}"


_run_decoder = msgspec.json.Decoder(RunSpec)
_tasks_decoder = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode
