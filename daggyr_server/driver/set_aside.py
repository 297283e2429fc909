"""The ends of generators' attempts whose tasks take long to make: they are set aside, so that the loop goes on with all else.

The loop hands over such an end, and takes it out of the inbox again, as `TasksMade`, once its tasks are made in a thread and
what the generator printed is durable (deposits.py). Until then the attempt is in flight for everybody. Its tasks are made for the
graph as it is, so what would replace the graph waits behind it; so does what its host tells of itself, which may end the attempt
in another way. Ends are taken one after the other, because each changes the graph for which the next one's tasks are made.
Nothing here changes a run.
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
from daggyr_server.driver.inbox import Entry, Inbox, TasksMade


@dataclass(slots=True, eq=False)
class SetAside:
    """An end that was set aside."""

    ended: AttemptEnded
    run: Run
    host: tuple[str, str]  # of the attempt: its pool, and what the pool calls it
    place: int  # ends that came later have higher ones
    document: bytearray
    durables: list[Callable[[], None]] = field(default_factory=list)  # to be called once the end is durable
    behind: list[Entry] = field(default_factory=list)  # what waits until the loop has taken the end
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class EndsSetAside:
    """All ends that are set aside in one coordinator. All methods belong to one event loop."""

    def __init__(self, generators: Generators, deposits: Deposits, inbox: Inbox, keep: Callable[[], Keeping]) -> None:
        """`keep` makes the lists of what tasks execute."""
        self._generators = generators
        self._deposits = deposits
        self._inbox = inbox
        self._keep = keep
        self._place = 0
        self._waiting: deque[SetAside] = deque()
        self._worker: asyncio.Task[None] | None = None
        self.pending: dict[Key, SetAside] = {}  # by attempt; for reading

    def set_aside(self, ended: AttemptEnded, run: Run | None) -> SetAside | None:
        """Set the end of a generator's attempt aside; None if making its tasks takes no time, or none are to be made.

        An attempt that was set aside before keeps its first end, which counts, and the caller gets that.
        """
        key = ended[:3]
        known = self.pending.get(key)
        if known is not None or run is None or ended.outcome is not Outcome.SUCCEEDED:
            return known
        flight = run.current(ended.number, ended.attempt)
        others = any(one.run is run for one in self.pending.values())
        if flight is None or not (others or self._generators.is_large(ended, run)):
            return None
        self._place += 1
        one = SetAside(ended, run, (flight.pool, flight.host), self._place, self._generators.take(key))
        self.pending[key] = one
        self._waiting.append(one)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="making generated tasks")
        return one

    def hold_back(self, entry: Entry) -> bool:
        """Whether an entry waits now until an end is taken: the loop gets it again then, in the inbox."""
        for one in self.pending.values():
            if type(entry) is EditAsked:
                waits = entry.run_id == one.run.run_id
            else:
                waits = type(entry) in (HostChanged, HostGone) and (entry.pool, entry.host) == one.host  # type: ignore[union-attr]
            if waits:
                one.behind.append(entry)
                return True
        return False

    def take(self, made: TasksMade) -> tuple[AttemptEnded, list[Callable[[], None]]]:
        """The end of an attempt with its tasks, to be handled now, and what to call once it is durable. Raises what was wrong."""
        one = self.pending.pop(made.key)
        self._generators.forget(made.key)
        one.taken.set()
        self._inbox.entries.extendleft(reversed(one.behind))
        if isinstance(made.ended, BaseException):
            raise made.ended
        return made.ended, one.durables

    async def _work(self) -> None:
        while self._waiting:
            one = self._waiting.popleft()
            ended: AttemptEnded | BaseException
            try:
                ended = await self._made(one)
            except Exception as error:
                ended = error  # The loop raises it, as if it had met it by itself.
            self._inbox.put(TasksMade(one.ended[:3], ended))
            await one.taken.wait()
        self._worker = None

    async def _made(self, one: SetAside) -> AttemptEnded:
        document, one.document = one.document, bytearray()
        ended = await self._generators.made(one.ended, one.run, document, self._keep)
        if ended.addition is not None and (deposit := await self._deposits.make(document)):
            ended.addition.deposit = deposit
            # If the machine refuses the tasks, nobody names it.
            one.durables.append(partial(self._deposits.discard, [deposit]))
        return ended

    async def close(self) -> None:
        """Cancel what is under way, and wait until it has ended."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
