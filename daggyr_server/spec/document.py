"""The run specification as typed structures: which keys there are, what each may hold, and within which limits.

This is the one place that says what a valid document is. Only rules about several tasks at once are elsewhere, because they are
found in expansion. `decode` reads documents into these structures; where that fails, `check` reads the same
declarations to tell all that is wrong; `yaml_text` types YAML by them. A key that the document does not give is UNSET.

A RunSpec keeps its tasks as pieces of the document and decodes them as they are walked, because a million decoded
definitions are ten times the document. Nothing here reads files or knows where documents come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from daggyr_server.core.graph.segments import MAX_TASK_ID_BYTES
from daggyr_server.spec.faults import Faults

MAX_SECONDS = 1_000_000_000  # about 31 years
MAX_UNITS = 2**63 - 1
MAX_RETRIES = 2**31 - 1
_BATCH = 256

# `description` is what messages call the value that is needed. `extra` has rules that msgspec does not check by itself.
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS, description="a number of seconds")]
Units = Annotated[int, Meta(ge=0, le=MAX_UNITS, description="a whole number of units")]
Command = Annotated[
    list[str],
    Meta(min_length=1, description="a list of the program and its arguments", extra={"first": "a program's name"}),
]
# An environment's strings are NAME=VALUE (environ(7)), so a name cannot hold `=`. `extra` says so, because a pattern would take
# half of the time of decoding.
VariableName = Annotated[
    str,
    Meta(min_length=1, description="the name of an environment variable (not empty, without `=`)", extra={"without": "="}),
]
ResourceName = Annotated[str, Meta(min_length=1, description="the name of a resource")]
ParameterName = Annotated[str, Meta(min_length=1, description="the name of a parameter (not empty)")]
Parameters = dict[ParameterName, Annotated[list[str], Meta(min_length=1, description="a list of one value at least")]]
PoolName = Annotated[str, Meta(min_length=1, description="the name of a pool")]
TaskNames = Annotated[list[str], Meta(description="a list of task names")]


class Details(Struct, forbid_unknown_fields=True, gc=False):
    """What a task executes.

    Names of parameters may stand in `command`, values of `environment`, `working_directory` and `stdin`.
    """

    command: Command
    environment: dict[VariableName, str] | UnsetType = UNSET
    working_directory: str | UnsetType = UNSET
    stdin: Annotated[str, Meta(extra={"nul": True})] | UnsetType = UNSET
    timeout: Seconds | UnsetType = UNSET
    resources: dict[ResourceName, Units] | UnsetType = UNSET


class ParentReference(Struct, forbid_unknown_fields=True, gc=False):
    """A parent, and the parameters whose values must be equal.

    If there are none, the task waits for all expansions of the parent.
    """

    task: str
    match: Annotated[list[str], Meta(description="a list of parameter names")] | UnsetType = UNSET


class TaskDefinition(Struct, forbid_unknown_fields=True, gc=False):
    """One task of a document. Parameters may multiply it."""

    details: Details
    children: TaskNames | UnsetType = UNSET
    parents: Annotated[list[str | ParentReference], Meta(description="a list of parents")] | UnsetType = UNSET
    parameters: Parameters | UnsetType = UNSET
    is_generator: bool | UnsetType = UNSET
    max_retries: Annotated[int, Meta(ge=0, le=MAX_RETRIES)] | UnsetType = UNSET
    retry_delay: Seconds | UnsetType = UNSET
    pool: PoolName | UnsetType = UNSET
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | UnsetType = UNSET


class RunSpec(Struct, forbid_unknown_fields=True, kw_only=True):
    """A run specification that was checked, except for rules about several tasks at once.

    `tasks` has each definition as the piece of JSON that the document has; `definitions` decodes these pieces.
    """

    tags: dict[str, str] | UnsetType = UNSET
    parameters: Parameters | UnsetType = UNSET
    pool: PoolName | UnsetType = UNSET
    tasks: Annotated[dict[str, Raw], Meta(min_length=1, description="an object of one task at least")]

    def definitions(self) -> Iterator[tuple[str, TaskDefinition]]:
        """Names and definitions in the document's order. They are decoded a batch at a time, while the caller iterates."""
        for batch in batches(self.tasks):
            yield from zip(batch, decode_batch(batch), strict=True)

    def definition(self, name: str) -> TaskDefinition:
        """The definition of one task. Raises KeyError."""
        return decode_batch({name: self.tasks[name]})[0]

    def run_parameters(self) -> dict[str, tuple[str, ...]]:
        """The run's parameters. The tasks of its generators are expanded with them, too."""
        return {name: tuple(values) for name, values in (self.parameters or {}).items()}

    def with_overrides(self, *, tags: Mapping[str, str] | None = None, pool: str = "") -> RunSpec:
        """The same tasks, with `tags` added to the document's (and replacing equal names), and with `pool` unless that is empty.

        Raises SpecificationError for tags or a pool that hold NUL characters.
        """
        faults = Faults()
        for key, value in (tags or {}).items():
            if "\0" in key or "\0" in value:
                faults.add("tags", "a tag holds a NUL character")
        if "\0" in pool:
            faults.add("pool", "the name of the pool holds a NUL character")
        faults.refuse_if_any()
        return RunSpec(
            tags={**(self.tags or {}), **(tags or {})},
            parameters=self.parameters,
            pool=pool or self.pool,
            tasks=self.tasks,
        )


def encode_json(spec: RunSpec) -> bytes:
    """`spec` as a JSON document. `decode_json` makes an equal specification of it."""
    return msgspec.json.encode(spec)


def batches(tasks: Mapping[str, Raw]) -> Iterator[dict[str, Raw]]:
    """`tasks` in batches, each small enough to be decoded in one call."""
    items = iter(tasks.items())
    while batch := dict(islice(items, _BATCH)):
        yield batch


def decode_batch(batch: Mapping[str, Raw]) -> list[TaskDefinition]:
    """The definitions of a batch. Raises msgspec.DecodeError or UnicodeDecodeError if one of them is wrong."""
    return _batch_decoder.decode(b"[" + b",".join(batch.values()) + b"]")


def is_sound(details: Details) -> bool:
    """Whether decoded details keep the rules of `extra`.

    The rule about NUL characters is left to `decode`, which searches all bytes.
    """
    return details.command[0] != "" and not (details.environment and "=" in "".join(details.environment))


def name_fault(name: str) -> str | None:
    """What is wrong with `name` as a task_id, or None."""
    if not name:
        return "the name of a task is empty"
    if has_control_characters(name):
        return "the name of a task holds control characters"
    if len(name) > MAX_TASK_ID_BYTES // 4 and len(name.encode()) > MAX_TASK_ID_BYTES:
        return f"the name of a task is longer than {MAX_TASK_ID_BYTES:,} bytes"
    return None


def has_control_characters(text: str) -> bool:
    """Whether `text` holds any of Unicode's control characters (category Cc: C0, DEL and C1)."""
    if len(text) <= _AT_ONCE:
        return _CONTROL.search(text) is not None
    starts = range(0, len(text), _AT_ONCE)  # in parts, so that other threads run in between
    return any(_CONTROL.search(text, start, start + _AT_ONCE) is not None for start in starts)


_AT_ONCE = 1_000_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_batch_decoder = msgspec.json.Decoder(list[TaskDefinition])
