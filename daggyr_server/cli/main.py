"""The program `daggyr`: its commands by name, and how every command ends.

`main` is called by the entry point, `__main__`. It loads only the command that was asked for, because a command line is typed
often and must answer at once. All that can go wrong leaves a command as an exception and becomes one message on standard error
and an exit code here: 0 the command worked, 1 the run ended otherwise, 2 bad usage, specification, run, task or token, 3 no
server reached, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from daggyr.standard_streams import leave_quietly
from daggyr_server import __version__
from daggyr_server.cli.options import Settings, shared_options

# Command -> (module, line in `--help`), in the order of `--help`. The module has the command as an attribute of the command's
# name.
_COMMANDS = {
    "run": ("run", "Run SPEC here and now, and exit with 0 if it completed."),
    "submit": ("submit", "Submit SPEC to the server and print the run's id."),
    "runs": ("look", "List runs, the newest first."),
    "show": ("look", "Show RUN: its state, its tasks by state, what it waits for."),
    "tasks": ("look", "List the tasks of RUN."),
    "task": ("look", "Show a TASK of RUN: its command, its attempts, its output."),
    "why": ("look", "Say why a TASK of RUN is in the state it is in."),
    "watch": ("submit", "Follow RUN until it has ended."),
    "logs": ("logs", "Print what a TASK of RUN, or all of them, wrote."),
    "kill": ("steer", "Kill RUN, or only a TASK of it."),
    "retry": ("steer", "Run again what did not complete in RUN."),
    "edit": ("edit", "Give RUN, running or ended, another specification."),
    "mark": ("steer", "Say that a TASK is COMPLETED, or QUEUED again."),
    "delete": ("remove", "Take RUN away, with its history and output."),
    "prune": ("remove", "Take all runs away that ended long enough ago."),
    "validate": ("check", "Check SPEC, without running anything."),
    "expand": ("check", "Show the tasks that SPEC becomes."),
    "schema": ("schema", "Print the JSON Schema of specifications, for editors."),
    "pools": ("hosts", "List the pools: what they offer, and what is in use."),
    "agents": ("hosts", "List the agents that are connected, or were just now."),
    "agent": ("hosts", "Steer an agent."),
    "help": ("help", "Explain the run format (`daggyr help spec`), or a command."),
    "completion": ("completion", "Print the completion script of a shell."),
}


class _Program(click.Group):
    """The group of commands. A command's module is imported when the command is called.

    To list the commands or to complete a name, no module is imported, because they load gRPC, which takes five times as long.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        found: click.Command = getattr(import_module(f"daggyr_server.cli.commands.{module}"), cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(name, help=line) for name, (_, line) in _COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.command(
    "daggyr",
    cls=_Program,
    params=shared_options(hidden=False),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="RUN is a run's id, or `last`. Exit codes: 0 it worked (the run completed), 1 the run ended otherwise, 2 bad usage, "
    "specification, run, task or token, 3 no server reached, 130 interrupted.",
)
@click.version_option(__version__, message="daggyr %(version)s")
@click.pass_context
def program(context: click.Context) -> None:
    """Run graphs of commands.

    `daggyr run SPEC` needs nothing else. The other commands talk to a server, which `daggyr-server` starts.
    """
    context.ensure_object(Settings)


def main() -> NoReturn:
    """Run the command that the arguments name, and exit."""
    code = _exit_code()
    leave_quietly()
    sys.exit(code)


def _exit_code() -> int:
    # gRPC's core writes log lines of its own, which mean nothing to people. Errors come from the calls.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from daggyr_server.cli.errors import BAD_USAGE, INTERRUPTED, CommandError
    from daggyr_server.cli.stdout import Closed, notice

    try:
        code = program.main(prog_name="daggyr", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except CommandError as fault:
        notice(f"daggyr: {fault}")
        return fault.exit_code
    except Closed:
        return 0
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except SystemExit:  # click raises it if the reader of --help has gone away; commands never do
        return 0
    except OSError as error:  # click cannot write --help, or the process lacks something as a whole
        lacking = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
        what = "this host or its limits (ulimit -a) leave too little" if lacking else "cannot write to standard output"
        notice(f"daggyr: {what}: {error.strerror}")
        return BAD_USAGE
