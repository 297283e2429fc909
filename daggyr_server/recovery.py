"""A run as a tracker kept it, made ready for the machine: its graph is expanded again from its documents.

The driver calls this at its start for every run that has not ended, and later for ended ones that somebody asks about.
Expansion is deterministic, so task numbers are what they were. Nothing here changes the machine or the tracker.
"""

from __future__ import annotations

import asyncio

from daggyr_server.core.events import Adopted, RunRestored
from daggyr_server.core.graph import Addition, Graph
from daggyr_server.spec import SpecificationError, decode_json, expand, expand_generated
from daggyr_server.trackers.base import StoredRun, TrackerError


async def restored(stored: StoredRun) -> RunRestored:
    """The event that gives `stored` back to the machine; expansion runs in a thread.

    Raises TrackerError if the documents do not expand any more, which a damaged tracker or an older program would explain.
    """
    row = stored.row
    try:
        parameters, additions = await asyncio.to_thread(_additions, stored)
    except SpecificationError as error:
        raise TrackerError(
            f"run {row.run_id} cannot be restored, because its specification is refused now: {error}; "
            "was it stored by another version of daggyr?"
        ) from None
    tasks = stored.tasks
    return RunRestored(
        run_id=row.run_id,
        request_id=row.request_id,
        tags=row.tags,
        pool=row.pool,
        parameters=parameters,
        submit_time=row.submit_time,
        start_time=row.start_time,
        stop_time=row.stop_time,
        state=row.state,
        killing=row.killing,
        additions=additions,
        numbers=tasks.numbers,
        states=tasks.states,
        attempts=tasks.attempts,
        failures=tasks.failures,
        losses=tasks.losses,
        adopted=[
            Adopted(flight.number, flight.attempt, flight.host, flight.host_name, flight.assign_time)
            for flight in stored.in_flight
        ],
    )


def _additions(stored: StoredRun) -> tuple[dict[str, tuple[str, ...]], list[Addition]]:
    pool = stored.row.pool
    spec = decode_json(stored.document)
    parameters = spec.run_parameters()
    additions = [expand(spec.with_overrides(pool=pool), default_pool=pool)]
    graph = Graph()
    graph.extend(additions[0])
    for growth in stored.growths:
        if growth.number is None:
            raise TrackerError(f"run {stored.row.run_id} was edited by a newer version of daggyr: use that one")
        addition = expand_generated(
            growth.document,
            run_parameters=parameters,
            graph=graph,
            generator=growth.number,
            pools=None,
            default_pool=pool,
        )
        graph.extend(addition)
        additions.append(addition)
    return parameters, additions
