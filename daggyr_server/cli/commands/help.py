"""The command `help`: the run format in words, and what `--help` says of a command. It needs no server and reads no file."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

import click

from daggyr_server.cli import stdout
from daggyr_server.cli.options import command

if TYPE_CHECKING:
    from daggyr_server.spec.keys import Key

ABOUT_KEYS = "A specification is a YAML or JSON object. `daggyr validate SPEC` checks it, `daggyr expand SPEC` shows its tasks."
ABOUT_TASKS = "Keys of a task:"
ABOUT_THE_REST = """\
What a task is called, and which is the same
  Where a parameter's name occurs in a task's details, there is a task for each combination of values. One combination
  keeps the task's name; more are called task.NAME:value. After an edit, a task is the same if its name is, or, if it has
  such values, those are; so a task keeps its state when its parameter gets a second value. It is changed if its command,
  environment, working directory or standard input is, and then it is QUEUED. Attempts of a name are numbered on: an edit
  that takes a task away and one that brings it again do not begin anew, and `daggyr task` shows all attempts.

Generators
  A generator prints a JSON object as it stands under `tasks`. New tasks without parents wait for the generator, and what
  waits for the generator also waits for new tasks without children. If what it prints is no such object, has a name that
  the run has already, or cannot be run, the attempt counts as failed: it is tried again while retries last, then the
  generator is ERRORED. Retries begin anew when a person asks for the generator.
  An edit keeps what an unchanged generator made, and expands it again with the new parameters. It takes away what a
  changed generator made, and so does `daggyr retry RUN --task T --downstream` for T and the generators behind it.

What people ask
  kill RUN      ends what runs, which is KILLED; the rest stays QUEUED, and the run is KILLED.
  kill RUN T    makes T KILLED, whether it runs or is QUEUED. The rest goes on, and the run is KILLED in the end.
  retry RUN     queues again what did not complete, with all its retries. Attempts are numbered on.
  retry RUN --task T   runs T and what that lets go on, nothing else. What a kill of the run left QUEUED is told and stays
                so, unless --all asks for it. T may have ended, or wait for the delay of a retry, which then ends.
  edit RUN SPEC        gives it another specification. --downstream also queues what depends on completed tasks that are
                changed, and ends what of it runs.
  mark RUN T STATE     says that T is completed or queued, where you know better.
  The history of a run (`daggyr show RUN`) tells all of these, and which tasks were meant.
"""


@command("help", example="daggyr help spec")
@click.argument("topic", metavar="spec|COMMAND", required=False)
@click.pass_context
def help(context: click.Context, topic: str | None) -> int:
    """Explain the run format (`daggyr help spec`), or a COMMAND as its --help does."""
    if topic == "spec":
        stdout.line(run_format())
        return 0
    program = context.find_root()
    if topic is None:
        stdout.line(program.get_help())
        return 0
    assert isinstance(program.command, click.Group)
    found = program.command.get_command(program, topic)
    if found is None:
        raise click.UsageError(
            f"there is no command {topic!r}; `daggyr help` lists them, and `daggyr help spec` has the run format"
        )
    stdout.line(found.get_help(click.Context(found, info_name=topic, parent=program)))
    return 0


def run_format() -> str:
    """The run format in words. The keys come from where README.md has them from."""
    from daggyr_server.spec.keys import RUN, TASK  # `daggyr --help` does without what this loads

    parts = [ABOUT_KEYS, *map(_key, RUN), ABOUT_TASKS, *map(_key, TASK), ABOUT_THE_REST.rstrip("\n")]
    return "\n\n".join(parts)


def _key(key: Key) -> str:
    words = textwrap.wrap(re.sub(r"[`*]", "", key.words), 100, break_long_words=False, break_on_hyphens=False)
    lines = [*words, f"Example: {key.example}"]
    return "\n".join([f"  {', '.join(key.names)}", *(f"      {line}" for line in lines)])
