"""The real program `daggyr` as a process that a test talks to; the fixtures that start it are in conftest.py."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.waiting import DEADLINE

PROGRAM = Path(sys.executable).with_name("daggyr")
# What a command that follows a run says every five seconds; tests/cli/test_words.py has a clock of its own for it.
_PROGRESS = re.compile(r"run \d+ [A-Z]+: [\d,]+ of [\d,]+ tasks? ended \(")


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def said(self) -> list[str]:
        """The lines of standard error but for those on progress, which stand there if this took some seconds."""
        return [line for line in self.err.splitlines() if not _PROGRESS.match(line)]


class Process:
    """`daggyr`, running."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ended(self, stdin: bytes | None = None) -> Ended:
        out, err = await asyncio.wait_for(self.process.communicate(stdin), DEADLINE)
        assert self.process.returncode is not None
        ended = Ended(self.process.returncode, out.decode("utf-8", "surrogateescape"), err.decode())
        assert "Traceback" not in ended.err
        return ended

    async def line(self) -> str:
        """The next line of standard output."""
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), DEADLINE)).decode()

    async def error_line(self) -> str:
        """The next line of standard error that is not on progress."""
        assert self.process.stderr is not None
        while True:
            line = (await asyncio.wait_for(self.process.stderr.readline(), DEADLINE)).decode()
            if not _PROGRESS.match(line):
                return line

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


Start = Callable[..., Awaitable[Process]]
Daggyr = Callable[..., Awaitable[Ended]]
