"""The words with which a program in POSIX shell is told to start a task, and the text that such programs share.

The ssh executor and Slurm's job mode put their programs together with `text`, and tell them with `launch` what to start.
Nothing here quotes: that is the caller's, with shlex.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

# Names that a shell can export without taking them for its own: not those that some shell sets or reads, and not attempt.sh's.
_EXPORTED = re.compile(
    r"(?!(?:_|BASH|COMP|EPOCH|FUNC|HIST|LC_|MAIL|OPT|PS\d|dg_))"
    r"(?!(?:DIRSTACK|ENV|EUID|FCEDIT|GROUPS|IFS|LANG|LANGUAGE|LINENO|OLDPWD|PIPESTATUS|POSIXLY_CORRECT|PPID|PWD|RANDOM|REPLY|SECONDS|"
    r"SHELLOPTS|SHLVL|SRANDOM|UID)\Z)[A-Za-z]\w*",
    re.ASCII,
)


@cache
def text() -> str:
    """The functions that both programs use: attempt.sh."""
    return files("daggyr.attempts").joinpath("attempt.sh").read_text(encoding="utf-8")


def launch(command: Sequence[str], environment: Mapping[str, str], working_directory: str) -> list[str]:
    """The words of dg_carry_out for a task that has passed `startable.check`. Whoever writes them into a script quotes them."""
    exported: list[str] = []
    others: list[str] = []
    for name, value in environment.items():
        (exported if _EXPORTED.fullmatch(name) else others).append(f"{name}={value}")
    return [working_directory, str(len(exported)), str(len(others)), *exported, *others, *command]
