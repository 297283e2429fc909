"""A host of a pool: what it has, what attempts there need of it, and how many more may be sent.

An attempt of a queue that is known to be short counts for a part of its units only, so that a host that queues attempts by
itself gets more than fits and its slots never wait for a round trip. The part is its weight, of WHOLE: with a mean of m seconds
m / (m + AHEAD_SECONDS), which fills a host with what runs and AHEAD_SECONDS of work behind it. Attempts of unknown length, those
that take LONG or more, and all on hosts that queue nothing count whole: they are firm.

Another attempt fits if it could run beside the firm ones and the host is not full by weight. So nothing is sent to wait behind
long attempts, and a long attempt is not kept out by a stream of short ones, each of which takes what little has just come free.

A host may limit kinds of tasks: it then takes so many more attempts of that kind, none perhaps, and all others as before.
That is how an executor hands on what a scheduler behind it refuses for now (quotas of a site), so that it blocks nobody else.

The pool alone changes a host; whoever shows hosts to people reads it. Nothing here chooses between hosts or moves a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from daggyr_server.core.graph.ready import ReadyQueue, TaskKind

AHEAD_SECONDS = 0.1
LONG = 1.0  # seconds
WHOLE = 10_000
MAX_IN_FLIGHT = 6_000  # attempts a host, however little they need and however short they are

Needs = tuple[tuple[str, int], ...]


class Use:
    """What attempts need of one resource of a host."""

    __slots__ = ("firm", "units", "weighed")

    def __init__(self) -> None:
        self.units = 0  # units of all attempts
        self.firm = 0  # units of the attempts that count whole
        self.weighed = 0  # units times weight of all attempts


NOTHING = Use()


class Pause(NamedTuple):
    """Why a host that is there is given nothing for now, as a part of a sentence, and until when, if that is known."""

    reason: str
    until: float | None  # a steady time


class Limit:
    """How many more attempts of one kind a host takes for now, and why, as a part of a sentence."""

    __slots__ = ("reason", "room")

    def __init__(self, room: int, reason: str) -> None:
        self.room = room
        self.reason = reason


class Host:
    """Somewhere to run attempts. Public attributes are for reading, by others than the pool."""

    __slots__ = (
        "ahead",
        "draining",
        "expected",
        "host",
        "in_flight",
        "limits",
        "most",
        "name",
        "offered",
        "open",
        "own_pause",
        "pause",
        "reserved",
        "resources",
        "shortage",
        "until",
        "uses",
    )

    def __init__(self, host: str, name: str, resources: Mapping[str, int], *, ahead: bool) -> None:
        self.host = host
        self.name = name
        self.resources = dict(resources)
        self.ahead = ahead  # queues attempts by itself
        self.offered = True  # its executor says that it takes attempts
        self.open = True  # takes attempts: it is offered, and is not paused
        self.own_pause: Pause | None = None  # its executor says that it is at fault
        self.pause: Pause | None = None  # this one, or what the pool itself has found out; None if it is not at fault
        self.until: float | None = None  # the steady time when it goes away by itself, if it has a time limit
        self.limits: dict[TaskKind, Limit] = {}  # of kinds of which it takes few or none for now
        self.shortage = ""  # why it offers less than it was meant to, for people
        self.most = MAX_IN_FLIGHT  # attempts at a time; 1 while the host is in doubt
        self.draining = False
        self.in_flight = 0
        self.uses: dict[str, Use] = {}
        self.expected = False  # it was never here, but attempts that an earlier coordinator sent may be with it
        self.reserved: ReadyQueue | None = None  # kept for this queue's first task

    @property
    def load(self) -> dict[str, int]:
        """Units that the attempts here need together, those sent ahead included."""
        return {name: use.units for name, use in self.uses.items() if use.units}

    def could_hold(self, needs: Needs) -> bool:
        """Whether an attempt with `needs` fits when the host is empty."""
        return all(self.resources.get(name, 0) >= units for name, units in needs)

    def takes(self, kind: TaskKind) -> bool:
        """Whether the host takes tasks of a kind now."""
        limit = self.limits.get(kind)
        return limit is None or limit.room > 0

    def lasts(self, queue: ReadyQueue, now: float) -> bool:
        """Whether the host is there for as long as an attempt of `queue` may take."""
        return self.until is None or now + queue.seconds < self.until

    def weight(self, queue: ReadyQueue) -> int:
        """What an attempt of `queue` counts for here, of WHOLE."""
        mean = queue.mean_seconds
        if not self.ahead or mean is None or mean >= LONG:
            return WHOLE
        return max(1, int(WHOLE * mean / (mean + AHEAD_SECONDS)))

    def free(self, needs: Needs, queue: ReadyQueue) -> tuple[int, int]:
        """How many attempts of `queue` would start here at once, and how much is free for them by weight, of WHOLE each.

        Both are 0 if none may be sent.
        """
        idle = self.most - self.in_flight if self.open else 0
        if self.limits and (limit := self.limits.get(queue.wants.kind)) is not None:
            idle = min(idle, limit.room)
        spare = idle * WHOLE
        held = self._held(queue)
        for name, units in needs:
            total = self.resources.get(name, 0) - held.get(name, 0)
            use = self.uses.get(name, NOTHING)
            if use.firm + units > total:
                return 0, 0
            idle = min(idle, (total - use.units) // units)
            # Rounded up: what is free at all may be taken, however short of a slot it is.
            spare = min(spare, -((use.weighed - total * WHOLE) // units))
        return (max(0, idle), spare) if spare > 0 else (0, 0)

    def room(self, needs: Needs, queue: ReadyQueue, weight: int) -> int:
        """How many attempts of `queue`, which count `weight` each, may be sent now."""
        _, spare = self.free(needs, queue)
        room = min(self.most - self.in_flight, -(-spare // weight))
        if self.limits and (limit := self.limits.get(queue.wants.kind)) is not None:
            room = min(room, limit.room)
        return min(room, self.slots(needs, queue)) if weight == WHOLE else room

    def slots(self, needs: Needs, queue: ReadyQueue, without: Mapping[str, int] | None = None) -> int:
        """How many attempts with `needs` could run beside the firm ones. `without` are units of firm ones that are left out."""
        held = self._held(queue)
        slots = MAX_IN_FLIGHT if self.takes(queue.wants.kind) else 0
        for name, units in needs:
            firm = self.uses.get(name, NOTHING).firm - (without or {}).get(name, 0)
            slots = min(slots, (self.resources.get(name, 0) - held.get(name, 0) - firm) // units)
        return max(0, slots)

    def _held(self, queue: ReadyQueue) -> Mapping[str, int]:
        return dict(self.reserved.policy.needs) if self.reserved is not None and self.reserved is not queue else {}

    def take(self, needs: Needs, weight: int, count: int) -> None:
        """Count attempts in."""
        self.in_flight += count
        for name, units in needs:
            use = self.uses.get(name)
            if use is None:
                use = self.uses[name] = Use()
            use.units += units * count
            use.weighed += units * weight * count
            if weight == WHOLE:
                use.firm += units * count

    def use_up(self, kind: TaskKind, count: int) -> None:
        """Attempts of a kind were sent, which the host may have limited. It tells a new limit when it has room for others."""
        limit = self.limits.get(kind)
        if limit is not None:
            limit.room -= count

    def give(self, needs: Needs, weight: int) -> None:
        """Count an attempt out."""
        self.in_flight -= 1
        for name, units in needs:
            use = self.uses[name]
            use.units -= units
            use.weighed -= units * weight
            if weight == WHOLE:
                use.firm -= units
