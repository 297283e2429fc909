"""Checks a table of settings against a msgspec Struct type and tells all that is wrong with it at once.

The server checks `[server]` and each pool's settings with it, and the agent checks its own, so that the same fault is told in the
same sentence on both sides. `read_table` reads the file in which the table stands. Nothing here knows a setting by name, and no
fault shows a text value, because that may be a secret.

What a Struct type says is what holds: types, `msgspec.Meta` limits, defaults, and a ValueError from its `__post_init__`. A
setting of type `pathlib.Path` is a path on this host: `~` stands for the user's home, and a relative path counts from a folder
that the caller names (the server: the configuration file's; the agent: the one that it was started in).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import msgspec

MAX_FILE_BYTES = 1024 * 1024

S = TypeVar("S", bound=msgspec.Struct)

_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "nothing",
    "object": "a table",
    "str": "text",
}
_PHRASES = (
    (", got ", ", found "),
    (" of length >= ", " no shorter than "),
    (" of length <= ", " no longer than "),
    (" >= ", " of at least "),
    (" <= ", " of at most "),
    (" > ", " above "),
    (" < ", " below "),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where (`server.lease`, `--listen`), what, and what to do about it if that is known."""

    place: str
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" + (f"; {self.hint}" if self.hint else "")


class ConfigurationError(Exception):
    """A configuration that cannot be used. `faults` are all of them; the message lists them, one a line."""

    def __init__(self, faults: Sequence[Fault], source: str) -> None:
        """`source` names the file, or `the command line`."""
        self.faults = tuple(faults)
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{source} has {count}:" + "".join(f"\n  {fault}" for fault in faults))


