"""Ends a command when nobody reads its standard output any more, as in `daggyr logs last -f | grep -m1 ready`.

A write would notice that, but a command that follows quiet tasks may have nothing to write for hours. `logs -f` and `watch` with
`--output json` run inside `while_read`. A command that follows a run to its exit code does not, because it must go on.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from daggyr_server.cli.stdout import Closed

Result = TypeVar("Result")

_STDOUT = 1


async def while_read(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`.

    As soon as standard output is a pipe without a reader, `work` is cancelled, and this raises Closed.
    """
    job = asyncio.ensure_future(work)
    try:
        async with _closing() as closed:
            either: set[asyncio.Future[Any]] = {job, closed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
    raise Closed


@asynccontextmanager
async def _closing() -> AsyncIterator[asyncio.Future[None]]:
    """A future that is done once nobody reads standard output. A file or a terminal always counts as read."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()
    # If no event is asked for, epoll reports errors and hang-ups only (epoll_ctl(2)), and not that a terminal has input.
    with select.epoll() as events:
        try:
            events.register(_STDOUT, 0)
        except PermissionError:  # standard output is a file
            yield closed
            return

        def tell() -> None:
            loop.remove_reader(events)
            closed.set_result(None)

        loop.add_reader(events, tell)
        try:
            yield closed
        finally:
            loop.remove_reader(events)
