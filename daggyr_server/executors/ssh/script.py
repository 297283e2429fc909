"""What is said to the shells on SSH targets, and what they answer: text both ways.

`start_script` turns one assignment into calls of remote.sh, with every word of the task quoted by shlex, for `starting.py` to
send. The other way, `parse_ended` makes an Ended of a line, for `session.py`. Nothing here knows of connections.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from urllib.parse import quote, unquote

from daggyr.attempts import shell, startable
from daggyr.attempts.kept import limit_of
from daggyr.attempts.keys import Ident
from daggyr.attempts.times import seconds_of
from daggyr.v1.task_pb2 import TaskSpec
from daggyr_server.executors.believable import MAX_EXIT_CODE

NAMES_A_CALL = 128  # of attempts or files, so that calls, and what they start, stay far below what execve(2) takes
_MAX_DIGITS = 10  # of seconds since a target's boot


@cache
def program() -> bytes:
    """What each shell on a target is sent first: attempt.sh and remote.sh."""
    own = files("daggyr_server.executors.ssh").joinpath("remote.sh").read_text(encoding="utf-8")
    return (shell.text() + own).encode()


def call(function: str, *words: str) -> str:
    """One line of script."""
    return f"{function} {shlex.join(words)}\n"


def batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """The names in as many parts as calls are needed."""
    for begin in range(0, len(names), NAMES_A_CALL):
        yield names[begin : begin + NAMES_A_CALL]


def start_script(name: str, ident: Ident, task_id: str, spec: TaskSpec, grace: float) -> str:
    """The calls that start an attempt whose folder `name` is there. Raises NotStartable."""
    environment = startable.task_environment(ident, task_id, spec.environment)
    startable.check(spec.command, environment, spec.working_directory)
    startable.check_sizes(startable.words_of(spec.command, environment))
    limit = seconds_of(spec.timeout)
    words = shell.launch(spec.command, environment, spec.working_directory)
    script, source = "", ""
    if spec.HasField("stdin"):
        script, source = _write(name, spec.stdin), "stdin"
    return script + call("dg_go", name, f"{limit:.9g}" if limit > 0 else "", f"{grace:g}", about(spec), source, *words)


def _write(name: str, text: str) -> str:
    """The line that writes an attempt's standard input; a shell has no word with a NUL in it, but printf(1) can make one."""
    if "\0" in text:
        return call("dg_in", name, "%b", text.replace("\\", "\\\\").replace("\0", "\\0000"))
    return call("dg_in", name, "%s", text)


def about(spec: TaskSpec) -> str:
    """What a later coordinator has to know of an attempt, in one line."""
    needs = [f"{quote(name, safe='')}={units}" for name, units in sorted(spec.resources.items())]
    return " ".join([str(limit_of(spec.whole_stdout_bytes)), *needs])


def needs_in(words: Iterable[str]) -> Mapping[str, int]:
    """The resources in the words of `about`, after the first."""
    needs = {}
    for word in words:
        name, _, units = word.partition("=")
        if units.isdecimal() and len(units) < 20:
            needs[unquote(name)] = int(units)
    return needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt's process ended, as its warden tells."""

    status: int  # as a shell has it: 128 and a signal's number if that has ended it
    by_signal: bool
    streams: tuple[str, ...]  # of stdout and stderr, what was written to
    refused: bool  # it was not started; its file `refused` says why
    gone: bool  # its folder was removed meanwhile
    cause: str  # kill, timeout or nothing: why it was ended
    limit: float  # the timeout, in seconds, if that is why
    began: int  # centiseconds since the target's boot
    ended: int
    cpu_seconds: float | None
    boot: str  # of another boot than the connection's, if it is not empty


def parse_ended(words: list[str]) -> Ended:
    """An Ended from the words of an E line, after the key. Raises ValueError if it is none."""
    status, flags, cause, _, began, ended, *cpu, boot, end = words
    if end != ".":
        raise ValueError("a line that was cut")
    if not 0 <= int(status) <= MAX_EXIT_CODE:
        raise ValueError(f"no exit code: {status}")
    cause, _, limit = cause.partition(":")
    return Ended(
        status=int(status),
        by_signal="s" in flags,
        streams=tuple(name for flag, name in (("o", "stdout"), ("e", "stderr")) if flag in flags),
        refused="r" in flags,
        gone="g" in flags,
        cause=cause.strip("-"),
        limit=float(limit or 0),
        began=centiseconds(began),
        ended=centiseconds(ended),
        cpu_seconds=_cpu(cpu),
        boot=boot.strip("-") and boot,
    )


def centiseconds(uptime: str) -> int:
    """From /proc/uptime's form, 12.34. Raises ValueError."""
    seconds, _, parts = uptime.partition(".")
    if len(seconds) > _MAX_DIGITS:
        raise ValueError(f"no host is up for that long: {seconds[:40]} s")
    return int(seconds) * 100 + int(f"{parts}00"[:2])


def _cpu(words: list[str]) -> float | None:
    """The sum of what times(1) of the shell prints: `0m0.20s 0m0.01s`. A decimal comma is a locale's."""
    seconds = 0.0
    for word in words:
        match = re.fullmatch(r"(\d{1,12})m(\d{1,12}(?:[.,]\d{1,12})?)s", word)
        if match is None:
            return None
        seconds += 60 * int(match[1]) + float(match[2].replace(",", "."))
    return seconds if words else None
