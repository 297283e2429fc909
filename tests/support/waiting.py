"""Waiting for what real processes do, without sleeping for it: conditions that are polled, and gates that hold a task.

Everything has one generous deadline, after which the test fails with what never came.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

# Seconds for any one thing to happen, everywhere in the tests: a hundred times what anything takes on a machine at rest, because
# machines are slow at times. Only a test that fails waits this long.
DEADLINE = 300.0

Value = TypeVar("Value")


def until(value: Callable[[], Value | None], what: str) -> Value:
    """The first value of `value` that is true. Fails with `what` if none comes."""
    deadline = time.monotonic() + DEADLINE
    while True:
        if found := value():
            return found
        assert time.monotonic() < deadline, f"this never came: {what}"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class Gate:
    """Holds a task: its script contains `hold`, and goes on once the test calls `open`."""

    folder: Path
    name: str

    @property
    def hold(self) -> str:
        """A piece of shell script: says that it is there, then reads a line from a fifo."""
        return f"echo $$ > {self.name}.pid; read line < {self.name}.gate"

    def reached(self) -> int:
        """The pid of a task that is there, once it is."""
        path = self.folder / f"{self.name}.pid"
        until(lambda: path.exists() and path.read_text().endswith("\n"), f"a task at the gate {self.name}")
        return int(path.read_text())

    def open(self) -> None:
        """Let one task go on; waits for it to be there."""

        def opened() -> int | None:
            try:
                return os.open(self.folder / f"{self.name}.gate", os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody reads yet (fifo(7))
                    raise
                return None

        descriptor = until(opened, f"a reader at the gate {self.name}")
        os.write(descriptor, b"\n")
        os.close(descriptor)
