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
from daggyr_server.spec.quantities import MEMORY, TIME

MAX_SECONDS = 1_000_000_000  # about 31 years
MAX_UNITS = 2**63 - 1
MAX_RETRIES = 2**31 - 1
_BATCH = 256

# `description` is what messages call the value that is needed. `extra` has rules that msgspec does not check by itself.
Seconds = Annotated[
    Annotated[float, Meta(ge=0, le=MAX_SECONDS)] | Annotated[str, Meta(pattern=TIME)],
    Meta(description="a number of seconds", examples=[300, "30s", "5m", "2h", "1d"]),
]
# A text is for `memory_mb` only; `policies` refuses it elsewhere, because there it costs nothing a task.
Units = Annotated[
    Annotated[int, Meta(ge=0, le=MAX_UNITS)] | Annotated[str, Meta(pattern=MEMORY)],
    Meta(description="a whole number of units"),
]
Command = Annotated[
    list[str],
    Meta(min_length=1, description="a list of the program and its arguments", extra={"first": "a program's name"}),
]
Script = Annotated[str, Meta(min_length=1, description="the text of a script")]
Shell = Annotated[
    list[str],
    Meta(min_length=1, description="a list of the shell and its options", extra={"first": "a shell's name"}),
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


class DefaultDetails(Struct, forbid_unknown_fields=True, gc=False, kw_only=True, omit_defaults=True):
    """What `defaults` may say of what tasks execute."""

    environment: dict[VariableName, str] | UnsetType = UNSET
    working_directory: str | UnsetType = UNSET
    stdin: Annotated[str, Meta(extra={"nul": True})] | UnsetType = UNSET
    timeout: Seconds | UnsetType = UNSET
    resources: dict[ResourceName, Units] | UnsetType = UNSET
    shell: Shell | UnsetType = UNSET


class Details(DefaultDetails, forbid_unknown_fields=True, gc=False, kw_only=True, omit_defaults=True):
    """What a task executes: a `command`, or a `script`, which becomes the command [*shell, -c, script].

    Names of parameters may stand in `command`, `script`, `shell`, values of `environment`, `working_directory` and `stdin`.
    """

    command: Command = msgspec.field(default_factory=list)  # empty if there is a script
    script: Script | UnsetType = UNSET


class ParentReference(Struct, forbid_unknown_fields=True, gc=False):
    """A parent, and the parameters whose values must be equal.

    If there are none, the task waits for all expansions of the parent.
    """

    task: str
    match: Annotated[list[str], Meta(description="a list of parameter names")] | UnsetType = UNSET


class Defaults(Struct, forbid_unknown_fields=True, gc=False, kw_only=True):
    """The keys that a run gives to all of its tasks. Those of a task go over them."""

    details: DefaultDetails | UnsetType = UNSET
    max_retries: Annotated[int, Meta(ge=0, le=MAX_RETRIES)] | UnsetType = UNSET
    retry_delay: Seconds | UnsetType = UNSET
    pool: PoolName | UnsetType = UNSET
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | UnsetType = UNSET


class TaskDefinition(Defaults, forbid_unknown_fields=True, gc=False, kw_only=True):
    """One task of a document. Parameters may multiply it."""

    details: Details
    children: TaskNames | UnsetType = UNSET
    parents: Annotated[list[str | ParentReference], Meta(description="a list of parents")] | UnsetType = UNSET
    parameters: Parameters | UnsetType = UNSET
    is_generator: bool | UnsetType = UNSET


class RunParameters(dict[str, tuple[str, ...]]):
    """A run's parameters, and the defaults that the tasks of its generators get as well.

    The two go together from the specification to wherever a generator's tasks are made.
    """

    defaults: Defaults | UnsetType = UNSET


class RunSpec(Struct, forbid_unknown_fields=True, kw_only=True):
    """A run specification that was checked, except for rules about several tasks at once.

    `tasks` has each definition as the piece of JSON that the document has, without the keys that are ignored; `definitions`
    decodes these pieces. They do not have the run's defaults in them: `defaults.py` puts these into a decoded definition.
    """

    tags: dict[str, str] | UnsetType = UNSET
    parameters: Parameters | UnsetType = UNSET
    pool: PoolName | UnsetType = UNSET
    defaults: Defaults | UnsetType = UNSET
    tasks: Annotated[dict[str, Raw], Meta(min_length=1, description="an object of one task at least")]

    def definitions(self) -> Iterator[tuple[str, TaskDefinition]]:
        """Names and definitions in the document's order. They are decoded a batch at a time, while the caller iterates."""
        for batch in batches(self.tasks):
            yield from zip(batch, decode_batch(batch), strict=True)

    def definition(self, name: str) -> TaskDefinition:
        """The definition of one task. Raises KeyError."""
        return decode_batch({name: self.tasks[name]})[0]

    def run_parameters(self) -> RunParameters:
        """The run's parameters and defaults. The tasks of its generators are expanded with them, too."""
        found = RunParameters((name, tuple(values)) for name, values in (self.parameters or {}).items())
        found.defaults = self.defaults
        return found

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
        return msgspec.structs.replace(self, tags={**(self.tags or {}), **(tags or {})}, pool=pool or self.pool)


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
    """Whether decoded details keep the rules of `extra`, and have either a command or a script.

    The rule about NUL characters is left to `decode`, which searches all bytes.
    """
    command = details.command
    if not command or details.script is not details.shell:  # they are the same only if neither is given
        return not command and bool(details.script) and are_sound(details)
    return command[0] != "" and not (details.environment and "=" in "".join(details.environment))


def are_sound(details: DefaultDetails) -> bool:
    """Whether details that may be defaults keep the rules of `extra`."""
    shell_is_named = not details.shell or details.shell[0] != ""
    return shell_is_named and not (details.environment and "=" in "".join(details.environment))


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
