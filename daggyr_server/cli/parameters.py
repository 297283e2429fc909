"""The option `--param`, which gives parameters of a specification other values.

`run`, `submit`, `edit`, `validate` and `expand` take it, and `document` puts what it says into the specification before anybody
else sees that. Nothing here knows which parameters a specification has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from daggyr_server.cli.errors import CommandError
from daggyr_server.cli.words import printable, size

MAX_FILE_BYTES = 64 * 1024**2

Given = Sequence[tuple[str, str]]


class Param(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A parameter's name and its value, or `@` and the name of a file with a value in each line."""

    name = "param"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, rest = value.partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is no parameter: write NAME=VALUE, or NAME=@FILE for a value in each line", param, ctx)
        if not rest:
            self.fail(f"{value!r} gives no value: write NAME=VALUE, or leave the option out", param, ctx)
        return name, rest


param_option = click.option(
    "--param",
    "params",
    metavar="NAME=V",
    type=Param(),
    multiple=True,
    help="Another value for a parameter of SPEC, or with NAME=@FILE one for each line of a file; NAME may leave its braces "
    "out. May be repeated for other parameters.",
)


def values_of(params: Given) -> dict[str, list[str]]:
    """The values of each parameter that was named.

    Raises CommandError for a parameter that is named twice, and for a file that cannot be read or has no value.
    """
    found: dict[str, list[str]] = {}
    for name, value in params:
        if name in found:
            raise CommandError(
                f"--param {printable(name)} is given twice: for several values, name a file with one a line, NAME=@FILE"
            )
        found[name] = _lines(name, value[1:]) if value.startswith("@") else [value]
    return found


def _lines(name: str, path: str) -> list[str]:
    what = f"--param {printable(name)}: the file {printable(path)}"
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise CommandError(f"{what} is larger than {size(MAX_FILE_BYTES)}")
        lines = data.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise CommandError(
            f"--param {printable(name)}: cannot read {printable(path) or 'a file without a name'}: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise CommandError(f"{what} is no UTF-8: save it so") from None
    values = [line.removesuffix("\r") for line in lines if line.strip()]
    if not values:
        raise CommandError(f"{what} has no value: write one a line")
    return values