def read_table(path: Path, otherwise: str) -> dict[str, Any]:
    """The table in the configuration file `path`: TOML or JSON by its suffix, else JSON if it begins with a brace.

    Raises ConfigurationError. `otherwise` is the hint for a file that cannot be read, such as `name another with --config`.
    """

    def refuse(problem: str, hint: str = "") -> NoReturn:
        raise ConfigurationError([Fault("the file", problem, hint)], str(path)) from None

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        refuse(f"cannot be read: {error.strerror}", otherwise)
    if len(data) > MAX_FILE_BYTES:
        refuse(f"is larger than {MAX_FILE_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
        is_json = path.suffix == ".json" or (path.suffix != ".toml" and text.lstrip().startswith("{"))
        document = json.loads(text, object_pairs_hook=_distinct) if is_json else tomllib.loads(text)
    except UnicodeDecodeError as error:
        refuse(f"is not UTF-8 text (at byte {error.start})")
    except ValueError as error:
        refuse(f"is no {'JSON' if is_json else 'TOML'}: {error}")
    except RecursionError:
        refuse("is nested too deeply")
    if not isinstance(document, dict):
        refuse("holds no table", "write an object, {...}")
    return document


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key stands twice, as TOML demands too. Raises ValueError."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return table


def suggest(name: str, known: Iterable[str], *, otherwise: str) -> str:
    """A hint for a `name` that is not among `known`: the nearest one, or all of them after the words `otherwise`."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean `{near[0]}`?" if near else f"{otherwise} {', '.join(names) or 'nothing'}"


def resolve(text: str, folder: Path) -> Path:
    """The absolute path that `text` names in a configuration whose folder is `folder`. Raises ValueError if it has none."""
    if not text or "\0" in text:
        raise ValueError("expected a path")
    try:
        path = Path(text).expanduser()
        return path if path.is_absolute() else folder.absolute() / path
    except RuntimeError:
        raise ValueError("the home folder that `~` stands for is not known; write the whole path") from None
    except FileNotFoundError:
        raise ValueError("the folder that it counts from was removed; write the whole path") from None


def check(table: object, kind: type[S], *, place: str, folder: Path, faults: list[Fault]) -> S | None:
    """A `kind` made from `table`, or None after all that is wrong was added to `faults`.

    `place` is where the table stands: `server`, `pools.farm`, or "" where the settings are the whole file. Relative paths count
    from `folder`, which is absolute.
    """
    found: list[Fault] = []
    value = _Check(folder, found).struct(table, kind, place)
    faults += found
    return value if isinstance(value, kind) and not found else None


class _Check:
    def __init__(self, folder: Path, faults: list[Fault]) -> None:
        self._folder = folder
        self._faults = faults

    def struct(self, table: object, kind: type[msgspec.Struct], place: str) -> object:
        if not isinstance(table, Mapping):
            self._faults.append(Fault(place, f"expected a table, found {_found(table)}"))
            return None
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for key in table:
            if key not in fields:
                self._faults.append(Fault(_inside(place, key), "unknown key", suggest(key, fields, otherwise="known here:")))
        before = len(self._faults)
        values = {}
        for key, field in fields.items():
            if key in table:
                values[field.name] = self._value(table[key], field.type, _inside(place, key))
            elif field.required:
                self._faults.append(Fault(place, f"`{key}` is missing"))
        if len(self._faults) > before:
            return None
        try:
            return kind(**values)
        except ValueError as error:
            self._faults.append(Fault(place, str(error)))
            return None

    def _value(self, value: object, annotation: Any, place: str) -> object:
        """Walks down to the Struct types, so that each of their fields is checked for itself."""
        inner: Callable[[object, str], object] | None = None
        bare, limits = _bare(annotation)
        arguments = get_args(bare)
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct) and value is not None:
            return self.struct(value, bare, place)
        if get_origin(bare) is Literal and value not in arguments:
            self._faults.append(Fault(place, f"expected one of {', '.join(map(str, arguments))}"))
            return None
        if get_origin(bare) is list and isinstance(value, list) and _holds_struct(arguments[0]):
            annotation = Annotated[(list[Any], *limits)] if limits else list[Any]

            def inner(items: Any, place: str) -> object:
                return [self._value(item, arguments[0], f"{place}[{index}]") for index, item in enumerate(items)]

        elif get_origin(bare) is dict and isinstance(value, dict):
            annotation = Annotated[(dict[str, Any], *limits)] if limits else dict[str, Any]

            def inner(items: Any, place: str) -> object:
                return {key: self._value(item, arguments[1], f"{place}.{key}") for key, item in items.items()}

        try:
            converted = msgspec.convert(value, annotation, strict=True, dec_hook=self._convert_path)
        except msgspec.ValidationError as error:
            self._faults.append(_fault(str(error), value, place))
            return None
        return inner(converted, place) if inner else converted

    def _convert_path(self, kind: type, value: object) -> object:
        if kind is not Path:
            raise NotImplementedError(f"a setting cannot be of type {kind.__name__}")
        if not isinstance(value, str):
            raise ValueError(f"expected a path, found {_found(value)}")
        return resolve(value, self._folder)


def _inside(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without `Annotated` and `| None`, and the limits that were annotated."""
    limits: tuple[Any, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            limits += tuple(more)
        elif get_origin(annotation) in (Union, types.UnionType):
            members = [member for member in get_args(annotation) if member is not types.NoneType]
            if len(members) != 1:
                return annotation, limits
            annotation = members[0]
        else:
            return annotation, limits


def _holds_struct(annotation: Any) -> bool:
    bare, _ = _bare(annotation)
    return isinstance(bare, type) and issubclass(bare, msgspec.Struct)


def _found(value: object) -> str:
    """What a value is, for a person; numbers are shown, texts are not."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else "a number far too large"
    if isinstance(value, float):
        return f"{value:g}"
    for kind, word in ((str, "text"), (Mapping, "a table"), (list, "a list"), (type(None), "null")):
        if isinstance(value, kind):
            return word
    return "a date or time"


def _fault(message: str, value: object, place: str) -> Fault:
    """msgspec's message in the words of a configuration file.

    It ends in ` - at `$[0].name`` for a fault inside `value`. https://jcristharif.com/msgspec/api.html#exceptions
    """
    text, _, inside = message.partition(" - at `$")
    problem = re.sub(r"`([a-z |]+)`", lambda match: " or ".join(_WORDS.get(name, name) for name in match[1].split(" | ")), text)
    for theirs, ours in _PHRASES:
        problem = problem.replace(theirs, ours)
    if not inside and "found" not in problem and isinstance(value, int | float):
        problem += f", found {_found(value)}"
    return Fault(place + inside.removesuffix("`").replace("[...]", ".*"), problem[:1].lower() + problem[1:])
