"""Writes large documents down before the commits that they belong to, so that nobody else waits for them.

`Requests`, `Editing` and `Generators` make deposits (see Tracker.new_deposit) and name them in what they ask of the loop. The
commit that names one is small, and all or nothing: so nothing of a change is there before all of it is. A deposit that came to
nothing is discarded here, in the background; one that a crash left behind, at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from daggyr_server.core.events import RunsForgotten
from daggyr_server.driver.errors import Closing
from daggyr_server.driver.inbox import Inbox
from daggyr_server.trackers.base import LostTracker, Tracker, TrackerError

log = logging.getLogger(__name__)

LARGE_BYTES = 1024 * 1024  # a commit with a smaller document takes some milliseconds
DISCARDED_PIECES = 4  # in one call of the tracker

T = TypeVar("T")


class Deposits:
    """The deposits of one coordinator. `close` leaves to the next start what is to be discarded."""

    def __init__(self, tracker: Tracker, inbox: Inbox) -> None:
        self._tracker = tracker
        self._inbox = inbox
        self._discarding: set[asyncio.Task[None]] = set()
        self._closed = False

    async def make(self, document: bytes | bytearray) -> int:
        """The number under which a document is durable now; 0 if the commit has to bring it, because it is small or this failed.

        What keeps it from being durable is told where commits meet the same, and those are repeated until they succeed.
        """
        if len(document) < LARGE_BYTES:
            return 0
        number = self._tracker.new_deposit()
        if not number:
            return 0
        try:
            await self._tracker.deposit(number, document)
        except TrackerError:
            self.discard([number])
            return 0
        except BaseException:
            self.discard([number])
            raise
        return number

    async def named(self, numbers: Sequence[int], asking: Awaitable[T]) -> T:
        """What `asking` gives, which has the loop commit a record that names these deposits; else they are discarded."""
        try:
            found = await asking
        except Closing:
            raise  # Whether a commit has named them is known at the next start.
        except asyncio.CancelledError:
            # The loop may have the request, and grants it all the same.
            self._begin(self._discard_later(numbers))
            raise
        except BaseException:
            self.discard(numbers)
            raise
        self.discard(numbers)  # A request may have been granted before, by another commit.
        return found

    def discard(self, numbers: Sequence[int]) -> None:
        """Discard, in the background, those that no commit has named. The loop has no request any more that names one."""
        self._begin(self._discard(numbers))

    async def _discard_later(self, numbers: Sequence[int]) -> None:
        """Discard them once the loop has answered all that was asked before now."""
        with contextlib.suppress(Closing):
            await self._inbox.ask(RunsForgotten(ticket=object(), run_ids=()))
            await self._discard(numbers)

    async def _discard(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            try:
                while number and await self._tracker.discard(number, DISCARDED_PIECES):
                    await asyncio.sleep(0)
            except LostTracker:
                return
            except TrackerError as error:
                log.warning("a document that nobody needs is deleted at the next start: %s", error)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
            return
        task = asyncio.create_task(work, name="discarding deposits")
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

    async def close(self) -> None:
        """Cancel what is under way, and wait until it has ended."""
        self._closed = True
        tasks = list(self._discarding)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
