"""The real program `daggyr` as a process that a test talks to. The fixtures that start it are in conftest.py."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from support.ended import PROGRESS, Ended
from support.waiting import DEADLINE

PROGRAM = Path(sys.executable).with_name("daggyr")


class Process:
    """A `daggyr` that was started."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ended(self, stdin: bytes | None = None) -> Ended:
        """Write `stdin` and wait for the end. A traceback fails the test."""
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
        """The next line of standard error that is not about progress."""
        assert self.process.stderr is not None
        while True:
            line = (await asyncio.wait_for(self.process.stderr.readline(), DEADLINE)).decode()
            if not PROGRESS.match(line):
                return line

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


Start = Callable[..., Awaitable[Process]]
Daggyr = Callable[..., Awaitable[Ended]]
