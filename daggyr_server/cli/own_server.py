"""Waits until the server of `daggyr run` is ready, watches it while the command needs it, and ends it.

`own_run` makes an `OwnServer` of the process that `server_process` has started. Nothing here knows of runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from daggyr.client import Unreachable
from daggyr_server.cli.errors import BAD_USAGE, NO_SERVER, CommandError
from daggyr_server.cli.server_process import ServerProcess
from daggyr_server.cli.stdout import notice

Result = TypeVar("Result")

_START_TIMEOUT = 60.0  # seconds until the server is ready, which has to read what a durable tracker has
_END_TIMEOUT = 20.0  # seconds; processes that the server ends have 10 s between SIGTERM and SIGKILL
_END_AT_ONCE_TIMEOUT = 2.0
_ENDING_TIMEOUT = 10.0  # seconds; if the server's process ends so soon after its connection broke, that was the reason
_SAID_BYTES = 64 * 1024


class OwnServer:
    """A server that is ready inside its `async with` block. After the block, its process has ended."""

    def __init__(self, process: ServerProcess) -> None:
        self._process = process
        self._ended: asyncio.Task[int]
        self._listening: asyncio.Task[None]
        self._said = ""
        self._ready = False

    @property
    def address(self) -> str:
        return self._process.address

    async def __aenter__(self) -> Self:
        """Wait until the server is ready. Raises CommandError with the server's own words if it does not start."""
        self._ended = asyncio.create_task(asyncio.to_thread(self._process.popen.wait))
        self._listening = asyncio.create_task(self._listen())
        try:
            await self._until_ready()
        except BaseException:
            await self._end(_END_AT_ONCE_TIMEOUT)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        await self._end(_END_AT_ONCE_TIMEOUT if cancelled else _END_TIMEOUT)

    async def attend(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`. If the server ends before `work` does, `work` is cancelled, and this raises CommandError."""
        job = asyncio.ensure_future(work)
        try:
            await asyncio.wait({job, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            # A call may fail because the server has just died. Then the user is told of the server.
            if job.done() and not (isinstance(job.exception(), Unreachable) and await self._is_ending()):
                return job.result()
            code = self._ended.result()
        finally:
            if not job.done():
                job.cancel()
            await asyncio.gather(job, return_exceptions=True)
        raise CommandError(_with_words(f"the server ended unexpectedly ({_ending(code)})", self._said), NO_SERVER)

    async def _is_ending(self) -> bool:
        await asyncio.wait({self._ended}, timeout=_ENDING_TIMEOUT)
        return self._ended.done()

    async def _until_ready(self) -> None:
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT
        while not self._process.is_ready():
            if self._ended.done():
                await asyncio.wait({self._listening}, timeout=1)
                ending = _ending(self._ended.result())
                raise CommandError(_with_words(f"the server did not start ({ending})", self._said), BAD_USAGE)
            if asyncio.get_running_loop().time() > deadline:
                raise CommandError(_with_words(f"the server was not ready after {_START_TIMEOUT:.0f} s", self._said), NO_SERVER)
            await asyncio.wait({self._ended}, timeout=0.01)
        self._ready = True
        if self._said:  # These are warnings of its first moments, such as of a host that cannot be reached.
            notice(self._said.rstrip("\n"))

    async def _listen(self) -> None:
        """Pass on what the server writes. What it writes before it is ready waits until then, or is kept for the error."""
        pipe = self._process.popen.stderr
        assert pipe is not None
        stream = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(stream)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        try:
            await self._pass_on(stream)
        finally:
            transport.close()

    async def _pass_on(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(_SAID_BYTES):
            text = data.decode("utf-8", "replace")
            self._said = (self._said + text)[-_SAID_BYTES:]
            if self._ready:
                notice(text.rstrip("\n"))

    async def _end(self, timeout: float) -> None:
        """End the server's process, wait for it, and remove its folder. After `timeout` seconds the process is killed."""
        self._process.cut_lifeline()
        try:
            await asyncio.wait({self._ended}, timeout=timeout)
        finally:
            if not self._ended.done():
                with suppress(ProcessLookupError):
                    self._process.popen.kill()
            self._listening.cancel()
            await asyncio.gather(self._ended, self._listening, return_exceptions=True)
            self._process.remove_folder()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _with_words(what: str, said: str) -> str:
    lines = said.strip().splitlines()
    return "\n  ".join([what + (":" if lines else ""), *lines])
