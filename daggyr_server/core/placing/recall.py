"""Which attempts that have not started are asked back from their hosts, and why.

 - Their run is being killed, or their host is being drained, or is at fault.
 - A task of their run has a higher priority, and could run where they wait.
 - They have waited for longer than anything is sent ahead for, while another host of the pool has nothing to do.

An attempt is asked back once; one that starts before it hears of that goes on. These are questions only, and change nothing: the
machine asks them of one run at a time, notes the recall and gives the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.placing.host import AHEAD_SECONDS, WHOLE
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.placing.shares import Share

Unstarted = Callable[[], Sequence[InFlight]]  # the attempts of a run that can be asked back


def for_closed_host(pool: Pool, host: str, unstarted: Iterable[InFlight]) -> list[InFlight]:
    """The attempts of a run that wait on a host which is being drained, or is at fault."""
    return [attempt for attempt in unstarted if attempt.host == host and attempt.pool == pool.name]


def for_priority(pool: Pool, share: Share, queues: Sequence[ReadyQueue], unstarted: Unstarted) -> list[InFlight]:
    """The attempts of a run that keep its tasks of a higher priority waiting; `queues` are all that the run has."""
    found: dict[InFlight, None] = {}
    for queue in share.queues.values():
        if queue and any(rival.unstarted and rival.policy.priority < queue.policy.priority for rival in queues):
            found.update(dict.fromkeys(_in_the_way(pool, queue, unstarted())))
    return list(found)


def _in_the_way(pool: Pool, queue: ReadyQueue, unstarted: Iterable[InFlight]) -> list[InFlight]:
    by_host: dict[str, list[InFlight]] = {}
    for attempt in unstarted:
        if attempt.pool == pool.name and attempt.sent.queue.policy.priority < queue.policy.priority:
            by_host.setdefault(attempt.host, []).append(attempt)
    found: list[InFlight] = []
    wanted = len(queue)
    for name, attempts in by_host.items():
        host = pool.hosts[name]
        if wanted <= 0 or not host.open:
            continue
        # All that is short, because it is in front; of what is firm no more than makes room.
        taken = [attempt for attempt in attempts if attempt.sent.weight < WHOLE]
        firm = [attempt for attempt in attempts if attempt.sent.weight == WHOLE]
        without: dict[str, int] = {}
        slots = host.slots(queue.policy.needs, queue)
        while firm and slots < wanted:
            taken.append(firm.pop())
            for resource, units in taken[-1].sent.queue.policy.needs:
                without[resource] = without.get(resource, 0) + units
            slots = host.slots(queue.policy.needs, queue, without)
        if slots:
            found += taken
            wanted -= slots
    return found


def waits(pool: Pool, queue: ReadyQueue) -> bool:
    """Whether attempts of a queue are with hosts of the pool and have not started."""
    return bool(queue.unstarted) and queue.policy.pool == pool.name


def for_idle_hosts(pool: Pool, queues: Iterable[ReadyQueue], unstarted: Unstarted, now: float) -> list[InFlight]:
    """The attempts of a run that have waited too long, as far as they would start elsewhere at once."""
    found: list[InFlight] = []
    if len(pool.hosts) < 2:
        return found
    for queue in queues:
        if not waits(pool, queue):
            continue
        hosts = (host for host in pool.hosts.values() if host.host != queue.avoid and host.lasts(queue, now))
        idle = 0 if queue else sum(host.free(queue.policy.needs, queue)[0] for host in hosts)
        if idle:
            waited = (
                attempt
                for attempt in unstarted()
                if attempt.sent.queue is queue
                and attempt.sent.since + 2 * AHEAD_SECONDS <= now
                and pool.hosts[attempt.host].ahead
                and not pool.hosts[attempt.host].free(queue.policy.needs, queue)[0]
            )
            found += islice(waited, idle)
    return found
