"""Scheduling: which ready task goes to which host of its pool, and when.

The machine tells a pool of hosts, of attempts that ended and of queues with ready tasks, then calls `place`, which pulls only
what capacity allows. The rules:

Equal shares   The run with the least in flight goes first, as `shares.py` says, and takes no more than brings it level with
               the next. So a small run does not wait for a big one.
Priority       Within a run the higher priority goes first; among equals, the queue whose first task has been ready longest. A
               queue has the tasks of one policy, and is served as far as the run's turn and the hosts allow.
Spreading      The host with the most empty slots goes first, and each host gets an equal part.
Sent ahead     Short attempts are sent before there is a slot for them, by weight, as `host.py` says.
Reservation    A host is kept for a task that was passed over for long, as `reservations.py` says.
Elsewhere      A task that was LOST goes to another host than the last one, if another one could hold it and has room within
               ELSEWHERE_SECONDS; then it goes anywhere. Such tasks stand in queues of their own (`ReadyQueue.avoid`).
Doubt          A host on which nothing runs is paused, as `doubts.py` says.
Limits         A host may take few or none of a kind of tasks for now, as `host.py` says; tasks of other kinds go on.

Cost: a pool of five hundred full hosts is not searched for every task. Once a need found no room, only hosts where something
changed since then are looked at again (`_fresh`, `_full_for`).

Nothing here changes a task's state, and time comes in as an argument. It waits by the steady clock, and tells times of that.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

from daggyr_server.core.graph.in_flight import Sent
from daggyr_server.core.graph.ready import QueueKey, ReadyQueue, TaskKind, Wants
from daggyr_server.core.moment import Moment
from daggyr_server.core.placing.doubts import Doubt, Doubts
from daggyr_server.core.placing.host import AHEAD_SECONDS, MAX_IN_FLIGHT, WHOLE, Host, Limit, Needs, Pause
from daggyr_server.core.placing.reservations import Reservations
from daggyr_server.core.placing.shares import Share, Shares
from daggyr_server.core.states import Outcome


class Placing(NamedTuple):
    """The scheduler's decision: these tasks of one queue go to this host."""

    numbers: list[int]
    sent: Sent


class Round:
    """What one round of placing has found out so far."""

    def __init__(self, fresh: dict[str, Host]) -> None:
        self.fresh = fresh  # where something changed since the round before
        self.roomy: dict[Wants, list[tuple[int, int, int, Host]]] = {}  # heaps of (-idle, -spare, order, host)
        self.full: set[Wants] = set()  # found no room
        self.stuck: dict[ReadyQueue, int] = {}  # found no room, at which turn
        self.placed: dict[Needs, int] = {}  # the last turn that placed any
        self.turn = 0


