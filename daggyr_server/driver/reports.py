"""What executors tell, on its way to the machine: the contract's messages as the core's events.

The loop makes a `PoolReports` for each pool's executor, which puts what the executor tells into the inbox; when the loop takes it
out, it asks `event_of` what an update means. Nothing here waits or decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from daggyr.attempts.times import seconds_of
from daggyr.bounds import are_bounded, bounded_notes
from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_DRAINING, HOST_GONE, AttemptResult, AttemptUpdate, Host, KindLimit
from daggyr.v1.task_pb2 import LOST as LOST_OUTCOME
from daggyr_server.core.events import AttemptEnded, AttemptStarted, HostChanged, HostGone
from daggyr_server.core.graph.ready import TaskKind
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.states import Outcome
from daggyr_server.driver.inbox import Inbox, Reported
from daggyr_server.executors.base import Wanted
from daggyr_server.executors.believable import mended

_UNKNOWN_FAULT = "it is at fault, and does not say why"
_OUTCOMES = {int(outcome): outcome for outcome in Outcome}


class PoolReports:
    """The `Reports` (executors.base) of one pool."""

    def __init__(self, pool: str, inbox: Inbox, placing: Pool, *, mend: bool) -> None:
        """`mend` is for executors that do not check by themselves what they are told; sessions check what agents tell."""
        self._mend = mend
        self._pool = pool
        self._put = inbox.report
        self._placing = placing  # read only

    def host(self, host: Host) -> None:
        if host.state == HOST_GONE:
            result = AttemptResult(outcome=LOST_OUTCOME, notes=[f"its host {host.name} went away"])
            self._put(HostGone(pool=self._pool, host=host.host, result=result))
            return
        self._put(
            HostChanged(
                pool=self._pool,
                host=host.host,
                name=host.name,
                resources=dict(host.resources),
                open=host.state == HOST_AVAILABLE,
                ahead=host.takes_ahead,
                draining=host.state == HOST_DRAINING,
                fault=(host.fault.reason or _UNKNOWN_FAULT) if host.HasField("fault") else "",
                pause=seconds_of(host.fault.pause) if host.fault.HasField("pause") else None,
                keeps=host.fault.keeps,
                shortage=host.shortage,
                limits={_kind(limit): (limit.room, limit.reason) for limit in host.limits},
                ends=seconds_of(host.ends_in) if host.HasField("ends_in") else None,
            )
        )

    def wanted(self) -> list[Wanted]:
        return [Wanted(*kind) for kind in self._placing.wanted()]

    def updates(self, host: str, updates: Sequence[AttemptUpdate], durable: Callable[[], None]) -> None:
        self._put(Reported(mended(updates) if self._mend else updates, durable))


def _kind(limit: KindLimit) -> TaskKind:
    needs = tuple(sorted((name, units) for name, units in limit.resources.items() if units))
    return TaskKind(needs, limit.timeout.ToNanoseconds())


def event_of(update: AttemptUpdate) -> AttemptStarted | AttemptEnded | None:
    """What an update says of an attempt's course; None for output, and for kinds of updates that only a later version knows."""
    key = update.key
    run_id, number, attempt = key.run_id, key.task_number, key.attempt
    if update.HasField("finished"):
        result = update.finished
        notes = result.notes
        if notes and not are_bounded(notes):  # Notes hold names and paths that people chose, of any length.
            notes[:] = bounded_notes(notes)
        outcome = _OUTCOMES.get(result.outcome, Outcome.FAILED)  # An outcome that only a later version knows is no success.
        start = result.start_time
        seconds = None
        if begun := start.seconds:
            stop = result.stop_time
            seconds = max(0.0, stop.seconds - begun + (stop.nanos - start.nanos) / 1e9)
        return AttemptEnded(run_id, number, attempt, outcome, seconds, result)
    if update.HasField("started"):
        start = update.started.start_time
        return AttemptStarted(run_id, number, attempt, start.seconds + start.nanos / 1e9)
    return None
