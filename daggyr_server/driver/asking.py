"""Asks the machine for what people want of runs, so that a request that changes a million tasks holds up nobody else.

`Requests` and `Editing` ask through the one `Asking`. A large run with nothing in flight is copied, the request is carried out on
the copy in a thread (core/rehearsal.py), and the machine takes the copy over. Any other run is changed by the machine itself, in
one step. Nothing here changes a run.
"""

from __future__ import annotations

import asyncio

from daggyr_server.core.events import EditAsked, KillAsked, MarkAsked, RetryAsked
from daggyr_server.core.graph.run import Run
from daggyr_server.core.rehearsal import Rehearsal
from daggyr_server.core.step import Reason
from daggyr_server.driver.ended import Reader
from daggyr_server.driver.errors import Refused
from daggyr_server.driver.inbox import Inbox

REHEARSED_TASKS = 10_000  # of a run; to change fewer than these takes the machine about ten milliseconds
REHEARSALS = 5  # of one request, while the run goes on


class Asking:
    """What is asked of the machine of one coordinator."""

    def __init__(self, reader: Reader, inbox: Inbox) -> None:
        self._reader = reader
        self._inbox = inbox

    async def ask(self, asked: KillAsked | RetryAsked | MarkAsked | EditAsked) -> int | None:
        """The answer to what is asked, once it is durable. Raises Refused, Closing."""
        for _ in range(REHEARSALS):
            run = self._reader.in_memory(asked.run_id)
            if run is None or not _rehearsed(run, asked):
                break
            rehearsal = Rehearsal(run, self._reader.pools)
            event = await asyncio.to_thread(rehearsal.carried_out, asked, self._reader.now())
            try:
                return await self._inbox.ask(event)
            except Refused as refused:
                if event.refused or refused.refusal.reason is not Reason.STALE:
                    raise
        return await self._inbox.ask(asked)


def _rehearsed(run: Run, asked: KillAsked | RetryAsked | MarkAsked | EditAsked) -> bool:
    """Whether it is worth while, and possible, to carry a request out on a copy. To kill a whole run moves none of its tasks."""
    if run.in_flight or (type(asked) is KillAsked and asked.numbers is None):
        return False
    return run.graph.size - run.graph.live >= REHEARSED_TASKS
