"""What a job of Slurm is given in files and in its script: text for a POSIX shell, quoted by shlex.

The script is the same for all tasks of an array: a few settings, then attempt.sh and job.sh. What differs (command, environment,
folder) is in one file, `tasks`, which the script reads, so that none of it shows in `scontrol show job`, in arguments of
processes, or in Slurm's own state. The executor of job mode, its submitter and `submission_folder.py` call this. It
writes no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from shlex import join, quote

from daggyr.attempts import shell, startable
from daggyr.attempts.kept import limit_of
from daggyr.attempts.keys import ident_of
from daggyr.v1.task_pb2 import Assignment, TaskSpec


@cache
def _program() -> str:
    return Path(__file__).with_name("job.sh").read_text(encoding="utf-8")


def job_script(folder: Path, home: Path, *, grace: float, timeout: float, whole_stdout_bytes: int) -> str:
    """The script of a job whose files are in `folder` and whose tasks start in `home`. Times are seconds; no timeout is 0."""
    settings = {
        "folder": str(folder),
        "home": str(home),
        "grace": f"{grace:.3f}",
        "timeout": f"{timeout:.9g}" if timeout else "",
        "whole": str(limit_of(whole_stdout_bytes)),
    }
    lines = "".join(f"dg_{name}={quote(value)}\n" for name, value in settings.items())
    return f"#!/bin/sh\n{lines}{shell.text()}{_program()}"


def check_task(assignment: Assignment, spec: TaskSpec) -> None:
    """Raises NotStartable for a task that no node could start."""
    environment = _environment(assignment, spec)
    startable.check(spec.command, environment, spec.working_directory)
    startable.check_sizes(startable.words_of(spec.command, environment))


def tasks_file(tasks: Iterable[tuple[int, Assignment, TaskSpec]]) -> str:
    """The file that gives a shell that reads it the words of its task, by index. The tasks have passed `check_task`."""
    cases = []
    for index, assignment, spec in tasks:
        words = shell.launch(spec.command, _environment(assignment, spec), spec.working_directory)
        # Positional parameters are the only list of a POSIX shell.
        cases.append(f"{index}) set -- {join(words)} ;;\n")
    return f"case $dg_index in\n{''.join(cases)}*) exit 1 ;;\nesac\n"


def _environment(assignment: Assignment, spec: TaskSpec) -> dict[str, str]:
    return startable.task_environment(ident_of(assignment.key), assignment.task_id, spec.environment)
