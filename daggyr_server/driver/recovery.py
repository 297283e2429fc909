"""A run as a tracker kept it, made ready for the machine: its graph is expanded again from its documents.

The driver calls this at its start for every run that has not ended, and later for ended ones that somebody asks about.
Expansion is deterministic, so task numbers are what they were. Nothing here changes the machine or the tracker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from daggyr_server.core.events import RunRestored
from daggyr_server.core.graph.graph import Addition, Edit, Graph
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.stored import Growth, StoredRun
from daggyr_server.spec import Printed, SpecificationError, decode_json, expand, expand_edit, expand_generated
from daggyr_server.trackers.base import TrackerError


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
