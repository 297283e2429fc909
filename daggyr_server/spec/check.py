"""The careful check: all that is wrong with one decoded value, by the declarations in `document`.

msgspec stops at the first fault and speaks of types; a person wants all faults, in the specification's words, each with what to
do. `survey` calls this for values that msgspec refused, or that need a closer look. msgspec and this check agree on what is
valid, because both read the same declarations (`msgspec.inspect`). Nothing here looks at more than one value at a time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from msgspec import inspect

from daggyr_server.spec.document import Defaults, Details
from daggyr_server.spec.faults import Faults, at, quoted, shown
from daggyr_server.spec.hints import HARDLY_ANY, SCRIPTS, key_hint, quantity_hint


def shape_of(declared: Any) -> inspect.Type:
    """The shape of a declared type, as `Check.value` takes it."""
    return inspect.type_info(declared)


def fields_of(declared: Any) -> dict[str, inspect.Field]:
    """The keys of a declared structure."""
    shape = shape_of(declared)
    assert isinstance(shape, inspect.StructType)
    return {field.encode_name: field for field in shape.fields}


_NEEDED = {Details: "an object with `command` or `script`", Defaults: "an object of keys of a task"}


class Check:
    """Checks values of one task, or of the run if `task` is None, and adds what is wrong to `faults`."""

    def __init__(self, faults: Faults, task: str | None) -> None:
        self._faults = faults
        self._task = task

    def value(self, value: Any, shape: inspect.Type, place: str) -> None:
        """Check a decoded JSON value against a shape."""
        extra: dict[str, Any] = {}
        needed = ""
        if isinstance(shape, inspect.Metadata):
            extra = shape.extra or {}
            needed = (shape.extra_json_schema or {}).get("description", "")
            shape = shape.type
        match shape:
            case inspect.StructType():
                self._structure(value, shape, place)
            case inspect.DictType():
                self._mapping(value, shape, place, needed or "an object")
            case inspect.ListType():
                self._list(value, shape, place, needed or "a list", extra)
            case inspect.StrType():
                self._text(value, shape, place, needed or "text", extra)
            case inspect.IntType() | inspect.FloatType():
                self._number(value, shape, place, needed)
            case inspect.BoolType():
                if not isinstance(value, bool):
                    hint = "write true or false, without quotes" if isinstance(value, str) else "write true or false"
                    self._wrong(value, "true or false", place, hint)
            case inspect.UnionType() if not any(isinstance(kind, inspect.StructType) for kind in shape.types):
                self._quantity(value, shape, place, needed)
            case inspect.UnionType():  # a text or a structure
                one = next(kind for kind in shape.types if isinstance(kind, inspect.StructType) == isinstance(value, dict))
                if not isinstance(value, dict | str):
                    keys = fields_of(next(kind for kind in shape.types if isinstance(kind, inspect.StructType)).cls)
                    self._wrong(value, f"a task's name, or an object with {' and '.join(map(quoted, keys))},", place)
                else:
                    self.value(value, one, place)
            case _:
                raise TypeError(f"no check for {shape}")

    def keys(self, given: Iterable[str], fields: dict[str, inspect.Field], place: str) -> None:
        """Check that all of `given` are keys of the structure, and that all of its required keys are among them."""
        given = set(given)
        for key in sorted(given - fields.keys()):
            self._add(at(place, key), "there is no such key", partial(key_hint, key, frozenset(fields)))
        for key, field in fields.items():
            if field.required and key not in given:
                self._add(place, f"{quoted(key)} is missing", "every task has one" if key == "details" else "")

    def _structure(self, value: Any, shape: inspect.StructType, place: str) -> None:
        if not isinstance(value, dict):
            required = [quoted(field.name) for field in shape.fields if field.required]
            needed = f"an object with {' and '.join(required)}" if required else "an object"
            self._wrong(value, _NEEDED.get(shape.cls, needed), place)
            return
        fields = {field.encode_name: field for field in shape.fields}
        self.keys(value, fields, place)
        for key, inner in value.items():
            if key in fields:
                self.value(inner, fields[key].type, at(place, key))
        if shape.cls is Details:
            self._program(value, place)

    def _program(self, details: dict[str, Any], place: str) -> None:
        """Check that a task has a command or a script, and not both."""
        if "command" not in details and "script" not in details:
            if not details.keys() & SCRIPTS:  # else the fault of that key has been told
                self._add(place, "`command` is missing", "every task has one, or a `script`")
        elif "command" in details and "script" in details:
            self._add(place, "`command` and `script` are both given", "a task has one of them")
        elif isinstance(details.get("shell"), list) and "script" not in details:  # else its own fault has been told
            self._add(at(place, "shell"), "`shell` is given, and there is no `script`", "a `command` names its program itself")

    def _mapping(self, value: Any, shape: inspect.DictType, place: str, needed: str) -> None:
        if not isinstance(value, dict):
            self._wrong(value, needed, place, "write {} for none, or leave the key out" if value == "" else "")
            return
        if shape.min_length and len(value) < shape.min_length:
            self._add(place, f"{needed} is needed, an empty one was given")
        for key, inner in value.items():
            self.value(key, shape.key_type, at(place, key))
            self.value(inner, shape.value_type, at(place, key))

    def _list(self, value: Any, shape: inspect.ListType, place: str, needed: str, extra: dict[str, Any]) -> None:
        if not isinstance(value, list):
            hint = ""
            if isinstance(value, str) and value and extra:
                last = place.rpartition(".")[2]
                hint = f"write {json.dumps(['sh', '-c', shown(value)])}, or make it the task's `script`"
                if last == "shell":
                    hint = "a list is its program and options, such as [bash, -eu]; the text for it is the task's `script`"
            elif isinstance(value, str):
                none = "" if shape.min_length else "write [] for none, or leave the key out"
                hint = f"write {json.dumps([shown(value)])}" if value else none
            self._wrong(value, needed, place, hint)
            return
        if shape.min_length and len(value) < shape.min_length:
            self._add(place, f"{needed} is needed, an empty one was given")
        for index, item in enumerate(value):
            self.value(item, shape.item_type, f"{place}[{index}]")
        if "first" in extra and value and value[0] == "":
            self._add(f"{place}[0]", f"{extra['first']} is needed, an empty text was given")

    def _text(self, value: Any, shape: inspect.StrType, place: str, needed: str, extra: dict[str, Any]) -> None:
        if not isinstance(value, str):
            hint = f"write it as text: {json.dumps(_literal(value))}" if isinstance(value, int | float) else ""
            if isinstance(value, list) and place.endswith(".script"):
                hint = "a list of words is a `command`"
            self._wrong(value, needed, place, hint)
        elif "\0" in value and "nul" not in extra:
            self._add(place, "the text holds a NUL character, which no command or variable can hold", "leave it out")
        elif len(value) < (shape.min_length or 0) or ("without" in extra and extra["without"] in value):
            given = f"{quoted(value)} was given" if value else "an empty text was given"
            self._add(place, f"{needed} is needed, {given}")

    def _quantity(self, value: Any, shape: inspect.UnionType, place: str, needed: str) -> None:
        """Check a number that may be a text with a unit."""
        number, text = sorted(shape.types, key=lambda kind: isinstance(kind, inspect.StrType))
        assert isinstance(number, inspect.IntType | inspect.FloatType)
        assert isinstance(text, inspect.StrType)
        assert text.pattern is not None
        takes_units = isinstance(number, inspect.FloatType) or place.endswith(".memory_mb")
        if not (takes_units and isinstance(value, str) and re.search(text.pattern, value)):
            self._number(value, number, place, needed)

    def _number(self, value: Any, shape: inspect.IntType | inspect.FloatType, place: str, needed: str) -> None:
        whole = isinstance(shape, inspect.IntType)
        needed = needed or ("a whole number" if whole else "a number")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            hint = ""
            if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}" if whole else r"-?\d{1,18}(\.\d{1,18})?", value):
                number = re.sub(r"^(-?)0+(?=\d)", r"\1", value)
                hint = f"write it without quotes: {number}" if number == value else f"write {number}"
            elif isinstance(value, str):
                hint = quantity_hint(value, place, whole)
            elif whole and isinstance(value, float) and 0 < value < 1_000_000_000_000:
                hint = f"write {math.ceil(value)}" + (HARDLY_ANY if value < 1 and ".resources." in place else "")
            self._wrong(value, needed, place, hint)
            return
        least, most = shape.ge, shape.le
        if (least is not None and value < least) or (most is not None and value > most):
            self._add(place, f"{needed} from {least:,} to {most:,} is needed, {_literal(value)} was given")

    def _wrong(self, value: Any, needed: str, place: str, hint: str = "") -> None:
        if value is None:
            hint = "leave the key out instead"
        self._add(place, f"{needed} is needed, {_given(value)} was given", hint)

    def _add(self, place: str, message: str, hint: str | Callable[[], str] = "") -> None:
        self._faults.add(place, message, hint, task=self._task)


def _literal(value: float) -> str:
    """A number or truth value as JSON writes it. A very long one is cut."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    return json.dumps(value)


def _given(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return _literal(value)
        case int() | float():
            return f"the number {_literal(value)}"
        case str():
            return f'the text "{shown(value)}"' if value else "an empty text"
        case list():
            return "a list"
        case _:
            return "an object"
