"""Scheduling: which ready task goes to which host of its pool, and when.

The machine tells a pool of hosts, of attempts that ended and of queues with ready tasks, then calls `place`, which pulls only what
capacity allows. The rules:

Equal shares   the run with the least in flight in this pool (counted in cores) goes first, the one served longest ago
               among equals, and takes no more than brings it level with the next. A small run does not wait for a big one.
Priority       within a run, higher first; among equals, what has been ready longest. Attempts of lower priority
               that were sent ahead are recalled when a higher one finds no room.
Sent ahead     a host that queues attempts by itself gets more than fits, so that its slots never wait for a round trip: as
               much as it is expected to work off in AHEAD_SECONDS, nothing while durations are unknown.
Reservation    a queue that was passed over for RESERVE_AFTER seconds by tasks that need less gets one host for its first task:
               nothing else is put there that would keep it from fitting.

Cost: a pool of five hundred full hosts is not searched for every task. Once a need found no room, only hosts where something
ended since then are looked at again (`_fresh`, `_full_for`).

Nothing here changes a task's state, and time comes in as an argument.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from daggyr_server.core.ready import ReadyQueue
from daggyr_server.core.run import Run

AHEAD_SECONDS = 0.1
RESERVE_AFTER = 30.0  # seconds
MAX_IN_FLIGHT = 6_000  # attempts a host, however little they need and however short they are
_SHORTEST = 1e-5  # seconds; a mean below this would say nothing but how noisy clocks are

Needs = tuple[tuple[str, int], ...]


class Host:
    """Somewhere to run attempts. `load` is what all attempts there need together, those sent ahead included."""

    __slots__ = ("ahead", "draining", "host", "in_flight", "load", "name", "open", "reserved", "resources")

    def __init__(self, host: str, name: str, resources: Mapping[str, int], *, ahead: bool) -> None:
        self.host = host
        self.name = name
        self.resources = dict(resources)
        self.ahead = ahead
        self.open = True
        self.draining = False
        self.load: dict[str, int] = {}
        self.in_flight = 0
        self.reserved: ReadyQueue | None = None

    def could_hold(self, needs: Needs) -> bool:
        """Whether an attempt with `needs` fits when the host is empty."""
        return all(self.resources.get(name, 0) >= units for name, units in needs)

    def room(self, needs: Needs, queue: ReadyQueue, *, ahead: bool) -> int:
        """How many more attempts with `needs` may be sent here now; with `ahead`, beyond what fits."""
        room = MAX_IN_FLIGHT - self.in_flight
        stretch = 1.0
        held: Mapping[str, int] = {}
        if self.reserved is not None and self.reserved is not queue:
            held = dict(self.reserved.policy.needs)
        elif ahead and self.ahead and queue.mean_seconds is not None and self.reserved is None:
            stretch += AHEAD_SECONDS / max(queue.mean_seconds, _SHORTEST)
        for name, units in needs:
            total = self.resources.get(name, 0)
            if total < units:
                return 0
            free = int(total * stretch) - self.load.get(name, 0) - held.get(name, 0)
            room = min(room, free // units)
        return max(room, 0)

    def take(self, needs: Needs, count: int) -> None:
        self.in_flight += count
        for name, units in needs:
            self.load[name] = self.load.get(name, 0) + units * count

    def give(self, needs: Needs) -> None:
        self.in_flight -= 1
        for name, units in needs:
            self.load[name] -= units


class Placing(NamedTuple):
    """The scheduler's decision: these tasks of one queue go to this host."""

    queue: ReadyQueue
    host: Host
    numbers: list[int]


class Share:
    """What one run has in a pool."""

    __slots__ = ("in_flight", "queues", "run", "served", "usage")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.queues: dict[int, ReadyQueue] = {}  # by policy index; those that may have ready tasks
        self.usage = 0
        self.in_flight = 0
        self.served = 0


def cores_of(needs: Needs) -> int:
    """What an attempt counts for in shares: its cores, at least 1."""
    return max(1, dict(needs).get("cores", 1))


