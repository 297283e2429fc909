"""The server that `daggyr run` brings along: a child on a private socket, which ends with the command, however that ends.

The child holds the read end of a pipe, its lifeline: when this process closes the other end, or dies in any way, the server
sees the end of file and ends everything that it started. It gets a session of its own, so that Ctrl-C reaches this process
only, which then decides. Nothing here knows of runs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from daggyr.client import Unreachable
from daggyr.private_folder import PrivateFolder, abandoned
from daggyr_server.cli.faults import BAD_USAGE, NO_SERVER, Fault
from daggyr_server.cli.stdout import notice

Result = TypeVar("Result")

_START_TIMEOUT = 60.0  # seconds until the server is ready; a durable tracker may have much to read
_END_TIMEOUT = 20.0  # seconds: a process has a grace period of 10 s
_END_AT_ONCE_TIMEOUT = 2.0
_ENDING_TIMEOUT = 10.0  # seconds from a connection that broke until the process behind it has ended
_SAID_BYTES = 64 * 1024
_PREFIX = "daggyr-run-"


class OwnServer:
    """`async with OwnServer(options) as server`: ready inside the block, gone behind it."""

    def __init__(self, options: Sequence[str], *, tracker: str | None = None) -> None:
        """`options` are passed on to the server's program, and so is the tracker's address, but where nobody else reads it."""
        self._options = options
        self._tracker = tracker
        self._private: PrivateFolder
        self._lifeline = -1
        self._process: asyncio.subprocess.Process
        self._ended: asyncio.Task[int]
        self._listening: asyncio.Task[None]
        self._said = ""
        self._ready = False

    @property
    def address(self) -> str:
        return f"unix:{self._folder}/server.sock"

    @property
    def _folder(self) -> Path:
        return self._private.path

    async def __aenter__(self) -> Self:
        """Raises Fault, with the server's own words, if it does not start."""
        for folder in abandoned(_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            self._private = PrivateFolder(_PREFIX)
        except OSError as error:
            raise Fault(f"the server cannot be started: {error.strerror}") from None
        try:
            await self._start()
        except BaseException:
            self._private.remove()
            raise
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
        """What `work` returns. Raises Fault if the server ends before it does; `work` is then cancelled."""
        job = asyncio.ensure_future(work)
        try:
            await asyncio.wait({job, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            # A call that does not get through because the server just died is told of as that.
            if job.done() and not (isinstance(job.exception(), Unreachable) and await self._is_ending()):
                return job.result()
            code = self._ended.result()
        finally:
            if not job.done():
                job.cancel()
            await asyncio.gather(job, return_exceptions=True)
        raise Fault(_with_words(f"the server ended unexpectedly ({_ending(code)})", self._said), NO_SERVER)

    async def _is_ending(self) -> bool:
        await asyncio.wait({self._ended}, timeout=_ENDING_TIMEOUT)
        return self._ended.done()

    async def _start(self) -> None:
        read_end, self._lifeline = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a file of the user's folder must not stand in for a module
                "-m",
                "daggyr_server.main",
                "--listen",
                self.address,
                "--ready-file",
                str(self._folder / "ready"),
                "--private-folder",
                str(self._folder),
                "--no-metrics",  # those of its configuration are for the server that runs for good
                "--pass-environment",  # tasks get all that the user's shell would give them
                "*",
                "--lifeline",
                str(read_end),
                "--log-level",
                "warning",
                *self._options,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(read_end,),
                start_new_session=True,
                env=_environment(self._tracker),
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(read_end)
        self._ended = asyncio.create_task(self._process.wait())
        self._listening = asyncio.create_task(self._listen())

    async def _until_ready(self) -> None:
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT
        while not (self._folder / "ready").exists():
            if self._ended.done():
                await asyncio.wait({self._listening}, timeout=1)
                raise Fault(_with_words(f"the server did not start ({_ending(self._ended.result())})", self._said), BAD_USAGE)
            if asyncio.get_running_loop().time() > deadline:
                raise Fault(_with_words(f"the server was not ready after {_START_TIMEOUT:.0f} s", self._said), NO_SERVER)
            await asyncio.wait({self._ended}, timeout=0.01)
        self._ready = True

    async def _listen(self) -> None:
        """Passes on what the server says once it is ready; what it says before belongs to the error, should there be one."""
        stream = self._process.stderr
        assert stream is not None
        while data := await stream.read(_SAID_BYTES):
            text = data.decode("utf-8", "replace")
            self._said = (self._said + text)[-_SAID_BYTES:]
            if self._ready:
                notice(text.rstrip("\n"))

    async def _end(self, timeout: float) -> None:
        """The server's process has ended when this returns, and the folder is gone."""
        os.close(self._lifeline)
        try:
            await asyncio.wait({self._ended}, timeout=timeout)
        finally:
            if not self._ended.done():
                with suppress(ProcessLookupError):
                    self._process.kill()
            self._listening.cancel()
            await asyncio.gather(self._ended, self._listening, return_exceptions=True)
            self._private.remove()


def _environment(tracker: str | None) -> dict[str, str]:
    """This process's, without what `main` set for itself: tasks inherit it, less all DAGGYR_*.

    A tracker's address may hold a password: arguments are for everyone to see, an environment for its user only (proc(5)).
    """
    environment = dict(os.environ)
    if environment.get("GRPC_VERBOSITY") == "NONE":
        del environment["GRPC_VERBOSITY"]
    if tracker is not None:
        environment["DAGGYR_TRACKER"] = tracker
    return environment


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _with_words(what: str, said: str) -> str:
    lines = said.strip().splitlines()
    return "\n  ".join([what + (":" if lines else ""), *lines])
