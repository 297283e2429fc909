"""Documents on their way from clients: what has come of them lies on disk, and all together have one budget.

The calls that bring specifications (submitting.py) receive with this. What arrives is put into a file without a name, which goes
with its call however that ends; a little of it waits in memory. A client that brings nothing for a while loses its call. Nothing
here looks into a document.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import grpc

from daggyr.v1.runs_pb2 import EditRunChunk, SubmitRunChunk

BLOCK_BYTES = 1024 * 1024  # is written at once; a smaller document stays in memory
MAX_IN_MEMORY = 64 * 1024 * 1024  # of all documents together; beyond that, whatever comes is written at once
MAX_FILES = 256  # are open in all
LARGE_BYTES = 16 * 1024 * 1024  # documents of this size and more are read one after another
_READ_BYTES = 64 * 1024 * 1024  # are read in one call of the system


class NotTaken(Exception):
    """A document that is not received further, with the status and the words to end its call with."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


C = TypeVar("C", SubmitRunChunk, EditRunChunk)
R = TypeVar("R")


class Arriving:
    """All documents that are on their way to one server."""

    def __init__(self, folder: Path | None, *, most: int, patience: float) -> None:
        """Files are made in `folder`, or where temporary files lie if it is None.

        All documents together may have `most` bytes, and a client may bring nothing for `patience` seconds.
        """
        self._folder = folder
        self._most = most
        self._patience = patience
        self._large = asyncio.Lock()
        self.taken = 0  # bytes
        self.in_memory = 0  # bytes, of these
        self.files = 0

    async def next(self, chunks: AsyncIterator[C]) -> C | None:
        """The next message of a stream, None at its end. Raises NotTaken."""
        try:
            async with asyncio.timeout(self._patience):
                return await anext(chunks, None)
        except TimeoutError:
            message = f"nothing of the specification came for {self._patience:g} s"
            raise NotTaken(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None

    @contextlib.asynccontextmanager
    async def turn(self, document: Document) -> AsyncIterator[None]:
        """Wait until a document may be read. Large ones, which take several times their size then, are read one after another."""
        if document.size < LARGE_BYTES:
            yield
            return
        async with self._large:
            yield

    def take(self, size: int) -> None:
        """Count bytes that came. Raises NotTaken if they are too many."""
        if self.taken + size > self._most:
            message = (
                f"{self.taken:,} bytes of specifications are on their way to the server, which takes {self._most:,} at a time "
                "([server] max_arriving_bytes): try again later"
            )
            raise NotTaken(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self.taken += size
        self.in_memory += size

    def make_file(self) -> int:
        """The descriptor of a new file without a name. Raises NotTaken, OSError."""
        if self.files >= MAX_FILES:
            message = f"{MAX_FILES} large specifications are on their way to the server already: try again later"
            raise NotTaken(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        with tempfile.TemporaryFile(buffering=0, prefix="daggyr-", dir=self._folder) as file:
            descriptor = os.dup(file.fileno())
        self.files += 1
        return descriptor


class Document:
    """One document, from its first byte to the end of its call, which closes it."""

    def __init__(self, arriving: Arriving) -> None:
        self._arriving = arriving
        self._pieces: list[bytes] = []  # the last of it, which is not on disk
        self._waiting = 0  # the bytes of these pieces
        self._file: int | None = None
        self._writing: asyncio.Future[None] | None = None
        self.size = 0

    async def add(self, data: bytes) -> None:
        """Add more to the end. Raises NotTaken."""
        self._arriving.take(len(data))
        self.size += len(data)
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting < BLOCK_BYTES and self._arriving.in_memory <= MAX_IN_MEMORY:
            return
        try:
            if self._file is None:
                self._file = self._arriving.make_file()
            block, file, start = b"".join(self._pieces), self._file, self.size - self._waiting
            self._writing = asyncio.get_running_loop().run_in_executor(None, _write, file, block, start)
            await asyncio.shield(self._writing)
        except OSError as error:
            message = f"the server has no room for the specification: {error.strerror or error}"
            raise NotTaken(grpc.StatusCode.RESOURCE_EXHAUSTED, message) from None
        self._pieces.clear()
        self._arriving.in_memory -= self._waiting
        self._waiting = 0

    async def read(self) -> bytes | bytearray:
        """The whole document, to be decoded; a large one is a bytearray, see spec.decode_json. Raises NotTaken."""
        if self._file is None:
            return await self.content()
        rest, on_disk = list(self._pieces), self.size - self._waiting
        return await self._from_disk(lambda file: _read_growing(file, on_disk, rest))

    async def content(self) -> bytes:
        """The whole document, to be kept. Raises NotTaken."""
        rest = b"".join(self._pieces)
        if self._file is None:
            return rest
        return await self._from_disk(lambda file: _read(file, self.size - len(rest), rest))

    async def _from_disk(self, read: Callable[[int], R]) -> R:
        """Call `read` in a thread, with a descriptor of its own that it closes; returns what it returns. Raises NotTaken."""
        assert self._file is not None
        try:
            return await asyncio.to_thread(read, os.dup(self._file))
        except OSError as error:
            message = f"the specification cannot be read again: {error.strerror or error}"
            raise NotTaken(grpc.StatusCode.UNAVAILABLE, message) from None

    def close(self) -> None:
        """Give the document's room back."""
        self._arriving.taken -= self.size
        self._arriving.in_memory -= self._waiting
        self.size = self._waiting = 0
        self._pieces.clear()
        file, self._file = self._file, None
        if file is None:
            return
        self._arriving.files -= 1
        if self._writing is not None and not self._writing.done():
            # A thread still writes, and must not find another file under the same number.
            self._writing.add_done_callback(lambda written: _close(file, written))
        else:
            os.close(file)


def _close(file: int, written: asyncio.Future[None]) -> None:
    os.close(file)
    if not written.cancelled():
        written.exception()  # Nobody waits for it any more, and asyncio would log it.


def _write(file: int, block: bytes, start: int) -> None:
    data = memoryview(block)
    while data:
        written = os.pwrite(file, data, start)
        start += written
        data = data[written:]


def _read_growing(file: int, size: int, rest: list[bytes]) -> bytearray:
    # It grows by pieces: to make all of it at once holds the interpreter while a gigabyte is filled with zeros.
    whole = bytearray()
    with os.fdopen(file, "rb", buffering=0) as on_disk:
        on_disk.seek(0)
        while len(whole) < size:
            piece = on_disk.read(min(_READ_BYTES, size - len(whole)))
            if not piece:
                raise OSError("the file is too short")
            whole += piece
    for piece in rest:
        whole += piece
    return whole


def _read(file: int, size: int, rest: bytes) -> bytes:
    # The rest is written first: putting it behind what was read would make a second copy of everything.
    with os.fdopen(file, "r+b", buffering=0) as whole:
        _write(file, rest, size)
        whole.seek(0)
        content = whole.read(size + len(rest))
        if len(content) < size + len(rest):  # read(2) gives at most 2 GiB at once
            content += whole.read(size + len(rest) - len(content))
    return content