class Pool:
    """The hosts of one pool and the runs that have something to do there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hosts: dict[str, Host] = {}
        self.shares: dict[int, Share] = {}
        self._fresh: dict[str, Host] = {}  # where something changed since the last placing
        self._full_for: set[Needs] = set()  # needs for which no other host has room
        self._served = 0

    @property
    def ready(self) -> int:
        """About how many tasks only wait for capacity here."""
        return sum(len(queue) for share in self.shares.values() for queue in share.queues.values())

    # -- what the machine tells ---------------------------------------------------------------------------------------

    def change_host(self, host: str, name: str, resources: Mapping[str, int], *, open: bool, ahead: bool, draining: bool) -> None:
        """A host is there, or is there with other resources or another readiness."""
        known = self.hosts.get(host)
        if known is None:
            known = self.hosts[host] = Host(host, name, resources, ahead=ahead)
        known.name, known.resources, known.ahead = name, dict(resources), ahead
        known.open, known.draining = open and not draining, draining
        if not known.open:
            known.reserved = None
        self._fresh[host] = known

    def remove_host(self, host: str) -> None:
        """A host is gone; the machine ends what it had."""
        self.hosts.pop(host, None)
        self._fresh.pop(host, None)

    def offer(self, queue: ReadyQueue) -> None:
        """A queue may have ready tasks."""
        share = self._share(queue.run)
        share.queues[queue.policy_index] = queue

    def ended(self, run: Run, host: str, needs: Needs) -> None:
        """An attempt no longer uses its host."""
        known = self.hosts.get(host)
        if known is not None:
            known.give(needs)
            self._fresh[host] = known
        share = self.shares.get(run.run_id)
        if share is not None:
            share.usage -= cores_of(needs)
            share.in_flight -= 1
            if not share.in_flight and not share.queues:
                del self.shares[run.run_id]

    def drop(self, run: Run) -> None:
        """A run takes nothing new from here, until its queues are offered again."""
        share = self.shares.get(run.run_id)
        if share is not None:
            for queue in share.queues.values():
                self._unreserve(queue)
            share.queues.clear()
            if not share.in_flight:
                del self.shares[run.run_id]

    def _share(self, run: Run) -> Share:
        share = self.shares.get(run.run_id)
        if share is None:
            share = self.shares[run.run_id] = Share(run)
        return share

    # -- placing ------------------------------------------------------------------------------------------------------

    def place(self, now: float) -> Iterator[Placing]:
        """Decide on all that fits now. Each Placing is carried out (the tasks leave READY) before the next is asked for."""
        waiting = [(share.usage, share.served, run_id) for run_id, share in self.shares.items() if share.queues]
        if not waiting or not self.hosts:
            return
        heapq.heapify(waiting)
        stuck: dict[ReadyQueue, None] = {}
        full: set[Needs] = set()
        smallest: dict[Needs, None] = {}  # needs that were placed in this round
        while waiting:
            usage, _, run_id = heapq.heappop(waiting)
            share = self.shares[run_id]
            level = waiting[0][0] - usage if waiting else None
            placed = False
            for queue in self._in_order(share):
                needs = queue.policy.needs
                if needs in full and queue.passed_since is None:
                    stuck[queue] = None
                    continue
                most = MAX_IN_FLIGHT if level is None else max(1, level // cores_of(needs))
                for placing in self._find(queue, most):
                    placed = True
                    self._count(share, placing)
                    yield placing
                if placed:
                    smallest[needs] = None
                    queue.passed_since = None
                    self._unreserve(queue)
                    break
                full.add(needs)
                stuck[queue] = None
            if placed and share.queues:
                self._served += 1
                share.served = self._served
                heapq.heappush(waiting, (share.usage, share.served, run_id))
        for queue in stuck:
            self._passed_over(queue, smallest, now)
        self._full_for = {queue.policy.needs for queue in stuck if queue.head() is not None}
        self._fresh.clear()

    def _in_order(self, share: Share) -> list[ReadyQueue]:
        """The run's queues with ready tasks, the one to serve first in front; empty ones are forgotten."""
        found = []
        for index, queue in list(share.queues.items()):
            order = queue.head()
            if order is None:
                del share.queues[index]
                self._unreserve(queue)
            else:
                found.append((-queue.policy.priority, order, index))
        return [share.queues[index] for _, _, index in sorted(found)]

    def _find(self, queue: ReadyQueue, most: int) -> Iterator[Placing]:
        """Room for up to `most` tasks: first where they fit now, spread over the hosts, then ahead."""
        needs = queue.policy.needs
        hosts = self._fresh if needs in self._full_for else self.hosts
        for ahead in (False, True):
            rooms = [(host.room(needs, queue, ahead=ahead), host) for host in hosts.values() if host.open]
            roomy = sorted((pair for pair in rooms if pair[0] > 0), key=lambda pair: -pair[0])
            while roomy:
                # Each host an equal part, the emptiest first, so that none gets all while others idle.
                part = -(-min(most, len(queue)) // len(roomy))
                left = []
                for room, host in roomy:
                    numbers = queue.take(min(room, part, most))
                    if not numbers:
                        return
                    most -= len(numbers)
                    host.take(needs, len(numbers))
                    yield Placing(queue, host, numbers)
                    if room > len(numbers):
                        left.append((room - len(numbers), host))
                roomy = left

    def _count(self, share: Share, placing: Placing) -> None:
        share.in_flight += len(placing.numbers)
        share.usage += cores_of(placing.queue.policy.needs) * len(placing.numbers)

    # -- reservations -------------------------------------------------------------------------------------------------

    def _passed_over(self, queue: ReadyQueue, placed: Mapping[Needs, None], now: float) -> None:
        """Note that smaller tasks went before this queue's first; after RESERVE_AFTER, keep a host for it."""
        needs = dict(queue.policy.needs)
        if queue.passed_since is None:
            smaller = any(any(units < needs.get(name, 0) for name, units in other) for other in placed)
            if smaller:
                queue.passed_since = now
            return
        if now - queue.passed_since < RESERVE_AFTER or any(host.reserved is queue for host in self.hosts.values()):
            return
        free = [
            host for host in self.hosts.values() if host.open and host.reserved is None and host.could_hold(queue.policy.needs)
        ]
        if free:
            least = min(free, key=lambda host: max(host.load.get(name, 0) / host.resources[name] for name in needs))
            least.reserved = queue

    def _unreserve(self, queue: ReadyQueue) -> None:
        if queue.passed_since is None:
            return
        queue.passed_since = None
        for host in self.hosts.values():
            if host.reserved is queue:
                host.reserved = None
                self._fresh[host.host] = host
