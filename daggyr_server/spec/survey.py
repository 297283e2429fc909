"""Reads a document carefully, piece by piece, and finds all of its faults.

`decode` calls this for a document that msgspec refused, or that needs a closer look. It reads what is well formed as fast as
msgspec, and asks `check` about the rest. It keeps what could be read, so that expansion can look for faults there too. Nothing
here looks at several tasks at once.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Raw, inspect

from daggyr_server.spec.check import Check, fields_of, shape_of
from daggyr_server.spec.document import Defaults, Details, RunSpec, TaskDefinition, batches, decode_batch, is_sound, name_fault
from daggyr_server.spec.faults import Faults, at, shown
from daggyr_server.spec.ignored import task_without, without
from daggyr_server.spec.repeated import repeated_keys

# ValueError is raised for text that is not UTF-8, and for numbers of thousands of digits.
UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)

_TASK_SHAPE = shape_of(TaskDefinition)
_RUN_FIELDS = fields_of(RunSpec)
_TASK_FIELDS = fields_of(TaskDefinition)
_DETAILS_FIELDS = fields_of(Details)


class Survey:
    """Reads a document and adds what is wrong to `faults`.

    `spec` is what could be read, and None if nothing could. `unsound` names the tasks that could not be read completely. `spec`
    has stand-ins for them, with their edges, pool and resources as far as these are known. If the run's parameters are not known,
    all tasks are unsound.
    """

    def __init__(self, data: bytes | bytearray, faults: Faults, *, generated: bool) -> None:
        """`generated` says that the document is an object of tasks, as generators print it, and not a run."""
        self.spec: RunSpec | None = None
        self.unsound: set[str] = set()
        self._faults = faults
        self._above: tuple[str, ...] = () if generated else ("tasks",)
        top = self._top(data)
        if top is None:
            return
        if generated and self._is_run(top):
            return
        header: dict[str, Any] = {}
        tasks: dict[str, Raw] | None = top
        if not generated:
            without(top)
            Check(faults, None).keys(top, _RUN_FIELDS, "")
            for key in ("tags", "parameters", "pool", "defaults"):
                if key in top:
                    self._header(key, top[key], header)
            tasks = self._objects(top["tasks"], "tasks") if "tasks" in top else None
            if tasks == {}:
                faults.add("tasks", "there is no task", "a run has one task at least")
        if tasks is None:
            return
        readable = self._tasks(tasks)
        if not generated and "parameters" in top and "parameters" not in header:
            self.unsound.update(readable)
        self.spec = RunSpec(tasks=readable, **header)

    def _top(self, data: bytes | bytearray) -> dict[str, Raw] | None:
        """The members of the document's outermost object; None if it cannot be taken apart."""
        if not data.strip():
            none = "print {} if there are no tasks" if not self._above else "it holds `tasks`, an object of one task at least"
            self._faults.add("", "the document is empty", none)
            return None
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            self._faults.add(position(data, error.start), "the document is not UTF-8", "save it as UTF-8")
            return None
        try:
            repeated = repeated_keys(text)
            msgspec.json.decode(data, type=Raw)
        except json.JSONDecodeError as error:
            what = f"{error.msg[:1].lower()}{error.msg[1:]}"
            self._faults.add(f"line {error.lineno}, column {error.colno}", f"the document is no JSON: {what}")
            return None
        except msgspec.DecodeError:  # the standard library's decoder has accepted it
            hint = r"`NaN` and `Infinity` are no numbers, and a half of a surrogate pair (`\ud800`) is no character"
            self._faults.add("", "the document is no JSON (RFC 8259)", hint)
            return None
        except RecursionError:
            self._faults.add("", "the document is nested too deeply")
            return None
        level = len(self._above)
        for path, key in repeated:
            names = (*path, key)
            task = names[level] if names[:level] == self._above and len(names) > level else None
            place = ".".join(map(shown, names)).replace(".[", "[")
            what = "a task of this name stands" if path == self._above else "this key stands"
            self._faults.add(place, f"{what} more than once", "all but one would be lost", task=task)
        return self._objects(data, "")

    def _is_run(self, top: dict[str, Raw]) -> bool:
        """Whether a generator printed a run and not tasks. If so, this adds that fault."""
        if "tasks" not in top or not top.keys() <= _RUN_FIELDS.keys():
            return False
        try:
            keys = msgspec.json.decode(top["tasks"], type=dict[str, Raw]).keys()
        except UNREADABLE:
            return False
        if "details" in keys:
            return False  # it is a task with the name `tasks`
        self._faults.add("tasks", "a generator prints tasks, not a run", "print the object alone that stands under `tasks`")
        return True

    def _objects(self, raw: Raw | bytes | bytearray, place: str) -> dict[str, Raw] | None:
        """The members of an object. If `raw` is no object, this adds a fault and returns None."""
        try:
            return msgspec.json.decode(raw, type=dict[str, Raw])
        except msgspec.ValidationError:
            tasks = self._above == ((place,) if place else ())
            hint = "tasks stand in it by their names" if tasks else "it holds `tasks`"
            self._faults.add(place, "an object (in braces) is needed", hint)
        except UNREADABLE as error:
            self._faults.add(place, f"a name cannot be read: {error}")
        return None

    def _header(self, key: str, raw: Raw, header: dict[str, Any]) -> None:
        """Check the value of one of the run's own keys, and keep it if it is sound."""
        before = self._faults.count
        try:
            value = msgspec.json.decode(_without_ignored(raw) if key == "defaults" else raw)
        except UNREADABLE as error:
            self._faults.add(key, f"the value cannot be read: {error}")
            return
        Check(self._faults, None).value(value, _RUN_FIELDS[key].type, key)
        if self._faults.count == before:
            header[key] = msgspec.convert(value, Defaults) if key == "defaults" else value

    def _tasks(self, tasks: dict[str, Raw]) -> dict[str, Raw]:
        """`tasks` with stand-ins for those that have faults."""
        readable: dict[str, Raw] = {}
        for batch in batches(tasks):
            if _refusal(batch) is None and not any(map(name_fault, batch)):
                readable.update(batch)
                continue
            for name, raw in batch.items():
                readable[name] = self._task(name, raw, at(".".join(self._above), name))
        return readable

    def _task(self, name: str, raw: Raw, place: str) -> Raw:
        """`raw`, or a stand-in if the definition has faults."""
        before = self._faults.count
        wrong = name_fault(name)
        if wrong:
            self._faults.add(place, wrong, task=name)
        value = None
        refusal = _refusal({name: raw})
        if refusal:
            raw = _without_ignored(raw)
            refusal = _refusal({name: raw})
        if refusal is not None:
            try:
                value = msgspec.json.decode(raw)
                checked = self._faults.count
                Check(self._faults, name).value(value, _TASK_SHAPE, place)
                if self._faults.count == checked and refusal:
                    self._faults.add(place, refusal, task=name)
            except UNREADABLE as error:
                self._faults.add(place, f"a value cannot be read: {error}", task=name)
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
            details = value.get("details")
            if self._is_sound(value.get("pool"), _TASK_FIELDS["pool"].type):
                stand_in["pool"] = value["pool"]
            if isinstance(details, dict) and self._is_sound(details.get("resources"), _DETAILS_FIELDS["resources"].type):
                stand_in["details"]["resources"] = details["resources"]
        return Raw(msgspec.json.encode(stand_in))

    @staticmethod
    def _is_sound(value: Any, shape: inspect.Type) -> bool:
        """Whether a value is sound, in a task that has faults elsewhere."""
        faults = Faults()
        Check(faults, None).value(value, shape, "")
        return not faults.count


def _without_ignored(raw: Raw) -> Raw:
    """A definition without the keys that are ignored; the definition as it is if it is no object."""
    try:
        return task_without(raw)[0]
    except UNREADABLE:
        return raw


def _refusal(batch: dict[str, Raw]) -> str | None:
    """Why msgspec refuses a definition in `batch`. The text is empty if only a closer look is needed, and None if all is well."""
    try:
        definitions = decode_batch(batch)
    except UNREADABLE as error:
        return str(error)
    sound = all(is_sound(definition.details) for definition in definitions)
    return None if sound and not any(b"\\u0000" in bytes(raw) for raw in batch.values()) else ""


def position(data: bytes | bytearray, offset: int) -> str:
    """Where a byte of the document is, in words for a person."""
    start = data.rfind(b"\n", 0, offset) + 1
    line, column = data.count(b"\n", 0, offset) + 1, len(data[start:offset].decode(errors="replace")) + 1
    return f"line {line}, column {column}"
