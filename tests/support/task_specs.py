"""Tasks as executors and agents get them, and keys of attempts in a form that can be compared.

tests/executors and tests/agent use it. It starts nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration

from daggyr.attempts.keys import Ident, ident_of
from daggyr.v1.task_pb2 import AttemptKey, TaskSpec


def ident(key: AttemptKey) -> Ident:
    """The numbers of a key, because messages cannot be in sets."""
    return ident_of(key)


def idents(keys: Iterable[AttemptKey]) -> set[Ident]:
    return {ident(key) for key in keys}


def duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))


def spec(
    *command: str,
    environment: Mapping[str, str] | None = None,
    working_directory: str | Path = "",
    stdin: str | None = None,
    timeout: float = 0,
    resources: Mapping[str, int] | None = None,
    whole_stdout_bytes: int = 0,
) -> TaskSpec:
    """What to execute. It needs one core if no resources are given, and has no timeout if that is 0."""
    return TaskSpec(
        command=command,
        environment=environment,
        working_directory=str(working_directory),
        stdin=stdin,
        timeout=duration(timeout) if timeout else None,
        resources={"cores": 1} if resources is None else resources,
        whole_stdout_bytes=whole_stdout_bytes,
    )


def shell(script: str, *arguments: str, **details: Any) -> TaskSpec:
    """A task of a few lines of POSIX shell; its arguments are $1, $2, ..."""
    return spec("/bin/sh", "-c", script, "sh", *arguments, **details)


def python(source: str, *arguments: str, **details: Any) -> TaskSpec:
    """A task of a few lines of Python, by the interpreter that runs the tests."""
    return spec(sys.executable, "-I", "-S", "-c", source, *arguments, **details)
