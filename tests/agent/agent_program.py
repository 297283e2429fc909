"""The real program `daggyr-agent` as a process; how patient it is, patient_agent.py says.

Every agent that a test starts is ended after it, and then no process that any of its tasks started may be left: each agent has
a mark of its own in its environment, which its tasks inherit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from support import preloaded
from support.waiting import DEADLINE

PROGRAM = Path(sys.executable).with_name("daggyr-agent")
PATIENT = (sys.executable, "-P", str(Path(__file__).with_name("patient_agent.py")))
MARK = "AGENT_TEST_MARK"


def marked(mark: str) -> list[int]:
    """The pids of all processes that carry this mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Poll until `condition` is true; the test fails if it stays false."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.01)


class Turnstile:
    """Lets tasks go on one by one: each reads a line of a fifo, which `let` writes."""

    def __init__(self, folder: Path, name: str = "turnstile") -> None:
        """A fifo in a folder where the tasks run, in which nothing of that name is yet."""
        os.mkfifo(folder / name)
        self.wait = f"read line < {name}"  # a piece of shell script
        # Both ends, so that neither side ever waits for the other to open it (fifo(7)).
        self._descriptor = os.open(folder / name, os.O_RDWR)

    def let(self, count: int = 1) -> None:
        """So many more go on, now or when they come."""
        os.write(self._descriptor, b"\n" * count)  # a reader takes a byte at a time, so that each gets a line of its own

    def close(self) -> None:
        os.close(self._descriptor)


class AgentProcess:
    """A started agent. `home` is the folder where it was started, `state` its state folder."""

    def __init__(
        self,
        home: Path,
        state: Path,
        command: tuple[str, ...],
        environment: dict[str, str],
        pass_fds: tuple[int, ...],
    ):
        self.home = home
        self.state = state
        self.mark = secrets.token_hex(8)
        self._log = home.parent / f"log-{self.mark}"
        with self._log.open("wb") as log:
            self.process = preloaded.Popen(
                command,
                cwd=home,
                env={**environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def command(self) -> list[str]:
        """Its command line as others on the host see it."""
        return Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")

    @property
    def log(self) -> str:
        """All that it wrote so far."""
        return self._log.read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone; what it ran is left."""
        self.process.kill()
        self.process.wait()

    async def exit_code(self) -> int:
        """Its exit code, once it has ended by itself."""
        await eventually(lambda: self.process.poll() is not None, "the agent ended")
        return self.process.returncode

    def status(self, name: str) -> str:
        """A field of the agent's /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.removeprefix(f"{name}:").strip() for line in lines if line.startswith(f"{name}:"))

    def tasks(self) -> list[int]:
        """The pids of the processes of its tasks."""
        return [pid for pid in marked(self.mark) if pid != self.pid]

    def end(self) -> None:
        """End it with all it runs, whatever state it is in, and check that nothing is left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGINT)  # the second signal, and not the same, which could be taken for one
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        left = marked(self.mark)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, "processes outlived their agent"


StartAgent = Callable[..., AgentProcess]
