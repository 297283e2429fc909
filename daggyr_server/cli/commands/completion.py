"""The command `completion`, which prints a script for a shell.

It never writes a file, because each system has its own folders.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from daggyr_server.cli import stdout
from daggyr_server.cli.errors import CommandError
from daggyr_server.cli.options import command


@command("completion", example="source <(daggyr completion bash)")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the completion script of a shell.

    For good: `daggyr completion bash > ~/.local/share/bash-completion/completions/daggyr`; for zsh, a file `_daggyr` in a folder
    of $fpath; for fish, ~/.config/fish/completions/daggyr.fish.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise CommandError(f"this version of click knows no completion for {shell}")
    stdout.write(kind(context.find_root().command, {}, "daggyr", "_DAGGYR_COMPLETE").source().encode())
    return 0
