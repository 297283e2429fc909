"""Converts YAML documents to JSON. Scalars are text, and the specification says which of them are numbers or truth values.

So `no`, dates and `012` stay text where text belongs, with quotes or without. Repeated keys are refused; anchors, aliases and
merge keys (`<<`, yaml.org/type/merge) work, within a bound on what aliases add, so that a small document cannot become a huge
one. The command line calls this; servers take JSON only. Only what is wrong as YAML is a fault here, with its line and column;
`decode` judges what the document says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import yaml
from msgspec import inspect

from daggyr_server.spec.check import shape_of
from daggyr_server.spec.document import RunSpec, TaskDefinition
from daggyr_server.spec.faults import Faults, quoted, shown

MAX_ALIASED_BYTES = 16 * 1024 * 1024
_MAX_DEPTH = 100

# These are JSON's numbers (RFC 8259). Numbers that are written in YAML's other ways stay text, and are refused with a hint where
# a number belongs, because people do not expect that 012 is 10.
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,30})(?P<real>(?:\.\d{1,30})?(?:[eE][+-]?\d{1,3})?)")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TAGS = {None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "map", "seq", "str"))}

_RUN_SHAPE = shape_of(RunSpec)
_TASK_SHAPE = shape_of(TaskDefinition)


def yaml_to_json(data: bytes) -> bytes:
    """The JSON document that says the same as a YAML document (YAML 1.1; in UTF-8, or in UTF-16 with a byte order mark).

    Raises SpecificationError for what is no YAML, repeated keys, keys that are not text, tags, more than one document,
    aliases of nothing or of what they are part of, and aliases that add more than MAX_ALIASED_BYTES.
    """
    faults = Faults()
    document = b""
    try:
        tree = _Tree(faults)
        for event in _events(data):
            tree.take(event)
        if tree.root in (None, ""):
            faults.add("", "the document is empty", "it holds `tasks`, an object of one task at least")
        document = msgspec.json.encode(_typed(tree.root, _RUN_SHAPE))
    except yaml.MarkedYAMLError as error:
        what = ", ".join(part for part in (error.context, error.problem) if part)
        mark = error.problem_mark or error.context_mark
        hint = "indent with spaces, not with tabs" if _is_indented_with_tabs(data, mark) else ""
        faults.add(_position(mark), f"the document is no YAML: {what}", hint)
    except (yaml.YAMLError, UnicodeError) as error:
        faults.add("", f"the document is no YAML: {shown(' '.join(str(error).split()))}", "save it as UTF-8")
    faults.refuse_if_any()
    return document


def _is_indented_with_tabs(data: bytes, mark: Any) -> bool:
    lines = data.split(b"\n", mark.line + 1) if mark is not None else []
    return bool(lines) and re.match(rb" *\t", lines[min(mark.line, len(lines) - 1)]) is not None


def _events(data: bytes) -> Iterator[Any]:
    # The C parser is ten times faster. It is missing if PyYAML was built without libyaml.
    loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    return yaml.parse(data, Loader=loader)


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is being read."""

    value: Any
    anchor: str | None
    mark: Any  # the position of its beginning
    key: str | None = None  # the key of a mapping whose value comes next
    merging: bool = False  # whether that key is `<<`
    merged: list[Any] = field(default_factory=list)
    size: int = 2  # roughly how many bytes it takes as JSON


