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
from daggyr_server.core.graph.segments import Keeping, Kind
from daggyr_server.core.states import State
from daggyr_server.core.stored import Growth, StoredRun
from daggyr_server.driver.careful import unusable
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.lives import Lives
from daggyr_server.executors.base import Executor
from daggyr_server.spec import Printed, SpecificationError, decode_json, expand, expand_edit, expand_generated
from daggyr_server.trackers.base import DamagedRun, Tracker

log = logging.getLogger(__name__)

_STATES = frozenset(map(int, State))
FIRST_GROWTH = 2  # the revision of what comes after the specification as it was submitted
_PIECE_BYTES = 1024 * 1024


async def unfinished(tracker: Tracker, keep: Callable[[], Keeping]) -> tuple[list[RunRestored], list[DamagedRun]]:
    """The events that give every run that has not ended back to the machine, and those runs that are damaged; `keep` as in
    `restored`. Raises TrackerError."""
    events, damaged = [], []
    for run_id in await tracker.unfinished():
        try:
            stored = await tracker.load(run_id)
            if stored is not None:
                events.append(await restored(stored, keep))
        except DamagedRun as damage:
            damaged.append(damage)
    return events, damaged


async def go_on(
    runs: Collection[Run], executors: Mapping[str, Executor], generators: Generators, lives: Lives, tracker: Tracker
) -> list[HostGone]:
    """Give the attempts that an earlier coordinator placed to their pools' executors, which take them up again.

    Called once, when the machine has the runs and before anything is started. Returns the hosts whose pools are not configured
    any more: nobody can hear of them, so that their attempts are LOST. Raises TrackerError, ExecutorError.
    """
    placed: dict[tuple[str, str], list[tuple[AttemptKey, Placement]]] = {}
    for run in runs:
        for number, flight in run.in_flight.items():
            key = lives.key((run.run_id, flight.number, flight.attempt))
            placed.setdefault((flight.pool, flight.host), []).append((key, Placement(host=flight.host)))
            # An edit may have renumbered the task; what it was when it was assigned says whether it is a generator.
            if run.graph.policy(flight.number).is_generator and run.counts_for(number, flight):
                await _printed_before((run.run_id, flight.number, flight.attempt), generators, tracker)
    if runs:
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

    Raises DamagedRun if the documents do not expand any more, or do not fit the tasks, which a damaged tracker or an older
    program would explain.
    """
    row = stored.row
    try:
        grown = await asyncio.to_thread(_grown, stored, keep)
        _check_fit(stored, grown.graph)
    except DamagedRun:
        raise
    except SpecificationError as error:
        what = f"its specification is refused now: {error}; was it stored by another version of daggyr?"
        raise DamagedRun(row.run_id, what) from None
    except Exception as error:  # Nobody can list how a document fails that nobody wrote.
        raise DamagedRun(row.run_id, f"its documents make no graph: {type(error).__name__}: {error}") from None
    return RunRestored(
        row=row,
        tasks=stored.tasks,
        adopted=stored.in_flight,
        parameters=grown.parameters,
        growths=grown.growths,
        printed=grown.printed,
    )


def _check_fit(stored: StoredRun, graph: Graph) -> None:
    """Raises DamagedRun if something is recorded of a task that the graph does not have, or a state that is none."""
    run_id, tasks, size = stored.row.run_id, stored.tasks, graph.size
    missing = next((number for number, each in enumerate(stored.growths, FIRST_GROWTH) if each.revision != number), None)
    if missing is not None:
        raise DamagedRun(run_id, f"its revision {missing} is missing")
    numbers = [*tasks.numbers[-1:], *(sent.number for sent in stored.in_flight[-1:])]  # Both ascend.
    if numbers and max(numbers) >= size:
        raise DamagedRun(run_id, f"it has {size} tasks, and an attempt of number {max(numbers)}")
    strange = set(tasks.states) - _STATES
    if strange:
        raise DamagedRun(run_id, f"a task has the state {min(strange)}, which is none")
    for sent in stored.in_flight:
        if graph.kind(sent.number) is not Kind.TASK:
            raise DamagedRun(run_id, f"task number {sent.number}, which runs nothing, has an attempt in flight")


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
            raise DamagedRun(stored.row.run_id, "a generator of it was edited away before it ended")
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
        grown.printed[growth.revision] = generator
    return grown


def _edit_again(grown: _Grown, growth: Growth, documents: Mapping[int, bytes], keep: Callable[[], Keeping]) -> None:
    spec = decode_json(growth.document, limited=False).with_overrides(pool=growth.pool)
    printed = [Printed(revision, grown.printed[revision], documents[revision]) for revision in growth.kept]
    edit = expand_edit(
        spec, graph=grown.graph, printed=printed, pools=None, default_pool=growth.pool, keep=keep, limited=False
    ).edit
    grown.graph.retire(edit.carry)
    for addition in edit.additions:
        grown.graph.extend(addition)
    grown.parameters = spec.run_parameters()
    grown.growths.append(edit)
    grown.printed = edit.printed_after(grown.printed)
