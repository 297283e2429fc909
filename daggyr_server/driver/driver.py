"""The life of a driver: its parts are made, the executors opened, the runs of before brought back, and in the end all is closed.

`daggyr-server` makes the one `Driver` and gives four of its parts to the API: `requests` takes what people ask, `reader` shows
what is, `changes` tells watchers what changed, and `figures` has the metrics' numbers. Executors tell through `reports` what
happens. What goes on between all of them is in loop.py. Nothing here changes the machine or commits anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial

from daggyr_server.core.machine import Machine
from daggyr_server.driver import recovery
from daggyr_server.driver.agents import Agents
from daggyr_server.driver.asking import Asking
from daggyr_server.driver.careful import unusable
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.clocks import Clock
from daggyr_server.driver.deletions import Deletions
from daggyr_server.driver.deposits import Deposits
from daggyr_server.driver.durability import Durability
from daggyr_server.driver.editing import Editing
from daggyr_server.driver.ended import Reader
from daggyr_server.driver.figures import FiguresReader
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.inbox import Inbox
from daggyr_server.driver.lives import Lives
from daggyr_server.driver.loop import Loop
from daggyr_server.driver.reports import PoolReports
from daggyr_server.driver.requests import Requests
from daggyr_server.driver.restoring import MissingRuns
from daggyr_server.driver.set_aside import EndsSetAside
from daggyr_server.driver.spilled import SpilledTasks
from daggyr_server.executors.base import Executor, ExecutorError
from daggyr_server.trackers.base import Tracker

log = logging.getLogger(__name__)


class Driver:
    """Owns the machine and the tracker. All methods belong to one event loop."""

    def __init__(
        self,
        machine: Machine,
        tracker: Tracker,
        changes: Changes,
        generators: Generators,
        clock: Clock,
        *,
        durable: bool,
        life: int,
    ) -> None:
        """`durable` says that the tracker can give ended runs back. `life` is this start's."""
        self.changes = changes
        self._machine = machine
        self._tracker = tracker
        self._clock = clock
        self._lives = Lives(life)
        self._inbox = Inbox()
        self._executors: dict[str, Executor] = {}
        self._task: asyncio.Task[None] | None = None
        self._restorer: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._durability = durability = Durability()
        keep = partial(SpilledTasks, tracker.folder)  # a new list for what the tasks of one specification execute
        self._restoring = MissingRuns(
            *(tracker, self._inbox, generators, self._lives, durability, clock, keep),
            damaged=lambda damage: self.reader.damage.note(damage),
        )
        self.reader = Reader(
            *(machine, tracker, self._executors, self._inbox, durability, self._lives, self._restoring, clock, keep),
            durable=durable,
        )
        self._deposits = Deposits(tracker, self._inbox)
        aside = EndsSetAside(generators, self._deposits, self._inbox, keep)
        self._loop = Loop(
            *(
                machine,
                tracker,
                self._inbox,
                self._executors,
                changes,
                generators,
                aside,
                self._lives,
                durability,
                clock,
                keep,
            ),
            ended=self.reader.ended,
        )
        self.figures = FiguresReader(machine, durability, self.reader.damage)
        self._deletions = Deletions(tracker, self.reader, changes)
        asking, agents = Asking(self.reader, self._inbox), Agents(self._executors)
        editing = Editing(self.reader, asking, self._deposits, keep)
        self.requests = Requests(
            *(self._inbox, self.reader, asking, editing, self._deletions, self._deposits, agents, keep, tracker.folder)
        )

    def reports(self, pool: str, *, mend: bool = True) -> PoolReports:
        """What the executor of `pool` reports to. `mend` is False for an executor that checks by itself what it is told."""
        return PoolReports(pool, self._inbox, self._machine.pools[pool], mend=mend)

    async def start(self, executors: Mapping[str, Executor]) -> None:
        """Open the executors, by pool, and begin to work. The runs that have not ended come back from now on: see `restored`.

        Raises ExecutorError and TrackerError, with all executors closed again.
        """
        self._executors.update(executors)
        try:
            for pool, executor in executors.items():
                try:
                    await executor.open()
                except ExecutorError:
                    raise
                except Exception as error:
                    raise unusable(pool, "open", error) from error
            unfinished = await self._restoring.begin()
            half_deleted, nobodys = await self._tracker.deleting(), await self._tracker.deposits()
        except BaseException:
            await self._loop.calls.close_all(self._executors)
            raise
        self._task = asyncio.create_task(self._loop.run(), name="driver")
        self._restorer = asyncio.create_task(self._restore(unfinished), name="restoring")
        self._watcher = asyncio.create_task(self._durability.watch(), name="slow commits")
        self._deletions.go_on(half_deleted)
        self._deposits.discard(nobodys)
        if not unfinished:
            await self._restorer

    @property
    def is_restored(self) -> bool:
        """Whether all runs that had not ended are back."""
        return self._restoring.done.is_set()

    async def restored(self) -> None:
        """Return once all runs that had not ended are back. Raises what keeps them from that for good: see `ended`."""
        if self._restorer is not None:
            await asyncio.shield(self._restorer)

    async def _restore(self, run_ids: Sequence[int]) -> None:
        begun = self._clock().steady
        for run_id in run_ids:
            await self._restoring.bring_back(run_id)
        runs = [self._machine.runs[run_id] for run_id in run_ids if run_id in self._machine.runs]
        gone = recovery.go_on(runs, self._executors, self._lives)
        if run_ids:
            flying = sum(len(run.in_flight) for run in runs)
            log.info(
                "going on with %d runs after %.1f s; %d attempts may still run", len(runs), self._clock().steady - begun, flying
            )
        await self._loop.release()
        for entry in gone:
            self._inbox.report(entry)
        self._inbox.let_in()
        self._restoring.done.set()

    async def close(self) -> None:
        """End the loop, let go of the executors and the tracker; what waits in the inbox is dropped. Safe to call twice."""
        self._inbox.close()
        await self._deletions.close()
        tasks = [task for task in (self._watcher, self._restorer, self._task) if task is not None]
        self._watcher = self._restorer = self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.calls.close_all(self._executors)
        self._inbox.leave_unanswered()
        await self._deposits.close()
        await self._tracker.close()

    async def ended(self) -> None:
        """Return when `close` was called, or raise what made the driver end by itself."""
        tasks = [task for task in (self._task, self._restorer) if task is not None]
        if tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
