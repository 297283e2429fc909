"""The ends of generators' attempts whose tasks take long to make: they are set aside, so that the loop goes on with all else.

The loop hands over such an end, and takes it out of the inbox again, as `Grown`, once its tasks are made in a thread and what the
generator printed is durable (deposits.py). Until then the attempt is in flight for everybody. Its tasks are made for the graph as
it is, so what would replace the graph waits behind it, and so does what its host tells of itself, which may end the attempt in
another way. Ends are taken one after the other, because each changes the graph for which the next one's tasks are made. Nothing
here changes a run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from daggyr_server.core.commands import Key
from daggyr_server.core.events import AttemptEnded, EditAsked, HostChanged, HostGone
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.states import Outcome
from daggyr_server.driver.deposits import Deposits
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.inbox import Entry, Grown, Inbox


@dataclass(slots=True, eq=False)
class Growth:
    """An end that was set aside."""

    ended: AttemptEnded
    run: Run
    host: tuple[str, str]  # of the attempt: its pool, and what the pool calls it
    place: int  # ends that came later have higher ones
    document: bytearray
    durables: list[Callable[[], None]] = field(default_factory=list)  # to be called once the end is durable
    behind: list[Entry] = field(default_factory=list)  # what waits until the loop has taken the end
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class Growths:
    """Those of one coordinator. All methods belong to one event loop."""

    def __init__(self, generators: Generators, deposits: Deposits, inbox: Inbox, keep: Callable[[], Keeping]) -> None:
        """`keep` makes the lists of what tasks execute."""
        self._generators = generators
        self._deposits = deposits
        self._inbox = inbox
        self._keep = keep
        self._place = 0
        self._waiting: deque[Growth] = deque()
        self._worker: asyncio.Task[None] | None = None
        self.pending: dict[Key, Growth] = {}  # by attempt; for reading

    def set_aside(self, ended: AttemptEnded, run: Run | None) -> Growth | None:
        """The growth of a generator's attempt that has ended; None if making its tasks takes no time, or none are to be made.

        Of an attempt that was set aside before, this is what was set aside: its first end counts, as of any attempt.
        """
        key = ended[:3]
        known = self.pending.get(key)
        if known is not None or run is None or ended.outcome is not Outcome.SUCCEEDED:
            return known
        flight = run.current(ended.number, ended.attempt)
        others = any(growth.run is run for growth in self.pending.values())
        if flight is None or not (others or self._generators.is_large(ended, run)):
            return None
        self._place += 1
        growth = Growth(ended, run, (flight.pool, flight.host), self._place, self._generators.take(key))
        self.pending[key] = growth
        self._waiting.append(growth)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="making generated tasks")
        return growth

    def hold_back(self, entry: Entry) -> bool:
        """Whether an entry waits behind a growth now: the loop gets it again, in the inbox, after that."""
        for growth in self.pending.values():
            if type(entry) is EditAsked:
                waits = entry.run_id == growth.run.run_id
            else:
                waits = type(entry) in (HostChanged, HostGone) and (entry.pool, entry.host) == growth.host  # type: ignore[union-attr]
            if waits:
                growth.behind.append(entry)
                return True
        return False

    def take(self, grown: Grown) -> tuple[AttemptEnded, list[Callable[[], None]]]:
        """The end of an attempt with its tasks, to be handled now, and what to call once it is durable. Raises what was wrong."""
        growth = self.pending.pop(grown.key)
        self._generators.forget(grown.key)
        growth.taken.set()
        self._inbox.entries.extendleft(reversed(growth.behind))
        if isinstance(grown.ended, BaseException):
            raise grown.ended
        return grown.ended, growth.durables

    async def _work(self) -> None:
        while self._waiting:
            growth = self._waiting.popleft()
            ended: AttemptEnded | BaseException
            try:
                ended = await self._made(growth)
            except Exception as error:
                ended = error  # The loop raises it, as if it had met it by itself.
            self._inbox.put(Grown(growth.ended[:3], ended))
            await growth.taken.wait()
        self._worker = None

    async def _made(self, growth: Growth) -> AttemptEnded:
        document, growth.document = growth.document, bytearray()
        ended = await self._generators.made(growth.ended, growth.run, document, self._keep)
        if ended.addition is not None and (deposit := await self._deposits.make(document)):
            ended.addition.deposit = deposit
            # If the machine refuses the tasks, nobody names it.
            growth.durables.append(partial(self._deposits.discard, [deposit]))
        return ended

    async def close(self) -> None:
        """Cancel what is under way, and wait until it has ended."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
