"""Notices that a Postgres server does not answer, and gives up the calls that wait for it. This is the rule for all of them:

A call may take as long as it needs, up to LONGEST, as long as the server answers another question meanwhile. A call that has
waited for ANSWER_SECONDS makes the watch ask that question, over a connection of its own. If no answer comes within
PROBE_SECONDS, the server is *silent*: the connections of all calls that wait are cut, so that these raise an error at once, and
so does every later call, until the watch has got an answer. A short limit for each statement would be wrong both ways: to load a
large run takes long on a server that is well, and a server that is stopped does not look at limits.

`PostgresTracker` has one `AnswerWatch`; all connections of the tracker are made by it. A call that is cancelled costs its
connection, because to ask the server for the end of a statement takes an answer of the server's. Nothing here knows statements or
tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Self

from daggyr_server.trackers.sql.postgres.address import MISSING, PostgresAddress

if MISSING is None:
    import psycopg
    from psycopg import waiting

    # It warns of connections that were cut in its own words, with addresses of objects; the tracker says what matters of them.
    logging.getLogger("psycopg").setLevel(logging.ERROR)

log = logging.getLogger(__name__)

ANSWER_SECONDS = 3.0
PROBE_SECONDS = 5.0
LONGEST = 600.0
_LOOK = 0.5  # seconds between looks at the calls that wait


class AnswerWatch:
    """Makes a tracker's connections and watches over them. Methods belong to one event loop."""

    def __init__(self, address: PostgresAddress) -> None:
        self._address = address
        self._silent: str | None = None  # what is said while the server does not answer
        self._waiting: dict[object, tuple[float, Callable[[str], object]]] = {}  # calls: since when, and how they are given up
        self._answered = 0.0  # when the server answered a question last
        self._asking: WatchedConnection | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to watch. It is called before the first `connect`."""
        self._task = asyncio.create_task(self._watch(), name="watch over Postgres")

    async def close(self) -> None:
        """End; connections that are there go on without a watch."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._hang_up()

    def check(self) -> None:
        """Raise TrackerError if the server is silent."""
        if self._silent is not None:
            raise self._address.error(psycopg.OperationalError(self._silent))

    @property
    def is_silent(self) -> bool:
        """Whether the server does not answer."""
        return self._silent is not None

    async def connect(self) -> WatchedConnection:
        """A new connection in autocommit mode whose commits are durable. Raises TrackerError."""
        self.check()
        with self._address.in_words():
            return await self._connect()

    async def _connect(self) -> WatchedConnection:
        connecting = asyncio.ensure_future(WatchedConnection.made(self, self._address))
        given_up: list[str] = []

        def give_up(why: str) -> None:
            given_up.append(why)
            connecting.cancel()

        try:
            with self.waits(connecting, give_up):
                return await connecting
        except asyncio.CancelledError:
            connecting.cancel()
            if given_up and not _is_cancelling():
                raise psycopg.OperationalError(given_up[0]) from None
            raise

    @contextlib.contextmanager
    def waits(self, call: object, give_up: Callable[[str], object]) -> Any:
        """While this lasts, a call waits for the server. `give_up` ends it, and is told why."""
        self._waiting[call] = asyncio.get_running_loop().time(), give_up
        try:
            yield
        finally:
            del self._waiting[call]

    # -- watching -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK)
            now = loop.time()
            late = any(now - max(since, self._answered) >= ANSWER_SECONDS for since, _ in self._waiting.values())
            if not late and self._silent is None:
                continue
            if await self._answers():
                self._answered = loop.time()
                if self._silent is not None:
                    self._silent = None
                    log.warning("%s answers again", self._address)
                self._give_up(LONGEST, f"it has not answered one question for {LONGEST:g} s")
                continue
            if self._silent is None:
                self._silent = "it does not answer; everything goes on by itself once it does"
                log.error("%s does not answer: nothing new is started until it does", self._address)
            self._give_up(0.0, self._silent)

    def _give_up(self, seconds: float, why: str) -> None:
        """Give up the calls that have waited that long."""
        now = asyncio.get_running_loop().time()
        for since, give_up in list(self._waiting.values()):
            if now - since >= seconds:
                give_up(why)

    async def _answers(self) -> bool:
        """Whether the server answers a question in time, be it with an error."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                if self._asking is None or self._asking.closed:
                    self._asking = await WatchedConnection.made(None, self._address)
                await self._asking.execute("")
            return True
        except (psycopg.Error, TimeoutError, OSError) as error:
            await self._hang_up()
            return getattr(error, "sqlstate", None) is not None

    async def _hang_up(self) -> None:
        asking, self._asking = self._asking, None
        if asking is not None:
            await asking.close()


if MISSING is None:

    class WatchedConnection(psycopg.AsyncConnection[Any]):
        """A connection that its watch may cut, and that is cut if the task that waits for it is cancelled."""

        watch: AnswerWatch | None = None
        _cut: str | None = None  # why it was cut

        @classmethod
        async def made(cls, watch: AnswerWatch | None, address: PostgresAddress) -> Self:
            """Connect. Raises psycopg.Error."""
            connection = await cls.connect(address.conninfo, autocommit=True)
            connection.watch = watch
            try:
                await connection.execute(address.session)
            except BaseException:
                await connection.close()
                raise
            return connection

        async def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            """See psycopg; everything that waits for the server comes through here."""
            limit = {} if timeout is None else {"timeout": timeout}
            waits = self.watch.waits(self, self.cut) if self.watch is not None else contextlib.nullcontext()
            try:
                with waits:
                    return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, **limit)
            except asyncio.CancelledError:
                self.pgconn.finish()
                raise
            except psycopg.Error as error:
                if self._cut is not None:
                    raise psycopg.OperationalError(self._cut) from error
                raise

        def cut(self, why: str) -> None:
            """Have whoever waits for the server see its connection end at once."""
            self._cut = why
            if not self.closed:
                with socket.socket(fileno=os.dup(self.pgconn.socket)) as ours, contextlib.suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)


def _is_cancelling() -> bool:
    """Whether the task that runs now is being cancelled, and not only something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def within(seconds: float, connection: WatchedConnection, work: Any) -> None:
    """Let `work` over a connection have so long; then the connection is cut, and the work ends at once. Raises what it raises."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=seconds)
    if not task.done():
        connection.cut("it does not answer in time")
    await task
