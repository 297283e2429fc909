"""One /bin/sh on a target: it is started on a connection, given attempt.sh and remote.sh, then spoken to line by line.

`session.py` opens three of them on each connection. What the account's start-up files print comes before READY and is passed
over. A Shell sends script, and gives lines and base64 blocks; it knows nothing of attempts. Its memory is bounded, because what
is not read is left with the target.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncssh

from daggyr_server.executors.ssh.connection import TargetFault
from daggyr_server.executors.ssh.script import call, program

READY_SECONDS = 60.0  # for start-up files that are slow
MAX_LINE_BYTES = 1024 * 1024
_MAX_BUFFER = 4 * 1024 * 1024
_MAX_CHATTER = 4 * 1024 * 1024  # bytes that start-up files may print
_MAX_SHOWN = 300  # characters of what a target says in a message


class Shell(asyncssh.SSHClientSession[bytes]):
    """Life: `opened`, then `send` and reading, by one task at a time, until TargetFault."""

    def __init__(self) -> None:
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._buffer = bytearray()
        self._searched = 0
        self._came = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._paused = False
        self._said = b""
        self._end: str | None = None

    # -- what asyncssh calls

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: Any) -> None:
        if datatype is not None:
            self._said = (self._said + data)[-_MAX_SHOWN:]
            return
        self._buffer += data
        self._came.set()
        if len(self._buffer) > _MAX_BUFFER and not self._paused and self._channel is not None:
            self._paused = True
            self._channel.pause_reading()

    def eof_received(self) -> bool:
        self._ended("its shell ended")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(f"the connection broke: {exc}" if exc else "its shell ended")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _ended(self, reason: str) -> None:
        if self._end is None:
            self._end = reason
        self._came.set()
        self._writable.set()

    # -- what a target calls

    @classmethod
    async def opened(cls, connection: asyncssh.SSHClientConnection, *, hello: list[str]) -> tuple[Shell, list[str]]:
        """A shell that has read the program, and the words after its READY. `hello` has dg_hello's words after the token.

        Raises TargetFault.
        """
        try:
            async with asyncio.timeout(READY_SECONDS):
                # A path alone: whatever the account's login shell is, it can run that.
                shell = cls()
                await connection.create_session(lambda: shell, "/bin/sh", encoding=None, request_pty=False)
                return shell, await shell.called("dg_hello", *hello, answer="READY", before=program())
        except TimeoutError:
            raise _silent() from None
        except asyncssh.ChannelOpenError as error:
            raise TargetFault(
                f"it refused a session: {error.reason}; three a connection are needed (MaxSessions in sshd_config)"
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise TargetFault(str(error) or type(error).__name__) from error

    async def called(self, function: str, *words: str, answer: str, before: bytes = b"") -> list[str]:
        """Call a function that answers with one line, which begins with this word or FAULT, and return the words after the token.

        Raises TargetFault.
        """
        token = secrets.token_hex(8)
        chatter = 0
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self.send(before + call(function, token, *words).encode())
                while chatter < _MAX_CHATTER:
                    line = await self.line()
                    chatter += len(line) + 1
                    kind, found, rest = line.partition(f" {token}")
                    # What was printed last may lack a line break.
                    if found and kind.endswith(answer):
                        return rest.split()
                    if found and kind.endswith("FAULT"):
                        raise TargetFault(rest.strip())
        except TimeoutError:
            raise _silent() from None
        raise TargetFault("the account's start-up files print without end")

    async def send(self, script: bytes) -> None:
        """Hand a script over; waits while the target is behind. Raises TargetFault."""
        await self._writable.wait()
        if self._end is not None or self._channel is None:
            raise TargetFault(self._why())
        try:
            self._channel.write(script)
        except (asyncssh.Error, OSError) as error:
            raise TargetFault(str(error)) from error

    async def line(self) -> str:
        """The next line, without its end. Raises TargetFault when there are no more."""
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched > MAX_LINE_BYTES:
                raise TargetFault("it sent a line without end")
            await self._more()
        line = self._take(end + 1)
        return line[:-1].decode(errors="replace")

    async def block(self) -> AsyncIterator[bytes]:
        """The bytes of a base64 block, in pieces as they come, to the line `.` that ends it. Raises TargetFault."""
        while True:
            if self._buffer.startswith(b".\n"):
                self._take(2)
                return
            end = self._buffer.find(b"\n.\n")
            if end < 0:
                end = self._buffer.rfind(b"\n")
            # Only whole lines: all but the last of a block are multiples of four characters long.
            if end >= 0 and self._buffer[:1] != b".":
                yield base64.b64decode(self._take(end + 1))
            else:
                await self._more()

    async def _more(self) -> None:
        if self._end is not None:
            raise TargetFault(self._why())
        self._came.clear()
        await self._came.wait()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._searched = 0
        if self._paused and len(self._buffer) < _MAX_BUFFER // 4 and self._channel is not None:
            self._paused = False
            self._channel.resume_reading()
        return taken

    def _why(self) -> str:
        said = " ".join(self._said.decode(errors="replace").split())
        return f"{self._end}: {said}" if said else str(self._end)


def _silent() -> TargetFault:
    return TargetFault(
        f"its shell did not answer within {READY_SECONDS:g} s; do the account's start-up files wait for something?"
    )
