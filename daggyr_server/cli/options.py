"""What commands are made of: the options that all of them share, the types of arguments, and a command with its example.

Every file of `commands/` uses this. `Settings` has the values of the shared options. One is made in a process, and click hands it
to the command. The shared options may stand before the command's name or behind it, and those behind it win. Nothing here opens
files or connections.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daggyr_server.chosen_path import ChosenPath
from daggyr_server.cli.errors import CommandError
from daggyr_server.cli.words import STATES, printable

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp


@dataclass(slots=True)
class Settings:
    """The values of the shared options. None means that the user gave none."""

    server: str | None = None
    server_on_command_line: bool = False
    token_file: Path | None = None
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    output: str = "table"

    @property
    def json(self) -> bool:
        return self.output == "json"


settings_object = click.make_pass_decorator(Settings, ensure=True)


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    source = context.get_parameter_source(parameter.name or "")
    given = source in (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)
    if not given or parameter.name is None:
        return
    _check_text(context, parameter, value)
    if value == "":  # the option was --server; click takes an empty variable for none
        raise click.BadParameter("the address is empty: write HOST:PORT, or leave the option out", context, parameter)
    settings = context.ensure_object(Settings)
    # The copy of an option behind the command's name reads no environment, so it stores only what was typed there.
    setattr(settings, parameter.name, value)
    if parameter.name == "server":
        settings.server_on_command_line |= source is click.core.ParameterSource.COMMANDLINE


def _check_text(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Raise BadParameter for text that is not UTF-8. Names are sent as UTF-8, but arguments may be any bytes (PEP 383)."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, tuple):
            _check_text(context, parameter, text)
        elif isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError:
                message = f"'{printable(text)}' is no UTF-8, as names are"
                raise click.BadParameter(message, context, parameter) from None


def shared_options(*, hidden: bool) -> list[click.Option]:
    """New copies of the options that every command takes.

    `hidden` copies are not in `--help` and read no environment variable.
    """

    def option(flag: str, help: str, *, envvar: str | None = None, **kwargs: Any) -> click.Option:
        return click.Option(
            [flag],
            help=help,
            envvar=None if hidden else envvar,
            show_envvar=envvar is not None,
            hidden=hidden,
            expose_value=False,
            callback=_store,
            **kwargs,
        )

    file = ChosenPath()
    return [
        option("--server", "The server's address; by default 127.0.0.1:2503.", envvar="DAGGYR_SERVER", metavar="HOST:PORT"),
        option(
            "--token-file",
            "A client's token; by default the one that a server of yours on this host made.",
            envvar="DAGGYR_TOKEN_FILE",
            type=file,
        ),
        option("--tls", "Use TLS; the --tls options below imply it.", is_flag=True),
        option("--tls-ca", "The authority (PEM) that signed the server's certificate.", type=file),
        option("--tls-cert", "A client certificate (PEM), if the server wants one.", type=file),
        option("--tls-key", "The client certificate's key (PEM).", type=file),
        option("--insecure", "Send the token to another host without TLS too.", envvar="DAGGYR_INSECURE", is_flag=True),
        option(
            "--output",
            "How results look.",
            type=click.Choice(["table", "json"]),
            default="table",
            show_default=not hidden,
        ),
    ]


class Command(click.Command):
    """A command that takes the shared options as well, and has an example under its help."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        """`example` is a whole command line that a person could type."""
        super().__init__(*args, **kwargs)
        self.example = example
        self.params += shared_options(hidden=True)

    def invoke(self, context: click.Context) -> Any:
        for parameter in self.get_params(context):
            if parameter.name != "spec":  # a path may be any bytes; other paths come as Path and are not looked at
                _check_text(context, parameter, context.params.get(parameter.name or ""))
        return super().invoke(context)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            formatter.write_text(self.example)
        formatter.write_paragraph()
        formatter.write_text("The options of `daggyr --help` may stand here too.")


def command(name: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    """Like `click.command`, with an example under the help. The command's line in `daggyr --help` is in `main`."""
    return click.command(name, cls=Command, example=example)


class RunId(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A number from 1, or `last`, which is sent as 0. With `explicit`, it is a number only."""

    name = "run"

    def __init__(self, *, explicit: bool = False) -> None:
        self._explicit = explicit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value == "last" and not self._explicit:
            return 0
        if re.fullmatch(r"[1-9][0-9]{0,18}", value):
            return int(value)
        if self._explicit:
            return self.fail(f"{value!r} is not taken here: give the run's number, as `daggyr runs` shows it", param, ctx)
        return self.fail(f"{value!r} is no run: give its number, or `last` for the newest", param, ctx)


class Tag(click.ParamType):  # type: ignore[type-arg]
    """A tag, written K=V. The value may be empty, and it may hold equals signs."""

    name = "tag"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, rest = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is no tag: write KEY=VALUE", param, ctx)
        return key, rest


_DURATION = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class When(click.ParamType):  # type: ignore[type-arg]
    """A moment: RFC 3339, or `YYYY-MM-DD` (midnight, local time), or a time before now (`90s`, `30m`, `2h`, `3d`, `1w`)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Timestamp:
        from google.protobuf.timestamp_pb2 import Timestamp

        if isinstance(value, Timestamp):
            return value
        stamp = Timestamp()
        try:
            if ago := _DURATION.fullmatch(value):
                moment = datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
            else:
                moment = datetime.fromisoformat(value).astimezone(UTC)
            stamp.FromDatetime(moment)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time: write 2026-01-31T09:00:00Z, 2026-01-31 or so long ago as 90s, 30m, 2h, 3d",
                param,
                ctx,
            )
        return stamp


RUN = RunId()
EXPLICIT_RUN = RunId(explicit=True)
TAG = Tag()
WHEN = When()


def _state_numbers(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(STATES.index(name) + 1 for name in names)


run_argument = click.argument("run_id", metavar="RUN", type=RUN)
tag_option = click.option("--tag", "tags", metavar="K=V", type=TAG, multiple=True, help="A tag; may be repeated.")
state_option = click.option(
    "--state",
    "states",
    type=click.Choice(STATES, case_sensitive=False),
    callback=_state_numbers,
    multiple=True,
    help="Only those in this state; may be repeated.",
)
pool_option = click.option("--pool", metavar="NAME", default="", help="The run's pool, over the specification's.")


def one_value_a_tag(tags: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The tags by their names. Raises CommandError if a tag was given twice with different values."""
    chosen: dict[str, str] = {}
    for name, value in tags:
        if chosen.setdefault(name, value) != value:
            raise CommandError(f"--tag {name} is given twice, with different values")
    return chosen
