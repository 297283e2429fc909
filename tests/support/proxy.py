"""A TCP proxy that a test can cut or hold: stands between an agent and its coordinator, in the test's own event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Proxy:
    """`async with Proxy(address) as proxy`: connections to `proxy.address` are passed on to `address`, until `cut` or `hold`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken = False
        self._to_server = _Way()
        self._to_client = _Way()

    @property
    def address(self) -> str:
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.close()
        await self.cut()
        await self._server.wait_closed()

    async def cut(self) -> None:
        """Break all connections, and take none until `mend`."""
        self._broken = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # a connection that was aborted is closed in the loop's next turn

    def hold(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Pass nothing on, without a word to either end, until `mend`: what comes meanwhile comes late, if anybody waits for it.

        So it is with a network that drops packets. New connections are taken and held as well.
        """
        self._to_server.hold(to_server)
        self._to_client.hold(to_client)

    def mend(self) -> None:
        """Take connections again, and pass on what was held."""
        self._broken = False
        self._to_server.hold(False)
        self._to_client.hold(False)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # also of one that was cut before it began

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._broken:
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._target)
        except OSError:  # the server is not there
            writer.transport.abort()
            return
        ways = (
            asyncio.create_task(self._to_server.copy(reader, there_writer)),
            asyncio.create_task(self._to_client.copy(there_reader, writer)),
        )
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            there_writer.transport.abort()


class _Way:
    """One direction of all connections."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    def hold(self, held: bool) -> None:
        if held:
            self._open.clear()
        else:
            self._open.set()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