class _Tree:
    """Builds the document's value from events, without recursion. Aliased values are shared."""

    def __init__(self, faults: Faults) -> None:
        self.root: Any = None
        self._faults = faults
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int] | None] = {}  # None while the value is being read
        self._aliased = 0
        self._documents = 0

    def take(self, event: Any) -> None:
        """Take the next event. Raises yaml.MarkedYAMLError if the rest of the document is unusable."""
        match event:
            case yaml.ScalarEvent():
                self._check_tag(event)
                merging = event.value == "<<" and event.implicit[0]
                self._close(event.value, len(event.value) + 3, event.anchor, event.start_mark, merging=merging)
            case yaml.AliasEvent():
                self._alias(event)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._check_tag(event)
                if len(self._stack) >= _MAX_DEPTH:
                    raise _unusable(event, "nested too deeply")
                if event.anchor is not None:
                    self._anchors[event.anchor] = None
                value: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                self._stack.append(_Frame(value, event.anchor, event.start_mark))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                frame = self._stack.pop()
                for source in frame.merged:
                    for key, value in source.items():
                        frame.value.setdefault(key, value)
                self._close(frame.value, frame.size, frame.anchor, frame.mark)
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents == 2:
                    self._fault(event.start_mark, "a second document begins here", "a file holds one specification")

    def _close(self, value: Any, size: int, anchor: str | None, mark: Any, *, merging: bool = False) -> None:
        """Put a complete value into the list or mapping around it."""
        if anchor is not None:
            self._anchors[anchor] = value, size
        if not self._stack:
            if self._documents == 1:
                self.root = value
            return
        frame = self._stack[-1]
        frame.size += size
        if isinstance(frame.value, list):
            frame.value.append(value)
        elif frame.key is None:
            self._open_key(frame, value, mark, merging)
        else:
            self._set(frame, frame.key, value, mark)
            frame.key = None

    def _open_key(self, frame: _Frame, key: Any, mark: Any, merging: bool) -> None:
        if not isinstance(key, str):
            hint = "keys are text"
            if isinstance(key, dict):  # most likely it was `{{NAME}}`
                hint += ', and braces need quotes: "{{NAME}}"'
            self._fault(mark, "a key is a list or an object", hint)
            key = ""
        elif key in frame.value or (merging and frame.merged):
            self._fault(mark, f"the key {quoted(key)} stands more than once here", "all but one would be lost")
        frame.key, frame.merging = key, merging

    def _set(self, frame: _Frame, key: str, value: Any, mark: Any) -> None:
        if not frame.merging:
            frame.value[key] = value
            return
        sources = value if isinstance(value, list) else [value]
        if all(isinstance(source, dict) for source in sources):
            frame.merged += sources
        else:
            self._fault(mark, "`<<` takes mappings only", "write aliases of mappings behind it")

    def _alias(self, event: Any) -> None:
        if event.anchor not in self._anchors:
            raise _unusable(event, f"there is no anchor {quoted(event.anchor)}")
        target = self._anchors[event.anchor]
        if target is None:
            raise _unusable(event, f"the alias {quoted(event.anchor)} is part of what it stands for")
        value, size = target
        self._aliased += size
        if self._aliased > MAX_ALIASED_BYTES:
            raise _unusable(event, f"aliases stand for more than {MAX_ALIASED_BYTES:,} bytes")
        self._close(value, size, None, event.start_mark)

    def _check_tag(self, event: Any) -> None:
        if event.tag not in _TAGS:
            self._fault(event.start_mark, f"the tag {quoted(event.tag)} means nothing here", "leave it out")

    def _fault(self, mark: Any, message: str, hint: str) -> None:
        self._faults.add(_position(mark), message, hint)


def _unusable(event: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _typed(value: Any, shape: inspect.Type | None) -> Any:
    """`value` with numbers and truth values in the places where `shape` has them. What does not fit stays text."""
    if isinstance(shape, inspect.Metadata):
        shape = shape.type
    match shape:
        case inspect.RawType():
            return _typed(value, _TASK_SHAPE)
        case inspect.UnionType() if not any(isinstance(kind, inspect.StructType) for kind in shape.types):
            return _number(value) if isinstance(value, str) else value
        case inspect.UnionType():
            return _typed(value, next(kind for kind in shape.types if isinstance(kind, inspect.StructType)))
        case inspect.StructType() if isinstance(value, dict):
            shapes = {field.encode_name: field.type for field in shape.fields}
            return {key: _typed(inner, shapes.get(key)) for key, inner in value.items()}
        case inspect.DictType() if isinstance(value, dict):
            return {key: _typed(inner, shape.value_type) for key, inner in value.items()}
        case inspect.ListType() if isinstance(value, list):
            return [_typed(item, shape.item_type) for item in value]
        case inspect.BoolType() if isinstance(value, str):
            return _TRUTH.get(value, value)
        case inspect.IntType() | inspect.FloatType() if isinstance(value, str):
            return _number(value)
        case _:
            return value


def _number(text: str) -> float | str:
    written = _NUMBER.fullmatch(text)
    if written is None:
        return text
    number = float(text) if written["real"] else int(text)
    return text if math.isinf(number) else number


def _position(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
