"""Makes a tracker that was brought back another tracker, so that nothing of its former life is taken for its own.

`daggyr-server restore` calls `begin` with an opened tracker that no coordinator has. The tracker gets another id: agents
and hosts end what they have of the former one. Its run ids go on beyond all that the former life can have given out since the
copy was made. Attempts in flight are LOST, and the machine says what follows from that, as it does when a host is gone: nearly
always, their tasks are queued again. Nothing runs here, and no executor is asked.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from daggyr.v1.task_pb2 import LOST, AttemptResult
from daggyr_server.core.events import HostGone, RunRestored
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.machine import Machine
from daggyr_server.core.moment import Moment
from daggyr_server.driver import recovery
from daggyr_server.trackers.base import DamagedRun, Opened
from daggyr_server.trackers.sql.tracker import SqlTracker

IDS_LEFT_OUT = 1_000_000  # however young a copy seems to be: a burst of runs, and a clock that is behind
IDS_A_SECOND = 20  # runs that a life can have given out for long
STARTS_A_DAY = 10_000  # that a life can have had: hosts take no orders of a start below one that they have seen
_DAY = 86_400  # seconds
_NO_SIGN_DAYS = 1_000  # where nothing tells how old a copy is


@dataclass(slots=True)
class AnotherLife:
    """What was done."""

    former_id: str
    tracker_id: str
    next_run_id: int
    seconds: float | None  # since the former life's last sign; None if nothing tells
    runs: int = 0  # that had not ended
    lost: int = 0  # attempts that were in flight
    damaged: dict[int, str] = field(default_factory=dict)  # by run id, why it was left alone


async def begin(tracker: SqlTracker, opened: Opened, keep: Callable[[], Keeping], now: Moment) -> AnotherLife:
    """Make an opened tracker another one, as of `now`. Raises TrackerError.

    If it is interrupted, it may be called again: that makes yet another tracker.
    """
    last = await tracker.last_sign()
    age = max(0.0, now.wall - last) if last is not None else None
    assumed = age if age is not None else _NO_SIGN_DAYS * _DAY
    life = AnotherLife(opened.tracker_id, secrets.token_hex(16), ids_after(opened.next_run_id, assumed), age)
    starts = math.ceil(max(1.0, assumed) / _DAY) * STARTS_A_DAY
    # The id comes first: whoever finds the tracker between the two commits already knows that nothing in flight is its own.
    await tracker.begin_another_life(life.tracker_id, opened.epoch + starts, life.next_run_id)
    machine = Machine((), next_run_id=life.next_run_id)
    found: list[RunRestored] = []
    for run_id in await tracker.unfinished():
        try:
            one = await recovery.recovered(run_id, tracker, keep, now)
            if one is not None:
                found.append(one.event)
        except DamagedRun as damage:
            life.damaged[run_id] = str(damage)
    records = machine.handle(now, found).records
    placed: dict[tuple[str, str], None] = {}
    for run in machine.runs.values():
        life.runs += 1
        life.lost += len(run.in_flight)
        placed.update(dict.fromkeys((flight.pool, flight.host) for flight in run.in_flight.values()))
    note = "it was in flight when the tracker was copied, or was later; the copy was restored as another life of the tracker"
    result = AttemptResult(outcome=LOST, notes=[note])
    gone = [HostGone(pool=pool, host=host, result=result) for pool, host in placed]
    await tracker.commit([*records, *machine.handle(now, gone).records])
    return life


def ids_after(next_run_id: int, seconds: float) -> int:
    """The first id that no former life can have given out, where the copy's `next_run_id` is so many seconds old.

    The one that was copied is not the only one: a copy may be restored, and an hour later restored again. So the ids of a life
    that begins later are higher. They begin after a whole hundred, so that people see where.
    """
    return math.ceil((next_run_id - 1 + IDS_LEFT_OUT + IDS_A_SECOND * seconds) / 100) * 100 + 1