class Pool:
    """The hosts of one pool and the runs that have something to do there. Public attributes are for reading."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hosts: dict[str, Host] = {}
        self.shares = Shares()
        self.reservations = Reservations()
        self.doubts = Doubts()
        self.outcomes = [0] * (max(Outcome) + 1)  # of attempts that ended since the start, indexed by Outcome
        self.due: float | None = None  # place again then, even if nothing happens
        self.look_again: float | None = None  # when to look for attempts that wait while a host idles
        self._limited = False  # some host goes away by itself at a known time, or one did
        self._fresh: dict[str, Host] = {}  # where something changed since the last round
        self._full_for: set[Wants] = set()  # what no other host has room for

    @property
    def ready(self) -> int:
        """How many tasks only wait for capacity here."""
        return self.shares.count.ready

    def wanted(self) -> list[tuple[Needs, float, int]]:
        """What the ready tasks here need: resources, how many seconds they may take (0 if nobody knows), and how many of them."""
        found: dict[tuple[Needs, float], int] = {}
        for share in self.shares.by_run.values():
            for queue in share.queues.values():
                if queue:
                    kind = (queue.policy.needs, queue.seconds)
                    found[kind] = found.get(kind, 0) + len(queue)
        return [(needs, seconds, count) for (needs, seconds), count in found.items()]

    # -- what the machine tells ---------------------------------------------------------------------------------------

    def change_host(
        self,
        host: str,
        name: str,
        resources: Mapping[str, int],
        now: float,
        *,
        open: bool,
        ahead: bool,
        draining: bool,
        pause: Pause | None,
        shortage: str,
        limits: Mapping[TaskKind, tuple[int, str]],
        until: float | None = None,
    ) -> None:
        """A host has come, or has other resources now, or takes attempts or does not. `pause` says that it is at fault.

        `limits` says of which kinds of tasks it takes how many more, and why.
        """
        known = self.hosts.get(host)
        if known is None:
            known = self.hosts[host] = Host(host, name, resources, ahead=ahead)
        known.name, known.resources, known.ahead, known.shortage = name, dict(resources), ahead, shortage
        known.limits = {kind: Limit(room, reason) for kind, (room, reason) in limits.items()}
        known.until = until
        self._limited = self._limited or until is not None
        known.offered, known.draining, known.expected = open and not draining, draining, False
        known.own_pause = None if open else pause
        self._weigh(known, now)

    def _weigh(self, host: Host, now: float) -> None:
        """Decide anew whether a host takes attempts, and how many, from what it says and what is known of it."""
        doubt = self.doubts.by_host.get(host.host)
        paused = doubt is not None and doubt.until > now
        host.pause = Pause(doubt.reason, doubt.until) if doubt is not None and paused else host.own_pause
        host.most = 1 if doubt is not None and doubt.careful_until > now else MAX_IN_FLIGHT
        host.open = host.offered and not paused
        kept = host.reserved
        if kept is not None and not (host.open and host.could_hold(kept.policy.needs) and host.takes(kept.wants.kind)):
            self.reservations.release(host)
        self._fresh[host.host] = host
        self._look_everywhere()
        if len(self.hosts) > 1:
            self.look_again = -math.inf  # at once

    def _look_everywhere(self) -> None:
        """Forget what found no room for tasks that avoid a host: whether they may go there depends on the other hosts."""
        self._full_for = {wants for wants in self._full_for if not wants.avoid}

    def adopt(self, sent: Sent) -> None:
        """Count an attempt that an earlier coordinator sent; its host, if it is not there yet, is expected.

        It counts whole, because nobody knows any more whether it was sent ahead.
        """
        sent.weight = WHOLE
        host = self.hosts.get(sent.host)
        if host is None:
            host = self.hosts[sent.host] = Host(sent.host, sent.host_name, {}, ahead=False)
            host.offered, host.open, host.expected = False, False, True
        host.take(sent.queue.policy.needs, sent.weight, 1)
        self.shares.expect(sent.queue)
        self.shares.charge(sent.queue, sent.weight, 1)

    def remove_host(self, host: str) -> None:
        """A host is gone. The machine has ended its attempts before."""
        known = self.hosts.pop(host, None)
        if known is not None:
            self._fresh.pop(host, None)
            self.reservations.release(known)
            self._look_everywhere()

    def offer(self, queue: ReadyQueue, ranked: bool) -> None:
        """Take up a queue that may have ready tasks.

        `ranked` says that some tasks of its run have a higher priority than others.
        """
        self.shares.add(queue, ranked)

    def ended(self, sent: Sent, outcome: Outcome) -> None:
        """An attempt has ended and no longer uses its host."""
        self.outcomes[outcome] += 1
        host = self._fresh[sent.host] = self.hosts[sent.host]
        host.give(sent.queue.policy.needs, sent.weight)
        self.shares.charge(sent.queue, sent.weight, -1)
        if host.expected and not host.in_flight:
            self.remove_host(sent.host)

    def in_vain(self, sent: Sent, outcome: Outcome, now: float) -> Doubt | None:
        """An attempt was LOST, or RETURNED without being asked back. Returns what is known of its host if that is paused now."""
        doubt = self.doubts.in_vain(sent.host, outcome, sent.since, now)
        host = self.hosts.get(sent.host)
        if doubt is not None and host is not None:
            self._weigh(host, now)
        return doubt

    def ran(self, sent: Sent, now: float) -> None:
        """An attempt ran on its host, however it ended. (Called only where some host is in doubt.)"""
        if self.doubts.ran(sent.host) and sent.host in self.hosts:
            self._weigh(self.hosts[sent.host], now)

    def drop(self, run_id: int) -> None:
        """A run takes nothing new from here, until its queues are offered again."""
        share = self.shares.by_run.get(run_id)
        if share is not None:
            for queue in list(share.queues.values()):
                self._withdraw(share, queue)

    def replace(self, run_id: int, again: Mapping[QueueKey, ReadyQueue]) -> None:
        """A run's queues are others from now on: each has the turn, and the reservation, of the one with its key. Those that have
        none here are to be offered."""
        share = self.shares.by_run.get(run_id)
        if share is None:
            return
        for queue in list(share.queues.values()):
            successor = again.get(queue.key)
            if successor is None:
                self._withdraw(share, queue)
            else:
                self.shares.replace(share, queue, successor)
                self.reservations.replace(queue, successor)

    def _withdraw(self, share: Share, queue: ReadyQueue) -> None:
        self.shares.withdraw(share, queue)
        self._served_or_gone(queue)

    def _served_or_gone(self, queue: ReadyQueue) -> bool:
        """Give up the queue's reservation. Returns whether that made room for others."""
        host = self.reservations.drop(queue)
        if host is None:
            return False
        self._fresh[host.host] = host
        return True

    # -- placing ------------------------------------------------------------------------------------------------------

    def place(self, now: Moment) -> Iterator[Placing]:
        """Decide on all that fits now. The caller carries out each Placing, so that its tasks leave READY, before it asks for the
        next."""
        steady = now.steady
        self._let_pauses_end(steady)
        self._let_go_anywhere(steady)
        if not self.hosts:
            return
        for queue, host in list(self.reservations.kept.items()):
            if not queue:
                self._withdraw(self.shares.by_run[queue.run_id], queue)
            elif host.lasts(queue, steady) and host.room(queue.policy.needs, queue, WHOLE):
                yield self._send(queue, host, 1, now)
                self._served_or_gone(queue)
        again = True
        while again:
            found = Round(self._fresh)
            self._fresh = {}
            again = yield from self._round(found, now)
        for queue, turn in found.stuck.items():
            passed = self._passed_by(queue, turn, found.placed)
            if passed:
                self.reservations.passed_over(queue, passed, steady)
        self.reservations.make(self.hosts.values(), steady)

    def _let_pauses_end(self, now: float) -> None:
        """Open hosts whose pause is over, and trust those that were tried for long enough."""
        for name, doubt in self.doubts.by_host.items():
            host = self.hosts.get(name)
            if host is None or host.most > 1:
                continue
            over = host.pause is not None and host.pause.until == doubt.until <= now
            if over or doubt.careful_until <= now:
                self._weigh(host, now)

    def _let_go_anywhere(self, now: float) -> None:
        """Put tasks that have avoided a host for long enough among those that go to any host."""
        for queue in [queue for queue in self.shares.avoiding if queue.until <= now]:
            share = self.shares.by_run[queue.run_id]
            ranked = queue.run_id in self.shares.ranked
            self._withdraw(share, queue)
            if queue.ordinary is not None and queue:
                queue.ordinary.absorb(queue)
                self.shares.add(queue.ordinary, ranked)

    def looked(self, now: float, *, some_wait: bool) -> None:
        """Note that attempts that wait while a host idles were looked for. `some_wait` says that some have not started."""
        self.look_again = now + 2 * AHEAD_SECONDS if some_wait and len(self.hosts) > 1 else None

    def note_due(self, now: float) -> None:
        """All is placed for now: note in `due` when to place again."""
        times = [self.reservations.due(now), self.look_again]
        times += [
            time
            for name, doubt in self.doubts.by_host.items()
            if name in self.hosts
            for time in (doubt.until, doubt.careful_until)
            if now < time < float("inf")
        ]
        times += [queue.until for queue in self.shares.avoiding]
        self.due = min((time for time in times if time is not None), default=None)

    def _round(self, found: Round, now: Moment) -> Generator[Placing, None, bool]:
        """Serve the runs in turn until nothing fits. Returns whether room was made meanwhile for those that found none."""
        shares, again = self.shares, False
        shares.line_up()
        while not shares.wanted.keys() <= found.full and (share := shares.first()) is not None:
            shares.step_out(share)
            follower = shares.first()
            level = follower.usage - share.usage if follower is not None else None
            for queue in self._in_order(share):
                found.turn += 1
                before = share.usage
                yield from self._serve(share, queue, level, found, now)
                if share.usage > before:
                    found.placed[queue.policy.needs] = found.turn
                    again = self._served_or_gone(queue) or again
                    shares.serve(share)
                    break
                found.stuck.setdefault(queue, found.turn)
        self._full_for = found.full
        return again

    def _in_order(self, share: Share) -> list[ReadyQueue]:
        """The run's queues with ready tasks, in the order in which they are served. Empty queues are withdrawn."""
        found = []
        for index, queue in list(share.queues.items()):
            order = queue.head()
            if order is None:
                self._withdraw(share, queue)
            else:
                found.append((-queue.policy.priority, order, index))
        return [share.queues[index] for _, _, index in sorted(found)]

    def _serve(self, share: Share, queue: ReadyQueue, level: int | None, found: Round, now: Moment) -> Iterator[Placing]:
        """Place the queue's tasks, until the run is `level` higher than it was or nothing fits."""
        needs, cores, wants = queue.policy.needs, queue.cores, queue.wants
        if wants in found.full:
            return
        budget = None if level is None else max(level, cores * WHOLE)
        # What a queue is not given because a host goes away too soon says nothing of others with the same needs.
        apart = self._limited and not all(host.lasts(queue, now.steady) for host in self.hosts.values())
        roomy = None if apart else found.roomy.get(wants)
        if roomy is None:
            hosts = found.fresh if wants in self._full_for and not apart else self.hosts
            avoid = self._avoided(queue) if queue.avoid else None
            heap = [
                (-idle, -spare, order, host)
                for order, host in enumerate(hosts.values())
                if host is not avoid and (not apart or host.lasts(queue, now.steady))
                for idle, spare in (host.free(needs, queue),)
                if spare
            ]
            roomy = heap
            heapq.heapify(roomy)
            if not apart:
                found.roomy[wants] = roomy
        start = share.usage
        while roomy and queue and (budget is None or share.usage - start < budget):
            *known, order, host = roomy[0]
            idle, spare = host.free(needs, queue)
            weight = host.weight(queue)
            room = host.room(needs, queue, weight)
            if not room:
                heapq.heappop(roomy)
            elif known != [-idle, -spare]:
                heapq.heapreplace(roomy, (-idle, -spare, order, host))
            else:
                most = len(queue)
                if budget is not None:
                    most = min(most, max(1, (budget - share.usage + start) // (cores * weight)))
                part = -(-most // len(roomy))
                yield self._send(queue, host, min(part, room), now)
        if not roomy and not apart:
            found.full.add(wants)

    def _avoided(self, queue: ReadyQueue) -> Host | None:
        """The host that the queue's tasks go around; None if no other host that is open could hold them."""
        needs = queue.policy.needs
        others = (host for name, host in self.hosts.items() if name != queue.avoid and host.open and host.could_hold(needs))
        return self.hosts.get(queue.avoid) if any(others) else None

    def _send(self, queue: ReadyQueue, host: Host, count: int, now: Moment) -> Placing:
        weight = host.weight(queue)
        numbers = queue.take(count)
        host.take(queue.policy.needs, weight, len(numbers))
        self.shares.charge(queue, weight, len(numbers))
        if host.limits:
            host.use_up(queue.wants.kind, len(numbers))
        if host.most == 1:
            self.doubts.tried(host.host, now.steady)
        if host.ahead and self.look_again is None and len(self.hosts) > 1:
            self.look_again = now.steady + 2 * AHEAD_SECONDS
        return Placing(numbers, Sent(self.name, host.host, host.name, queue, weight, now))

    def _passed_by(self, queue: ReadyQueue, turn: int, placed: Mapping[Needs, int]) -> Iterable[str]:
        """The resources of which tasks that were placed after this queue's turn needed less than it."""
        needs = dict(queue.policy.needs)
        return {name for others, last in placed.items() if last > turn for name, units in others if units < needs.get(name, 0)}
