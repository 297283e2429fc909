"""Runs as a tracker kept them, made ready for the machine, and the attempts that an earlier coordinator had placed.

The loop calls this at its start for every run that has not ended; the read side asks for ended ones that somebody looks at. A
run's graph is expanded again from its documents. Expansion is deterministic, so that task numbers are what they were. Nothing
here changes the machine or the tracker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from daggyr.v1.task_pb2 import LOST, STDOUT, AttemptKey, AttemptResult, Placement
from daggyr_server.core.commands import Key
from daggyr_server.core.events import HostGone, RunRestored
from daggyr_server.core.graph.graph import Addition, Edit, Graph
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.stored import Growth, StoredRun
from daggyr_server.driver.careful import unusable
from daggyr_server.driver.generators import Generators
from daggyr_server.executors.base import Executor
from daggyr_server.spec import Printed, SpecificationError, decode_json, expand, expand_edit, expand_generated
from daggyr_server.trackers.base import Tracker, TrackerError

log = logging.getLogger(__name__)

_PIECE_BYTES = 1024 * 1024


async def unfinished(tracker: Tracker, keep: Callable[[], Keeping]) -> list[RunRestored]:
    """The events that give every run that has not ended back to the machine; `keep` as in `restored`. Raises TrackerError."""
    events = []
    for run_id in await tracker.unfinished():
        stored = await tracker.load(run_id)
        if stored is not None:
            events.append(await restored(stored, keep))
    return events


async def go_on(
    runs: Collection[Run], executors: Mapping[str, Executor], generators: Generators, tracker: Tracker
) -> list[HostGone]:
    """Give the attempts that an earlier coordinator placed to their pools' executors, which take them up again.

    Called once, when the machine has the runs and before anything is started. Returns the hosts whose pools are not configured
    any more: nobody can hear of them, so that their attempts are LOST. Raises TrackerError, ExecutorError.
    """
    placed: dict[tuple[str, str], list[tuple[AttemptKey, Placement]]] = {}
    for run in runs:
        for number, flight in run.in_flight.items():
            key = AttemptKey(run_id=run.run_id, task_number=flight.number, attempt=flight.attempt)
            placed.setdefault((flight.pool, flight.host), []).append((key, Placement(host=flight.host)))
            # An edit may have renumbered the task; what it was when it was assigned says whether it is a generator.
            if run.graph.policy(flight.number).is_generator and run.counts_for(number, flight):
                await _printed_before((run.run_id, flight.number, flight.attempt), generators, tracker)
    log.info("going on with %d runs, %d attempts of which may still run", len(runs), sum(map(len, placed.values())))
    for pool, executor in executors.items():
        try:
            executor.recover([pair for (name, _), pairs in placed.items() if name == pool for pair in pairs])
        except Exception as error:
            raise unusable(pool, "take up what ran before", error) from error
    gone = []
    for pool, host in placed:
        if pool not in executors:
            result = AttemptResult(outcome=LOST, notes=[f"the pool {pool} is not configured any more"])
            gone.append(HostGone(pool=pool, host=host, result=result))
    return gone


async def _printed_before(key: Key, generators: Generators, tracker: Tracker) -> None:
    """Begin with what of a generator's output an earlier coordinator made durable, because that does not come again."""
    generators.begin(key)
    offset = 0
    while pieces := await tracker.output(*key, STDOUT, offset, _PIECE_BYTES):
        for piece in pieces:
            generators.keep(key, STDOUT, piece.offset, piece.data)
            offset = piece.offset + len(piece.data)


async def restored(stored: StoredRun, keep: Callable[[], Keeping]) -> RunRestored:
    """The event that gives `stored` back to the machine; expansion runs in a thread. `keep` makes the lists of
    what tasks execute.

    Raises TrackerError if the documents do not expand any more, which a damaged tracker or an older program would explain.
    """
    row = stored.row
    try:
        grown = await asyncio.to_thread(_grown, stored, keep)
    except SpecificationError as error:
        raise TrackerError(
            f"run {row.run_id} cannot be restored, because its specification is refused now: {error}; "
            "was it stored by another version of daggyr?"
        ) from None
    return RunRestored(
        row=row,
        tasks=stored.tasks,
        adopted=stored.in_flight,
        stopped=stored.stopped,
        parameters=grown.parameters,
        growths=grown.growths,
        printed=grown.printed,
    )


@dataclass(slots=True)
class _Grown:
    """A run's graph, made again step by step."""

    graph: Graph
    parameters: dict[str, tuple[str, ...]]
    growths: list[Addition | Edit]
    printed: dict[int, int]  # revision -> the generator, by now, of the tasks that came then and are still there


def _grown(stored: StoredRun, keep: Callable[[], Keeping]) -> _Grown:
    pool = stored.pool
    spec = decode_json(stored.document, limited=False)
    first = expand(spec.with_overrides(pool=pool), default_pool=pool, keep=keep, limited=False)
    grown = _Grown(Graph(), spec.run_parameters(), [first], {})
    grown.graph.extend(first)
    documents = {growth.revision: growth.document for growth in stored.growths}
    for growth in stored.growths:
        if growth.number is None:
            pool = growth.pool
            _edit_again(grown, growth, documents, keep)
            continue
        generator = grown.graph.newest(growth.number)
        if generator is None:
            raise TrackerError(f"run {stored.row.run_id} cannot be restored: a generator of it was edited away before it ended")
        addition = expand_generated(
            growth.document,
            run_parameters=grown.parameters,
            graph=grown.graph,
            generator=generator,
            pools=None,
            default_pool=pool,
            keep=keep,
            limited=False,
        )
        grown.graph.extend(addition)
        grown.growths.append(addition)
        if addition.segments:
            grown.printed[growth.revision] = generator
    return grown


def _edit_again(grown: _Grown, growth: Growth, documents: Mapping[int, bytes], keep: Callable[[], Keeping]) -> None:
    spec = decode_json(growth.document, limited=False).with_overrides(pool=growth.pool)
    printed = [
        Printed(revision, grown.printed[revision], documents[revision]) for revision in growth.kept if revision in grown.printed
    ]
    edit = expand_edit(
        spec, graph=grown.graph, printed=printed, pools=None, default_pool=growth.pool, keep=keep, limited=False
    ).edit
    grown.graph.retire(edit.carry)
    for addition in edit.additions:
        grown.graph.extend(addition)
    grown.parameters = spec.run_parameters()
    grown.growths.append(edit)
    grown.printed = edit.printed_after(grown.printed)
