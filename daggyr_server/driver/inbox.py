"""What waits for the loop, and who waits for the loop's answer.

Executors' reports and people's requests are put here; the loop takes them out in the order in which they came, and hands the
answers back. Until the runs of before are restored, reports are held back, because they may be about those. Requests that are
under way when the coordinator ends are told so. Nothing here looks into an event or decides.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from daggyr.v1.task_pb2 import AttemptUpdate
from daggyr_server.core.commands import Key
from daggyr_server.core.events import AttemptEnded, Event, Request
from daggyr_server.core.records import Record
from daggyr_server.core.step import Refusal
from daggyr_server.driver.errors import Closing, Refused

_GOING = "the server is going away"


class Reported(NamedTuple):
    """A batch of updates from an executor. The loop calls `durable` once all of it is committed."""

    updates: Sequence[AttemptUpdate]
    durable: Callable[[], None]


class ToKeep(NamedTuple):
    """A record that changes nothing in the machine; answered with None once it is committed."""

    ticket: Hashable
    record: Record


class TasksMade(NamedTuple):
    """The end of a generator's attempt that was set aside while its tasks were made (set_aside.py), or what went wrong there."""

    key: Key
    ended: AttemptEnded | BaseException


Entry = Event | Reported | ToKeep | TasksMade


class Inbox:
    """The inbox of one coordinator's loop. All methods belong to one event loop."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self._reports: deque[Entry] = deque()  # where executors' entries go: until `let_in`, that is not `entries`
        self.wake = asyncio.Event()  # the loop has something to do
        self._waiting: dict[Hashable, asyncio.Future[int | None]] = {}  # by ticket
        self._closed = False

    def put(self, entry: Entry) -> None:
        """Add an entry; returns at once."""
        self.entries.append(entry)
        self.wake.set()

    def report(self, entry: Entry) -> None:
        """Add an entry of an executor; returns at once. Before `let_in`, the loop does not see it."""
        self._reports.append(entry)
        self.wake.set()

    def let_in(self) -> None:
        """From now on the loop sees what executors tell, and what they have told so far."""
        if self._reports is not self.entries:
            self.entries += self._reports
            self._reports = self.entries
            self.wake.set()

    async def ask(self, request: Request | ToKeep) -> int | None:
        """Put a request that has a ticket; returns its answer once that is durable. Raises Refused, Closing."""
        if self._closed:
            raise Closing(_GOING)
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting[request.ticket] = future
        self.put(request)
        # A caller that goes away does not take its request back: then nobody gets the answer.
        return await asyncio.shield(future)

    def answer(self, answers: Mapping[Hashable, int | Refusal | None]) -> None:
        """Hand a step's answers to those who wait for them."""
        for ticket, answer in answers.items():
            future = self._waiting.pop(ticket)
            if future.done():
                continue
            if isinstance(answer, Refusal):
                future.set_exception(Refused(answer))
                future.exception()  # A caller that has gone does not look at it, and asyncio would log that.
            else:
                future.set_result(answer)

    def close(self) -> None:
        """From now on whoever asks gets Closing at once."""
        self._closed = True

    def leave_unanswered(self) -> None:
        """Tell everybody who still waits that the coordinator ends. The loop has ended before."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Closing(_GOING))
                future.exception()  # as above
        self._waiting.clear()
