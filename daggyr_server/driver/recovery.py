"""Runs as a tracker kept them, made ready for the machine, and the attempts that an earlier coordinator had placed.

`MissingRuns` calls this at the start for every run that has not ended; the read side asks for ended ones that somebody looks at.
How a run's graph is made again stands in growing.py. Nothing here changes the machine or the tracker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from daggyr.v1.task_pb2 import LOST, STDOUT, AttemptKey, AttemptResult, Placement
from daggyr_server.core.events import HostGone, RunRestored
from daggyr_server.core.graph.restore import Restored, restored
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.moment import Moment
from daggyr_server.core.states import State
from daggyr_server.core.stored import Adopted, StoredRun
from daggyr_server.driver.careful import unusable
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.growing import Grown
from daggyr_server.driver.lives import Lives
from daggyr_server.driver.replaced import Unreadable
from daggyr_server.executors.base import Executor
from daggyr_server.spec import SpecificationError
from daggyr_server.trackers.base import DamagedRun, Tracker, TrackerError

log = logging.getLogger(__name__)

_STATES = frozenset(map(int, State))
FIRST_GROWTH = 2  # the revision of what comes after the specification as it was submitted
_PIECE_BYTES = 1024 * 1024


def go_on(runs: Iterable[Run], executors: Mapping[str, Executor], lives: Lives) -> list[HostGone]:
    """Give the attempts that an earlier coordinator placed to their pools' executors, which take them up again.

    Called once, when the machine has the runs and before anything is started. Returns the hosts whose pools are not configured
    any more: nobody can hear of them, so that their attempts are LOST. Raises ExecutorError.
    """
    placed: dict[tuple[str, str], list[tuple[AttemptKey, Placement]]] = {}
    for run in runs:
        for flight in run.in_flight.values():
            key = lives.key((run.run_id, flight.number, flight.attempt))
            placed.setdefault((flight.pool, flight.host), []).append((key, Placement(host=flight.host)))
    # Executors look for what is nobody's even if nothing is in flight: this tracker may be a copy from before.
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


async def take_printed(run: Run, generators: Generators, tracker: Tracker) -> None:
    """Begin with what of its generators' output an earlier coordinator made durable, because that does not come again.

    Nobody changes the run meanwhile. Raises TrackerError.
    """
    for number, flight in run.in_flight.items():
        # An edit may have renumbered the task; what it was when it was assigned says whether it is a generator.
        if not run.graph.policy(flight.number).is_generator or not run.counts_for(number, flight):
            continue
        key = (run.run_id, flight.number, flight.attempt)
        generators.begin(key)
        offset = 0
        while pieces := await tracker.output(*key, STDOUT, offset, _PIECE_BYTES):
            for piece in pieces:
                generators.keep(key, STDOUT, piece.offset, piece.data)
                offset = piece.offset + len(piece.data)


class Recovered(NamedTuple):
    """A run that comes back."""

    event: RunRestored
    adopted: Sequence[Adopted]  # its attempts in flight


async def recovered(run_id: int, tracker: Tracker, keep: Callable[[], Keeping], now: Moment) -> Recovered | None:
    """What gives a run back to the machine; None for a run that the tracker does not know. It is made in a thread. `keep` makes
    the lists of what tasks execute.

    Raises TrackerError; it is DamagedRun if the documents do not expand any more, or do not fit the tasks, which a damaged
    tracker or an older program would explain.
    """
    stored = await tracker.load(run_id)
    if stored is None:
        return None
    try:
        try:
            run, ending = await asyncio.to_thread(_made_again, stored, keep, now)
        except Unreadable as error:
            log.warning("run %d is restored from all its documents: what is kept beside them is of no use: %s", run_id, error)
            run, ending = await asyncio.to_thread(_made_again, await _with_documents(stored, tracker), keep, now)
    except TrackerError:
        raise
    except SpecificationError as error:
        what = f"its specification is refused now: {error}; was it stored by another version of daggyr?"
        raise DamagedRun(run_id, what) from None
    except Exception as error:  # Nobody can list how rows fail that nobody wrote.
        raise DamagedRun(run_id, f"its rows make no run: {type(error).__name__}: {error}") from None
    return Recovered(RunRestored(request_id=stored.row.request_id, run=run, ending=ending), stored.in_flight)


def _check_fit(stored: StoredRun) -> None:
    """Raises DamagedRun if a revision is missing, or a task has a state that is none: neither would make another error."""
    run_id = stored.row.run_id
    missing = next((number for number, each in enumerate(stored.growths, FIRST_GROWTH) if each.revision != number), None)
    if missing is not None:
        raise DamagedRun(run_id, f"its revision {missing} is missing")
    strange = set(stored.tasks.states) - _STATES
    if strange:
        raise DamagedRun(run_id, f"a task has the state {min(strange)}, which is none")


async def _with_documents(stored: StoredRun, tracker: Tracker) -> StoredRun:
    """The same with all its documents, and with nothing that stands for them."""
    run_id = stored.row.run_id
    return replace(
        stored,
        document=await tracker.document(run_id) or b"",
        growths=[replace(one, document=await tracker.document(run_id, one.revision) or b"") for one in stored.growths],
        replaced={},
    )


def _made_again(stored: StoredRun, keep: Callable[[], Keeping], now: Moment) -> Restored:
    grown = Grown(stored, keep)
    _check_fit(stored)
    return restored(
        stored.row,
        stored.tasks,
        stored.in_flight,
        parameters=grown.parameters,
        growths=grown.growths,
        stopped=stored.stopped,
        revision=len(stored.growths) + 1,
        specified_in=max((growth.revision for growth in stored.growths if growth.number is None), default=0),
        printed=grown.printed,
        now=now,
    )
