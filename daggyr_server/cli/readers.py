"""Whoever reads standard output, and that they go away: `daggyr logs last -f | grep -m1 ready`.

A write tells that nobody reads any more, but what follows something quiet may have nothing to write for hours. `logs -f` and
`watch` as JSON run inside `while_read`. What must go on without a reader (a run that is followed to its exit code) does not.
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
    """What `work` returns. Raises Closed as soon as the pipe that is standard output has no reader; `work` is then cancelled."""
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
    """A future that is done once nobody reads standard output; a file or a terminal always has somebody."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()
    # Without any event asked for, epoll tells of errors and hang-ups only (epoll_ctl(2)): that a terminal can be read is none.
    with select.epoll() as events:
        try:
            events.register(_STDOUT, 0)
        except PermissionError:  # of a file
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
