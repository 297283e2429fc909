"""One attempt as its folder has it: the order that the runner is given, and what the runner has written about it.

The executor calls this in threads, because everything here waits for the disk. `runner.py` lists the files. Nothing here knows of
other attempts, or of the driver.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daggyr.attempts.kept import Extent, kept_of
from daggyr.attempts.outcome import Cause, Seen, result_of
from daggyr.attempts.startable import refusal
from daggyr.v1.task_pb2 import STDERR, STDOUT, AttemptResult, OutputStream

from .runner import write

_NAMES: Mapping[OutputStream, str] = {STDOUT: "stdout", STDERR: "stderr"}
_CAUSES = {"stop": Cause.KILL, "timeout": Cause.TIMEOUT}


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """The folder of one attempt. Calls raise OSError."""

    path: Path

    def write(self, order: Mapping[str, Any], stdin: str | None) -> None:
        """Make the folder, with all that a runner needs."""
        self.path.mkdir(mode=0o700, parents=True)
        for name in ("control", "life"):
            os.mkfifo(self.path / name, 0o600)
        if stdin is not None:
            (self.path / "stdin").write_bytes(stdin.encode())
        write(self.path / "order", json.dumps({**order, "has_stdin": stdin is not None}))

    def order(self) -> dict[str, Any]:
        """Return what `write` was given; empty if the folder was never whole."""
        try:
            found = json.loads((self.path / "order").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def claim(self) -> bool:
        """Make sure that no runner starts the task any more. Return False if one has begun, or if that cannot be known."""
        try:
            (self.path / "begun").mkdir()
        except FileExistsError:
            return False
        except FileNotFoundError:
            return True  # without the folder, no runner can begin
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def life(self) -> Iterator[int]:
        """Open the fifo that ends when the attempt's runner does, for reading. Raises OSError."""
        descriptor = os.open(self.path / "life", os.O_RDONLY | os.O_NONBLOCK)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def log(self) -> str:
        """Return what the runner itself printed, in one line: nothing, unless it could not do its work."""
        return " ".join((self.path / "log").read_text(encoding="utf-8", errors="replace").split())[-500:]

    def ask_to_stop(self) -> None:
        """Ask the runner to end the task. Without a runner, nothing happens."""
        try:
            control = os.open(self.path / "control", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: nobody has it open for reading (fifo(7))
            return
        try:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it was asked thousands of times, or just ends
                os.write(control, b"s")
        finally:
            os.close(control)

    def start_ns(self) -> int | None:
        """Return when the task was started, in nanoseconds since the epoch, or None if it was not."""
        try:
            return int((self.path / "started").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def result(self, whole_stdout_bytes: int) -> AttemptResult:
        """Return the result of an attempt that no runner has any more."""
        order = self.order()
        try:
            told = json.loads((self.path / "result").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return result_of(Seen(vanished="its runner was ended, and left no result"), start_ns=self.start_ns())
        seen = Seen(
            exit_code=told.get("exit_code"),
            signal=told.get("signal"),
            rejected=refusal("".join(f"{word}\0" for word in refused).encode()) if (refused := told.get("refused")) else None,
            cause=_CAUSES.get(told.get("cause")),
            timeout=order.get("timeout", 0.0),
        )
        result = result_of(seen, start_ns=told.get("start_ns"), stop_ns=told.get("stop_ns"), cpu_seconds=told.get("cpu_seconds"))
        if seen.rejected is None:
            result.max_rss_bytes = told["max_rss_bytes"]
        result.stdout.CopyFrom(self._extent(STDOUT, whole_stdout_bytes).summary())
        result.stderr.CopyFrom(self._extent(STDERR, 0).summary())
        return result

    def output(self, stream: OutputStream, whole_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Yield offset and data of all that is kept of a stream."""
        for offset, length in self._extent(stream, whole_bytes).pieces():
            yield offset, self._read(stream, offset, length)

    def next_output(self, stream: OutputStream, whole_bytes: int, offset: int) -> tuple[int, bytes]:
        """Return the next piece at or after `offset`, and where it begins; it is empty if there is none for now."""
        offset, length = self._extent(stream, whole_bytes).next_kept(offset)
        return offset, self._read(stream, offset, length) if length else b""

    def _extent(self, stream: OutputStream, whole_bytes: int) -> Extent:
        try:
            size = (self.path / _NAMES[stream]).stat().st_size
        except FileNotFoundError:
            size = 0
        return kept_of(size, whole_bytes)

    def _read(self, stream: OutputStream, offset: int, length: int) -> bytes:
        with open(self.path / _NAMES[stream], "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)
