"""Reads from the server what attempts wrote, whole or its last lines. A mark stands where output was not kept.

`task`, `logs` and the report on failed tasks call this. Output stays bytes until it is shown, because tasks may write anything.
Nothing here waits for an attempt to begin.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from daggyr.client import Client
from daggyr.v1.run_pb2 import Attempt, TaskSummary
from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputStream
from daggyr_server.cli.stdout import write
from daggyr_server.cli.words import plural, printable

# Of a generator, 64 MiB of output are kept, and of any other task 1 MiB.
_MAX_BYTES = 80 * 1024**2
_TAIL_BYTES = 8192
_MAX_LINE_BYTES = 64 * 1024
_LOOKED_AT = 100


async def pieces(
    client: Client, run_id: int, task_id: str, attempt: int, stream: OutputStream, *, follow: bool = False
) -> AsyncGenerator[bytes, None]:
    """The output of an attempt (0 is the last one). A line stands for missing bytes and says how many, if that is known.

    Raises ServerError.
    """
    at_line_start = True
    output = client.output(run_id, task_id, attempt=attempt, stream=stream, follow=follow)
    async with aclosing(output):
        async for piece in output:
            if piece.missing_bytes:
                yield (b"" if at_line_start else b"\n") + f"[... {piece.missing_bytes} bytes not kept ...]\n".encode()
                at_line_start = True
            if piece.data:
                yield piece.data
                at_line_start = piece.data.endswith(b"\n")
            if piece.incomplete:
                yield (b"" if at_line_start else b"\n") + b"[... some of it may not have been kept ...]\n"
                at_line_start = True


async def whole(client: Client, run_id: int, task_id: str, attempt: int, stream: OutputStream) -> bytes:
    """The same output in one piece, which has 80 MiB at most. Raises ServerError."""
    kept = bytearray()
    async for data in pieces(client, run_id, task_id, attempt, stream):
        kept += data[: _MAX_BYTES - len(kept)]
    return bytes(kept)


async def show(
    client: Client,
    run_id: int,
    task_id: str,
    attempt: int,
    stream: OutputStream,
    *,
    prefixed: bool,
    follow: bool = False,
    to: int = 1,
) -> bool:
    """Print the output of an attempt (0 is the last one) to the descriptor `to`, as it comes.

    With `prefixed`, each line begins with `task_id | `. Returns whether there was any output. Raises ServerError, or
    stdout.Closed.
    """
    output = pieces(client, run_id, task_id, attempt, stream, follow=follow)
    async with aclosing(output):
        found = False
        lines = _PrefixedLines(task_id, to) if prefixed else None
        async for data in output:
            found = True
            if lines is None:
                write(data, to)
            else:
                lines.write(data)
        if lines is not None:
            lines.end()
        return found


class _PrefixedLines:
    """Writes whole lines only, so that lines of several tasks are not mixed. Very long lines are broken."""

    def __init__(self, task_id: str, to: int) -> None:
        self._to = to
        self._prefix = f"{printable(task_id)} | ".encode()
        self._begun = bytearray()

    def write(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(self._begun) + lines[0]
            self._begun.clear()
            write(b"".join(self._prefix + line + b"\n" for line in lines), self._to)
        self._begun += rest
        if len(self._begun) > _MAX_LINE_BYTES:
            self.end()

    def end(self) -> None:
        if self._begun:
            write(self._prefix + bytes(self._begun) + b"\n", self._to)
            self._begun.clear()


def size_of(task: TaskSummary, stream: OutputStream) -> int | None:
    """How many bytes a task's last attempt wrote to a stream, where a list tells it; None where nobody knows."""
    if stream == STDERR:
        return task.stderr_bytes if task.HasField("stderr_bytes") else None
    return task.stdout_bytes if task.HasField("stdout_bytes") else None


class Unshown:
    """Counts what tasks wrote to the stream that is not shown.

    Where no list tells the sizes, it asks for a hundred tasks at most, because each is a call.
    """

    def __init__(self, client: Client, run_id: int, shown: OutputStream) -> None:
        self.stream = STDOUT if shown == STDERR else STDERR  # the one that is not shown
        self._client = client
        self._run_id = run_id
        self._seen = 0  # tasks
        self._asked = 0  # those of them that took a call
        self._tasks = 0  # those that wrote something
        self._bytes = 0
        self._is_silent = True

    async def look(self, task_id: str, attempt: int, *, found: bool, size: int | None = None) -> None:
        """Count what an attempt that has ended (0 is the last one) wrote to the stream that is not shown.

        `found` says that the stream that is shown was not empty, and `size` how much the other one has, if that is known. Raises
        ServerError.
        """
        self._is_silent &= not found
        if size is None:
            if self._asked >= _LOOKED_AT:
                return
            self._asked += 1
            size = await self._asked_for(task_id, attempt)
        self._seen += 1
        if size:
            self._tasks += 1
            self._bytes += size

    async def _asked_for(self, task_id: str, attempt: int) -> int:
        attempts = [each for each in (await self._client.task(self._run_id, task_id)).attempts if attempt in (0, each.attempt)]
        if not attempts:
            return 0
        result = attempts[-1].result
        return (result.stdout if self.stream == STDOUT else result.stderr).size_bytes

    def said(self) -> str | None:
        """A line that tells of what was counted, or None if that is nothing."""
        if not self._bytes:
            return None
        shown, other = ("error", "output") if self.stream == STDOUT else ("output", "error")
        of = plural(self._tasks, "task") + (" at least" if self._asked >= _LOOKED_AT else "")
        what = f"standard {other} is not shown, {plural(self._bytes, 'byte')}" + (f" of {of}" if self._seen > 1 else "")
        option = "leave out --stderr for it" if self.stream == STDOUT else "--stderr shows it"
        return (f"nothing on standard {shown}; " if self._is_silent else "") + f"{what}: {option}, --both shows both"


async def last_lines(client: Client, run_id: int, task_id: str, attempt: Attempt, stream: OutputStream, count: int) -> list[str]:
    """The last `count` lines of the last 8 KiB that `attempt` wrote. Raises ServerError."""
    summary = attempt.result.stderr if stream == STDERR else attempt.result.stdout
    offset = max(0, summary.size_bytes - _TAIL_BYTES)
    tail = bytearray()
    output = client.output(run_id, task_id, attempt=attempt.attempt, stream=stream, offset=offset)
    async with aclosing(output):
        async for piece in output:
            tail += piece.data
            del tail[:-_TAIL_BYTES]
    lines = tail.decode("utf-8", "replace").splitlines()
    return lines[-count:] if count else []
