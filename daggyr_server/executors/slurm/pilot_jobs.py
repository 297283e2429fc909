"""What a pool knows of its pilots as jobs: which wait, start, have joined or ended, and why; and how many more there is work for.

`pilots.py` tells it of each answer of Slurm, and reads from it what to submit, what to cancel and what to tell people. Nothing
here asks Slurm or reads a file. Times are monotonic, so that no clock of a node matters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from daggyr.backoff import Backoff
from daggyr_server.executors.base import Wanted
from daggyr_server.executors.slurm.client import ENDED_STATES, JobStatus

SHORTEST_PAUSE, LONGEST_PAUSE = 5.0, 600.0  # seconds before another pilot is tried, after one that never joined
_MOST_ENDED = 3  # pilots that ended, of which people are told
_MOST_NAMED = 3


@dataclass(slots=True)
class Pilot:
    """One job that runs an agent."""

    job_id: str
    state: str
    reason: str
    node: str
    since: float  # when it was first seen in this state
    joined: bool = False  # its agent has come

    @property
    def name(self) -> str:
        """What its agent is called."""
        return f"pilot-{self.job_id}"

    @property
    def doing(self) -> str:
        """What people are told of it before its agent has joined."""
        if self.state == "RUNNING":
            return f"runs on {self.node or 'its node'}, and its agent has not joined yet"
        return f"waits in Slurm: {self.reason if self.reason not in ('', 'None') else self.state}"


@dataclass(slots=True)
class Place:
    """What a pilot has free, and for how many more seconds it is there; None if nobody knows of a limit."""

    free: dict[str, int]
    seconds: float | None


class PilotJobs:
    """The pilots of one pool."""

    def __init__(self) -> None:
        self.there: dict[str, Pilot] = {}  # by job id; those that have not ended
        self.never_joined: list[Pilot] = []  # ended without having joined, since this was last emptied
        self.trouble = ""  # why pilots do not join, if that is so
        self.not_before = 0.0  # no pilot is submitted earlier
        self._ended: deque[str] = deque(maxlen=_MOST_ENDED)
        self._backoff = Backoff(SHORTEST_PAUSE, LONGEST_PAUSE)

    def update(self, statuses: Iterable[JobStatus], connected: Collection[str], now: float) -> None:
        """Take Slurm's answer. `connected` are the names of the agents that the pool knows."""
        seen = {status.job_id: status for status in statuses}
        for job_id, status in seen.items():
            pilot = self.there.get(job_id)
            if status.state in ENDED_STATES:
                if pilot is not None:
                    self._end(pilot, status)
                continue
            if pilot is None:
                pilot = self.there[job_id] = Pilot(job_id, status.state, status.reason, status.node, now)
            elif pilot.state != status.state:
                pilot.state, pilot.since = status.state, now
            pilot.reason, pilot.node = status.reason, status.node
            if pilot.name in connected and not pilot.joined:
                pilot.joined = True
                self.trouble, self.not_before = "", 0.0
                self._backoff.reset()
        for job_id in self.there.keys() - seen.keys():
            self._end(self.there[job_id], None)

    def _end(self, pilot: Pilot, status: JobStatus | None) -> None:
        del self.there[pilot.job_id]
        how = "is not known to Slurm any more" if status is None else f"has ended: {status.state}"
        reason = f" ({status.reason})" if status is not None and status.reason not in ("", "None") else ""
        if status is None or status.state not in ("COMPLETED", "CANCELLED"):
            self._ended.append(f"{pilot.name} {how}{reason}")
        if not pilot.joined and (status is None or status.state != "CANCELLED"):
            self.never_joined.append(pilot)

    def in_vain(self, seconds: float, connected: Collection[str], now: float) -> list[Pilot]:
        """Those that run for longer than this, and whose agents have not come, or are given up."""
        return [
            pilot
            for pilot in self.there.values()
            if pilot.state == "RUNNING" and pilot.name not in connected and now >= pilot.since + seconds
        ]

    def failed(self, why: str, now: float) -> float:
        """Note that pilots ended, or are ended, without having joined. Returns the pause before the next one, in seconds."""
        pause = self._backoff.next()
        self.not_before = now + pause
        self.trouble = why
        return pause

    def notes(self, connected: Collection[str]) -> Iterator[str]:
        """What people are told of the pilots that do no work: sentences without a full stop."""
        waiting = [pilot for pilot in self.there.values() if pilot.state != "RUNNING"]
        for pilot in waiting[:_MOST_NAMED]:
            yield f"{pilot.name} {pilot.doing}"
        if len(waiting) > _MOST_NAMED:
            yield f"{len(waiting) - _MOST_NAMED} more pilots wait in Slurm"
        starting = [pilot for pilot in self.there.values() if pilot.state == "RUNNING" and pilot.name not in connected]
        for pilot in starting[:_MOST_NAMED]:
            yield f"{pilot.name} {pilot.doing}"
        yield from self._ended
        if self.trouble:
            yield self.trouble


def missing_pilots(
    wanted: Iterable[Wanted], size: Mapping[str, int], lasts: float | None, there: Sequence[Place], most: int
) -> int:
    """How many more pilots of this size, which last for so many seconds, `wanted` has use for beside those that are there."""
    places = [Place(dict(place.free), place.seconds) for place in there]
    known = len(places)
    fit = [each for each in wanted if fits(each, size, lasts)]
    for kind in sorted(fit, key=lambda kind: max((units / size[name] for name, units in kind.needs), default=0.0), reverse=True):
        left = kind.count
        for place in places:
            left -= _put(kind, left, place)
        while left > 0 and len(places) - known < most:
            place = Place(dict(size), lasts)
            places.append(place)
            left -= _put(kind, left, place)
    return len(places) - known


def fits(kind: Wanted, size: Mapping[str, int], lasts: float | None) -> bool:
    """Whether a new pilot could carry out a task of this kind."""
    return (lasts is None or kind.seconds < lasts) and all(units <= size.get(name, 0) for name, units in kind.needs)


def misfits(wanted: Iterable[Wanted], size: Mapping[str, int], lasts: float | None) -> Iterator[str]:
    """Tell of tasks for which no pilot is submitted, because none could carry them out."""
    has = ", ".join(f"{name}={units}" for name, units in size.items())
    for kind in wanted:
        if fits(kind, size, lasts):
            continue
        count = f"{kind.count:,} {'task' if kind.count == 1 else 'tasks'}"
        if any(units > size.get(name, 0) for name, units in kind.needs):
            needs = ", ".join(f"{name}={units}" for name, units in kind.needs)
            need = "needs" if kind.count == 1 else "need"
            yield f"no pilot is submitted for {count} that {need} {needs}: a pilot has {has}"
        else:
            yield (
                f"no pilot is submitted for {count} that may take {kind.seconds:,.4g} s (by timeout, or the mean of those "
                f"before): a pilot has {lasts:,.4g} s for a task"
            )


def _put(kind: Wanted, count: int, place: Place) -> int:
    """Put as many tasks of a kind into a place as fit, and return how many."""
    if place.seconds is not None and kind.seconds >= place.seconds:
        return 0
    count = max(0, min([count, *(place.free.get(name, 0) // units for name, units in kind.needs)]))
    for name, units in kind.needs:
        place.free[name] = place.free.get(name, 0) - count * units
    return count
