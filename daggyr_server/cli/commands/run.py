"""The command `run`, which runs a specification, or goes on with a run that a tracker kept, on a server of its own.

This file checks the arguments and starts the server's process; `own_run` does the rest. It loads neither gRPC nor asyncio before
the process has been started.
"""

from __future__ import annotations

from pathlib import Path

import click

from daggyr_server.chosen_path import ChosenPath
from daggyr_server.cli.document import json_document
from daggyr_server.cli.errors import CommandError
from daggyr_server.cli.options import RUN, Settings, command, one_value_a_tag, pool_option, settings_object, tag_option
from daggyr_server.cli.parameters import Given, param_option
from daggyr_server.cli.server_process import ServerProcess


@command("run", example="daggyr run --workers 4 --tag env=test flights.yaml")
@click.argument("spec", metavar="[SPEC]", required=False)
@click.option(
    "--config",
    envvar="DAGGYR_CONFIG",
    show_envvar=True,
    metavar="FILE",
    type=ChosenPath(exists=True),
    help="The server's configuration, for its pools.",
)
@click.option(
    "--tracker",
    envvar="DAGGYR_TRACKER",
    show_envvar=True,
    metavar="T",
    help="Where state is kept: memory (the default), sqlite:PATH or postgresql://... An address with a password belongs into "
    "the variable, because everybody sees arguments.",
)
@click.option("--workers", metavar="N", type=click.IntRange(1, 65_536), help="How many cores the local pool has.")
@click.option("--resume", metavar="RUN", type=RUN, help="Instead of SPEC: go on with a run that the tracker kept.")
@tag_option
@param_option
@pool_option
@settings_object
def run(
    settings: Settings,
    spec: str | None,
    config: Path | None,
    tracker: str | None,
    workers: int | None,
    resume: int | None,
    tags: tuple[tuple[str, str], ...],
    params: Given,
    pool: str,
) -> int:
    """Run SPEC here and now, and exit with 0 if it completed.

    No server is needed: one is started for the run, on a private socket, and ended with it. SPEC is a file of JSON or YAML,
    or `-` for standard input. Tasks start in the folder where this command was started. Ctrl-C kills the run and waits for
    its processes; a second Ctrl-C ends everything at once.

    With `--tracker sqlite:PATH`, runs outlive the command, and `--tracker sqlite:PATH --resume RUN` goes on with one:
    tasks that are COMPLETED stay so, and what had been running, had failed or was killed runs again. Other runs of the tracker
    that have not ended go on meanwhile.
    """
    if settings.server_on_command_line:
        raise CommandError("run starts a server of its own; for a run on the server at --server: daggyr submit --watch SPEC")
    try:
        Path.cwd()
    except FileNotFoundError:
        gone = "the folder where this was started is gone, and tasks would start in it: change to another one"
        raise CommandError(gone) from None
    options = [
        *(["--config", str(config)] if config is not None else []),
        *(["--workers", str(workers)] if workers is not None else []),
    ]
    header = one_value_a_tag(tags)
    if resume is not None:
        if spec is not None or header or params or pool:
            raise CommandError("--resume goes on with a run as it was submitted: leave out SPEC, --tag, --param and --pool")
        if (tracker is None and config is None) or (tracker or "").partition(":")[0] == "memory":
            raise CommandError(
                "--resume needs the tracker that kept the run, and `memory` keeps none: give --tracker sqlite:PATH"
            )
        kind, _, path = (tracker or "").partition(":")
        if kind == "sqlite" and not _expanded(path).exists():
            raise CommandError(f"there is no file {path}: --resume needs the tracker that kept the run")
        process = ServerProcess(options, tracker=tracker)
        from daggyr_server.cli.own_run import Resumed, to_its_end  # while the server starts

        return to_its_end(Resumed(settings, resume), process)
    if spec is None:
        raise CommandError("there is nothing to run: name a specification, or an earlier run with --resume")
    with json_document(spec, params) as document:
        process = ServerProcess(options, tracker=tracker)
        from daggyr_server.cli.own_run import Submitted, to_its_end  # while the server starts

        return to_its_end(Submitted(settings, spec, document, header, pool), process)


def _expanded(path: str) -> Path:
    """The path as the server reads it. The server expands `~`, because no shell does that behind `sqlite:`."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)  # the server tells that there is no such home
