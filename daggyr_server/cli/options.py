"""What commands take: the options that all of them share, the kinds of arguments, and a command with its example.

`Settings` is what the shared options came to; it is made once a process and handed to commands as click's object. The
shared options may stand before the command's name or behind it; behind wins. Nothing here opens files or connections.
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
from daggyr_server.cli.faults import Fault
from daggyr_server.cli.words import STATES, printable

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp


@dataclass(slots=True)
class Settings:
    """The shared options; None where the user said nothing."""

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
    if value == "":  # of --server; in the environment, empty is unset
        raise click.BadParameter("the address is empty: write HOST:PORT, or leave the option out", context, parameter)
    settings = context.ensure_object(Settings)
    # A copy behind the command's name reads no environment, so whatever it stores was typed there.
    setattr(settings, parameter.name, value)
    if parameter.name == "server":
        settings.server_on_command_line |= source is click.core.ParameterSource.COMMANDLINE


def _check_text(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Names travel as UTF-8, arguments may be any bytes (PEP 383). Raises BadParameter for what cannot be a name."""
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
    """Fresh copies of the options that every command takes; the hidden ones read no environment variable."""

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
    """A command with an example under its help, which takes the shared options too."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        """`example` is a whole command line that a person could type."""
        super().__init__(*args, **kwargs)
        self.example = example
        self.params += shared_options(hidden=True)

    def invoke(self, context: click.Context) -> Any:
        for parameter in self.get_params(context):
            if parameter.name != "spec":  # a path, of any bytes, and so is what comes as a Path
                _check_text(context, parameter, context.params.get(parameter.name or ""))
        return super().invoke(context)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            formatter.write_text(self.example)
        formatter.write_paragraph()
        formatter.write_text("The options of `daggyr --help` may stand here too.")


def command(name: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    """`click.command` with an example under its help. The command's line in `daggyr --help` stands in `main`."""
    return click.command(name, cls=Command, example=example)


class RunId(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A number from 1, or `last`, which is 0 on the wire; with `explicit`, a number only."""

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
    """`K=V`; the value may be empty and may hold more equals signs."""

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
    """A moment: RFC 3339, `YYYY-MM-DD` (midnight, local time), or so long ago: `90s`, `30m`, `2h`, `3d`, `1w`."""

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
    """Raises Fault if a tag was given twice with different values."""
    chosen: dict[str, str] = {}
    for name, value in tags:
        if chosen.setdefault(name, value) != value:
            raise Fault(f"--tag {name} is given twice, with different values")
    return chosen
