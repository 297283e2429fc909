"""What executors tell, on its way to the machine: the ear that each pool's executor gets, and its messages as the core's events.

The driver makes a `PoolReports` for each pool, and takes what it puts into the inbox. Nothing here waits or decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from daggyr.bounds import are_bounded, bounded_notes
from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_DRAINING, HOST_GONE, AttemptResult, AttemptUpdate, Host
from daggyr.v1.task_pb2 import LOST as LOST_OUTCOME
from daggyr_server.core.events import AttemptEnded, AttemptStarted, Event, HostChanged, HostGone
from daggyr_server.core.records import Record
from daggyr_server.core.states import Outcome
from daggyr_server.executors.believable import mended

_OUTCOMES = {int(outcome): outcome for outcome in Outcome}


class Reported:
    """A batch of updates from a pool's executor, as it waits in the inbox."""

    __slots__ = ("durable", "host", "pool", "updates")

    def __init__(self, pool: str, host: str, updates: Sequence[AttemptUpdate], durable: Callable[[], None]) -> None:
        self.pool = pool
        self.host = host
        self.updates = updates
        self.durable = durable


class ToKeep:
    """A record that changes nothing in the machine, as it waits in the inbox."""

    __slots__ = ("durable", "record")

    def __init__(self, record: Record, durable: Callable[[], None]) -> None:
        self.record = record
        self.durable = durable


class PoolReports:
    """The driver's ear for one pool; see executors.base.Reports."""

    def __init__(self, pool: str, put: Callable[[Event | Reported], None], *, mend: bool) -> None:
        """`mend`: what the executor tells was not checked where it came in, as agents' words are."""
        self._mend = mend
        self._pool = pool
        self._put = put

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
            )
        )

    def updates(self, host: str, updates: Sequence[AttemptUpdate], durable: Callable[[], None]) -> None:
        self._put(Reported(self._pool, host, mended(updates) if self._mend else updates, durable))


def event_of(update: AttemptUpdate) -> AttemptStarted | AttemptEnded | None:
    """What an update says of an attempt's course; None for output."""
    key = update.key
    run_id, number, attempt = key.run_id, key.task_number, key.attempt
    if update.HasField("finished"):
        result = update.finished
        notes = result.notes
        if notes and not are_bounded(notes):  # they name what people chose
            notes[:] = bounded_notes(notes)
        outcome = _OUTCOMES.get(result.outcome, Outcome.FAILED)  # an unknown outcome is no success
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
