"""Giving a run another specification while it goes on: a plan is made in a thread, and the machine is asked to take it.

The API calls the one `Editing` through `Requests`. What a plan is stands in edit_plan.py. Where the run has moved on, the machine
refuses the plan and another one is made; nothing here changes a run by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from daggyr_server.core.events import EditAsked
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.step import Reason, Refusal
from daggyr_server.driver.edit_plan import Plan, RunSnapshot, planned
from daggyr_server.driver.ended import Reader
from daggyr_server.driver.errors import Refused
from daggyr_server.driver.inbox import Inbox
from daggyr_server.driver.replaced import encoded
from daggyr_server.spec import Faults, PoolLimits, Printed, RunSpec, check_tags, listed

PLANS = 10  # of one edit, while the run goes on


class Editing:
    """Makes the edits of one coordinator's runs."""

    def __init__(self, reader: Reader, inbox: Inbox, keep: Callable[[], Keeping]) -> None:
        """`keep` makes the lists that hold what tasks execute."""
        self._reader = reader
        self._inbox = inbox
        self._keep = keep

    async def plan(self, run: Run, spec: RunSpec, *, pools: Mapping[str, PoolLimits], downstream: bool) -> Plan:
        """What giving a run another specification would do to it. Raises SpecificationError, Refused, TrackerError."""
        _check_tags(run, spec)
        snapshot, generators = RunSnapshot.of(run), dict(run.printed)
        printed = []
        for revision, number in generators.items():
            document = await self._reader.document(run.run_id, revision)
            if document is None:
                raise Refused(Refusal(Reason.NOT_FOUND, f"run {run.run_id} is being deleted"))
            printed.append(Printed(revision, number, document))
        return await asyncio.to_thread(
            planned,
            snapshot,
            spec,
            printed,
            pools=pools,
            default_pool=spec.pool or run.pool,
            downstream=downstream,
            keep=self._keep,
        )

    async def edit(
        self,
        run: Run,
        spec: RunSpec,
        document: bytes,
        edits: int,
        *,
        pools: Mapping[str, PoolLimits],
        downstream: bool,
        remove: bool,
        most: int,
    ) -> Plan:
        """Give a run another specification, of `most` tasks at most; returns the plan that was carried out, once it is durable.

        Without `remove`, an edit is refused that takes tasks away which ran or run. `edits` is how often the run had been edited
        when the caller looked at it; where it was edited since, the edit is refused. Raises SpecificationError, Refused,
        TrackerError, Closing.
        """
        for attempt in range(1, PLANS + 1):
            if len(run.graph.edits) != edits:
                break  # The machine would refuse it: no plan is needed for that.
            plan = await self.plan(run, spec, pools=pools, downstream=downstream)
            tasks = plan.graph.size - plan.graph.live
            if tasks > most:
                message = f"the run would have {tasks:,} tasks; the most is {most:,} ([server] max_run_tasks)"
                raise Refused(Refusal(Reason.TOO_LARGE, message))
            gone = [] if remove else await asyncio.to_thread(plan.removed_after_attempts)
            if gone:
                raise Refused(Refusal(Reason.NOT_NOW, _would_remove(run.run_id, gone)))
            try:
                replaced = await asyncio.to_thread(encoded, plan.snapshot.graph, plan.edit.carry)
                await self._take(run, spec, document, edits, plan, replaced)
            except Refused as error:
                found = await self._reader.find(run.run_id)  # An ended run may have left memory, and is another object then.
                if attempt == PLANS or found is None or (error.refusal.reason is not Reason.STALE and found is run):
                    raise
                run = found
            else:
                return plan
        message = f"run {run.run_id} was edited meanwhile: it has revision {run.revision} now, look at it again"
        raise Refused(Refusal(Reason.CONFLICT, message))

    async def _take(self, run: Run, spec: RunSpec, document: bytes, edits: int, plan: Plan, replaced: bytes) -> None:
        """Ask the machine to carry a plan out. Raises Refused, Closing."""
        await self._inbox.ask(
            EditAsked(
                ticket=object(),
                run_id=run.run_id,
                edits=edits,
                revision=plan.snapshot.revision,
                edit=plan.edit,
                tags={**run.tags, **(spec.tags or {})},
                pool=spec.pool or run.pool,
                parameters=spec.run_parameters(),
                document=document,
                replaced=replaced,
                completed=plan.completed,
                again=plan.again,
            )
        )


def _check_tags(run: Run, spec: RunSpec) -> None:
    """Raise SpecificationError if the tags that a run has, and those that it would get, are too large together."""
    faults = Faults()
    check_tags({**run.tags, **(spec.tags or {})}, faults)
    faults.refuse_if_any()


def _would_remove(run_id: int, gone: list[str]) -> str:
    tasks = "a task that ran or runs" if len(gone) == 1 else f"{len(gone):,} tasks that ran or run"
    return (
        f"the specification does not have {tasks}: {listed(gone)}; an edit would take them away from run {run_id}. "
        "`daggyr edit --plan` tells what would happen, and with --remove it does"
    )
