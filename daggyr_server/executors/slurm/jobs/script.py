"""What a job of Slurm is given in files and in its script: text for a POSIX shell, quoted by shlex.

The script is the same for all tasks of an array: a few settings, then `job.sh`. What differs (command, environment,
folder) is in one file, `tasks`, that the script reads where it needs it, so that none of it shows in `scontrol show job`,
in arguments of processes, or in Slurm's own state. Nothing here touches a file but the script's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from shlex import quote

from daggyr.v1.task_pb2 import Assignment, TaskSpec

KEPT_BYTES = 1024 * 1024  # of a stream; of a longer one half of it at both ends
MAX_ARGUMENT_BYTES = 32 * 4096 - 1  # MAX_ARG_STRLEN of Linux, execve(2)
MAX_ARGUMENTS_BYTES = 2 * 1024 * 1024 - 128 * 1024  # a quarter of the usual stack limit, less what the node adds
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Names that some shell does not let be set like others: they are given to env(1) instead.
_SHELLS_OWN = re.compile(
    r"_.*|BASH.*|COMP_.*|DIRSTACK|E?UID|FUNC.*|GROUPS|HISTCMD|IFS|LINENO|MAIL.*|OLDPWD|OPT.*|PIPESTATUS|PPID|PS\d|PWD|RANDOM|"
    r"SECONDS|EPOCH.*|SHELLOPTS|SHLVL|SRANDOM|ENV|POSIXLY_CORRECT"
)


class UnfitTask(ValueError):
    """A task that can be started nowhere; the message is the note for its user."""


@cache
def _program() -> str:
    return Path(__file__).with_name("job.sh").read_text(encoding="utf-8")


def job_script(folder: Path, *, grace: float, timeout: float, whole_stdout_bytes: int) -> str:
    """The script of a job whose files are in `folder`; times in seconds, a timeout of 0 is none."""
    settings = {
        "folder": str(folder),
        "grace": f"{grace:.3f}",
        "timeout": f"{timeout:.9g}" if timeout else "0",
        "keep_out": str(max(KEPT_BYTES, whole_stdout_bytes)),
        "keep_err": str(KEPT_BYTES),
        "edge": str(KEPT_BYTES),
    }
    lines = "".join(f"_d_{name}={quote(value)}\n" for name, value in settings.items())
    return f"#!/bin/sh\n{lines}{_program()}"


def check_task(spec: TaskSpec) -> None:
    """Raises UnfitTask for a task that no node could start."""
    words = [*spec.command, spec.working_directory]
    pairs = [f"{name}={value}" for name, value in spec.environment.items()]
    if not spec.command or not spec.command[0]:
        raise UnfitTask("the command is empty")
    if any("\0" in word for word in (*words, *pairs)):
        raise UnfitTask("the command or its environment holds a NUL character, which cannot be passed on")
    for name in spec.environment:
        if not name or "=" in name:
            raise UnfitTask(f"no variable of the environment can be called {name!r}")
    sizes = [len(word.encode()) + 1 for word in (*spec.command, *pairs)]
    if max(sizes) > MAX_ARGUMENT_BYTES or sum(sizes) > MAX_ARGUMENTS_BYTES:
        raise UnfitTask(f"the command and its environment are too long: {sum(sizes)} bytes (execve(2))")


def tasks_file(home: Path, tasks: Iterable[tuple[int, Assignment, TaskSpec]]) -> str:
    """The file that sets up each task's environment, folder and arguments, by index, when a shell reads it.

    Folders count from `home`. The tasks have passed `check_task`.
    """
    cases = []
    for index, assignment, spec in tasks:
        key = assignment.key
        named = {
            "DAGGYR_RUN_ID": str(key.run_id),
            "DAGGYR_TASK_ID": assignment.task_id,
            "DAGGYR_ATTEMPT": str(key.attempt),
        }
        folder = str(home / spec.working_directory) if spec.working_directory else str(home)
        cases.append(f"{index})\n_d_enter {quote(folder)}\n{_environment({**named, **spec.environment}, spec.command)};;\n")
    return f"case $_d_index in\n{''.join(cases)}*) _d_reject 'the submission has no such task' ;;\nesac\n"


def _environment(environment: Mapping[str, str], command: Iterable[str]) -> str:
    lines, strange = [], []
    for name, value in environment.items():
        if _NAME.fullmatch(name) and not _SHELLS_OWN.fullmatch(name):
            lines.append(f"{name}={quote(value)}\nexport {name}\n")
        else:
            strange.append(quote(f"{name}={value}"))
    # Positional parameters are the only list of a POSIX shell; env(1)'s words go in front of the command's.
    lines.append(f"_d_variables={len(strange)}\nset -- {' '.join([*strange, *map(quote, command)])}\n")
    return "".join(lines)
