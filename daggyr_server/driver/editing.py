"""Giving a run another specification while it goes on: a plan is made in a thread, and the machine is asked to take it.

The API calls the one `Editing` through `Requests`. What a plan is stands in edit_plan.py. Where the run has moved on, the machine
refuses the plan and another one is made; nothing here changes a run by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from daggyr_server.core.events import EditAsked
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.step import Reason, Refusal
from daggyr_server.driver.asking import Asking
from daggyr_server.driver.deposits import Deposits
from daggyr_server.driver.edit_plan import Plan, RunSnapshot, planned, planned_again
from daggyr_server.driver.ended import Reader
from daggyr_server.driver.errors import Refused
from daggyr_server.driver.replaced import encoded
from daggyr_server.spec import Faults, PoolLimits, Printed, RunSpec, check_tags, decode_json, listed

PLANS = 10  # of one edit, while the run goes on


class Editing:
    """Makes the edits of one coordinator's runs."""

    def __init__(self, reader: Reader, asking: Asking, deposits: Deposits, keep: Callable[[], Keeping]) -> None:
        """`keep` makes the lists that hold what tasks execute."""
        self._reader = reader
        self._asking = asking
        self._deposits = deposits
        self._keep = keep

    async def plan(self, run: Run, spec: RunSpec, *, pools: Mapping[str, PoolLimits], downstream: bool) -> Plan:
        """What giving a run another specification would do to it. Raises SpecificationError, Refused, TrackerError."""
        _check_tags(run, spec)
        snapshot = RunSnapshot.of(run)
        printed = await self._printed(run)
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

    async def repeat(self, run_id: int, numbers: Sequence[int], *, everything: bool) -> None:
        """Queue tasks again and all that depends on them, and take away what generators among these had made.

        This is an edit that brings the specification which the run has. `everything` also lets go on what a kill of the run left
        behind. Raises Refused, TrackerError, Closing.
        """
        deposits: list[int] = []
        await self._deposits.named(deposits, self._repeat(run_id, numbers, everything, deposits))

    async def _repeat(self, run_id: int, numbers: Sequence[int], everything: bool, deposits: list[int]) -> None:
        """As `repeat`. What is deposited for that is added to `deposits`."""
        for _ in range(PLANS):
            run = await self._reader.find(run_id)
            named = [run.graph.newest(number) for number in numbers] if run is not None else []
            document = await self._reader.document(run_id, run.specified_in) if run is not None else None
            if run is None or document is None or None in named:
                message = f"run {run_id} was edited meanwhile, or is being deleted: look at it again"
                raise Refused(Refusal(Reason.CONFLICT, message))
            edits, pool, snapshot = len(run.graph.edits), run.pool, RunSnapshot.of(run)
            printed = await self._printed(run)
            spec = await asyncio.to_thread(decode_json, document, limited=False)
            plan = await asyncio.to_thread(
                planned_again,
                snapshot,
                spec.with_overrides(pool=pool),
                printed,
                [number for number in named if number is not None],
                default_pool=pool,
                keep=self._keep,
            )
            replaced = await asyncio.to_thread(encoded, snapshot.graph, plan.edit.carry)
            deposits.append(deposit := await self._deposits.make(document))
            deposits.append(replaced_deposit := await self._deposits.make(replaced))
            try:
                await self._asking.ask(
                    EditAsked(
                        ticket=object(),
                        run_id=run_id,
                        edits=edits,
                        revision=snapshot.revision,
                        edit=plan.edit,
                        tags=run.tags,
                        pool=pool,
                        parameters=spec.run_parameters(),
                        document=b"" if deposit else document,
                        deposit=deposit,
                        replaced=b"" if replaced_deposit else replaced,
                        replaced_deposit=replaced_deposit,
                        again=plan.again,
                        everything=everything,
                        reason="retry",
                    )
                )
            except Refused as error:
                if error.refusal.reason not in (Reason.STALE, Reason.NOT_FOUND):
                    raise
            else:
                return
        raise Refused(Refusal(Reason.STALE, f"run {run_id} goes on too fast: ask again"))

    async def _printed(self, run: Run) -> list[Printed]:
        """What the run's generators printed whose tasks are part of it. Raises Refused, TrackerError."""
        found = []
        for revision, number in dict(run.printed).items():
            document = await self._reader.document(run.run_id, revision)
            if document is None:
                raise Refused(Refusal(Reason.NOT_FOUND, f"run {run.run_id} is being deleted"))
            found.append(Printed(revision, number, document))
        return found

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
        everything: bool = False,
        most: int,
    ) -> Plan:
        """Give a run another specification, of `most` tasks at most; returns the plan that was carried out, once it is durable.

        Without `remove`, an edit is refused that takes tasks away which ran or run. `edits` is how often the run had been edited
        when the caller looked at it; where it was edited since, the edit is refused. Raises SpecificationError, Refused,
        TrackerError, Closing.
        """
        deposits: list[int] = []
        edited = self._edited(
            *(run, spec, document, edits),
            pools=pools,
            downstream=downstream,
            remove=remove,
            everything=everything,
            most=most,
            deposits=deposits,
        )
        return await self._deposits.named(deposits, edited)

    async def _edited(
        self,
        run: Run,
        spec: RunSpec,
        document: bytes,
        edits: int,
        *,
        pools: Mapping[str, PoolLimits],
        downstream: bool,
        remove: bool,
        everything: bool,
        most: int,
        deposits: list[int],
    ) -> Plan:
        """As `edit`. What is deposited for that is added to `deposits`."""
        deposit: int | None = None
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
                deposits.append(replaced_deposit := await self._deposits.make(replaced))
                if deposit is None:
                    deposits.append(deposit := await self._deposits.make(document))
                await self._asking.ask(
                    EditAsked(
                        ticket=object(),
                        run_id=run.run_id,
                        edits=edits,
                        revision=plan.snapshot.revision,
                        edit=plan.edit,
                        tags={**run.tags, **(spec.tags or {})},
                        pool=spec.pool or run.pool,
                        parameters=spec.run_parameters(),
                        document=b"" if deposit else document,
                        deposit=deposit,
                        replaced=b"" if replaced_deposit else replaced,
                        replaced_deposit=replaced_deposit,
                        completed=plan.completed,
                        again=plan.again,
                        everything=everything,
                    )
                )
            except Refused as error:
                found = await self._reader.find(run.run_id)  # An ended run may have left memory, and is another object then.
                if attempt == PLANS or found is None or (error.refusal.reason is not Reason.STALE and found is run):
                    raise
                run = found
            else:
                return plan
        message = f"run {run.run_id} was edited meanwhile: it has revision {run.revision} now, look at it again"
        raise Refused(Refusal(Reason.CONFLICT, message))


def _check_tags(run: Run, spec: RunSpec) -> None:
    """Raise SpecificationError if the tags that a run has, and those that it would get, are too large together."""
    faults = Faults()
    check_tags({**run.tags, **(spec.tags or {})}, faults)
    faults.refuse_if_any()


def _would_remove(run_id: int, gone: list[str]) -> str:
    tasks, them = ("a task that ran or runs", "it") if len(gone) == 1 else (f"{len(gone):,} tasks that ran or run", "them")
    return (
        f"the specification does not have {tasks}: {listed(gone)}; an edit would take {them} away from run {run_id}. "
        "`daggyr edit --plan` tells what would happen, and with --remove it does"
    )
