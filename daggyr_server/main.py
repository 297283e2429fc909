"""`daggyr-server`: the coordinator as a program, and the commands for its tracker (copies.py).

Reads the options and the configuration, and has the coordinator work (serving.py, which brings all that a server has, and is
loaded last). A fault that a person can mend is one message on stderr and exit code 2. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import click
from msgspec.structs import replace

from daggyr.checked import ConfigurationError, Fault
from daggyr.daemon import lifeline_of, log_to_stderr
from daggyr.environment import pattern_fault
from daggyr.private_folder import is_abandoned
from daggyr.standard_streams import say
from daggyr_server import __version__
from daggyr_server.chosen_path import ChosenPath
from daggyr_server.config import Configuration, load
from daggyr_server.descriptors import take_all

LEVELS = ("debug", "info", "warning", "error")


class _Commands(click.Group):
    """The commands beside the server itself. What they need is loaded when one of them is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["backup", "restore"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from daggyr_server import copies

        return {"backup": copies.backup, "restore": copies.restore}.get(cmd_name)


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=ChosenPath(), envvar="DAGGYR_CONFIG", help="TOML or JSON file.")
@click.option(
    "--listen", metavar="HOST:PORT", help="Where to listen. Port 0 takes a free one; unix:PATH is a socket.  [127.0.0.1:2503]"
)
@click.option(
    "--tracker",
    metavar="TRACKER",
    envvar="DAGGYR_TRACKER",
    help="Where to keep state: memory, sqlite:PATH or postgresql://...  [memory]",
)
@click.option("--workers", type=click.IntRange(1, 65_536), help="Cores of the local pool.")
@click.option("--ready-file", type=ChosenPath(), help="Write the address here once connections are accepted.")
@click.option("--no-metrics", is_flag=True, help="Serve no metrics, whatever the configuration says.")
@click.option(
    "--pass-environment",
    metavar="NAME",
    multiple=True,
    help="A variable of this program that tasks of local and Slurm pools get, PREFIX_* or * for several; again for each.",
)
@click.option("--lifeline", metavar="FD", help="An inherited pipe: end when its other end closes.")
@click.option("--private-folder", type=click.Path(path_type=Path), hidden=True, help="Remove it in the end if its owner is gone.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@click.version_option(__version__, message="daggyr-server %(version)s")
@click.pass_context
def main(
    context: click.Context,
    config: Path | None,
    listen: str | None,
    tracker: str | None,
    workers: int | None,
    ready_file: Path | None,
    no_metrics: bool,
    pass_environment: tuple[str, ...],
    lifeline: str | None,
    private_folder: Path | None,
    log_level: str,
) -> None:
    """Run a coordinator. It needs nothing but this:

    \b
        daggyr-server
        daggyr-server --config server.toml --listen 0.0.0.0:2503
    """
    log_to_stderr("daggyr-server", log_level)
    if context.invoked_subcommand is not None:
        return
    try:
        Path.cwd()
    except FileNotFoundError:
        say("daggyr-server: the folder where this was started is gone, and tasks would start in it: start it elsewhere")
        sys.exit(2)
    if faults := [fault for fault in map(pattern_fault, pass_environment) if fault is not None]:
        say(f"daggyr-server: --pass-environment: {'; '.join(faults)}")
        sys.exit(2)
    try:
        descriptor = None if lifeline is None else _inherited(lifeline)
        configuration = load(config, listen=listen, tracker=tracker, workers=workers)
        take_all()
        if no_metrics:
            configuration = replace(configuration, server=replace(configuration.server, metrics=None))
        _serve(configuration, ready_file, descriptor, log_level, pass_environment, private=private_folder is not None)
    except ConfigurationError as error:
        say(f"daggyr-server: {error}")
        sys.exit(2)
    finally:
        if private_folder is not None and is_abandoned(private_folder):
            shutil.rmtree(private_folder, ignore_errors=True)


def _serve(
    configuration: Configuration,
    ready_file: Path | None,
    lifeline: int | None,
    log_level: str,
    pass_environment: tuple[str, ...],
    *,
    private: bool,
) -> None:
    from daggyr_server.serving import FAULTS, serve

    try:
        asyncio.run(serve(configuration, ready_file, lifeline, log_level, pass_environment, private=private))
    except FAULTS as error:
        say(f"daggyr-server: {error}")
        sys.exit(2)


def _inherited(lifeline: str) -> int:
    try:
        return lifeline_of(lifeline)
    except ValueError as error:
        raise ConfigurationError([Fault("--lifeline", str(error))], "the command line") from None


if __name__ == "__main__":
    main()
