"""Which attempts that have not started are asked back from their hosts, and why.

 - Their run is being killed, or their host is being drained.
 - A task of their run has a higher priority, and could run where they wait.
 - They have waited for longer than anything is sent ahead for, while another host of the pool has nothing to do.

An attempt is asked back once; one that starts before it hears of that goes on. Questions only: the machine notes the recall and
gives the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.graph.run import Run
from daggyr_server.core.placing.host import AHEAD_SECONDS, WHOLE
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.placing.shares import Share

Flights = list[tuple[int, InFlight]]  # task numbers and their attempts


def unstarted(run: Run) -> Flights:
    """All that can be recalled."""
    if not any(queue.unstarted for queue in run.queues):
        return []
    return [pair for pair in run.in_flight.items() if pair[1].start_time is None and not pair[1].recalled]


def for_drain(pool: Pool, host: str) -> Iterator[tuple[Run, Flights]]:
    """What waits on a host that is being drained."""
    for share in pool.shares.by_run.values():
        yield share.run, [pair for pair in unstarted(share.run) if pair[1].host == host and pair[1].pool == pool.name]


def for_priority(pool: Pool, share: Share) -> Flights:
    """What keeps tasks of a run waiting that have a higher priority and found no room."""
    found: Flights = []
    for queue in share.queues.values():
        rivals = [rival for rival in share.run.queues if rival.unstarted and rival.policy.priority < queue.policy.priority]
        if queue and rivals:
            found += _in_the_way(pool, queue)
    return list(dict(found).items())


def _in_the_way(pool: Pool, queue: ReadyQueue) -> Flights:
    by_host: dict[str, Flights] = {}
    for number, flight in unstarted(queue.run):
        if flight.pool == pool.name and flight.sent.queue.policy.priority < queue.policy.priority:
            by_host.setdefault(flight.host, []).append((number, flight))
    found: Flights = []
    wanted = len(queue)
    for name, flights in by_host.items():
        host = pool.hosts[name]
        if wanted <= 0 or not host.open:
            continue
        # All that is short, because it is in front; of what is firm no more than makes room.
        taken = [pair for pair in flights if pair[1].sent.weight < WHOLE]
        firm = [pair for pair in flights if pair[1].sent.weight == WHOLE]
        without: dict[str, int] = {}
        slots = host.slots(queue.policy.needs, queue)
        while firm and slots < wanted:
            taken.append(firm.pop())
            for resource, units in taken[-1][1].sent.queue.policy.needs:
                without[resource] = without.get(resource, 0) + units
            slots = host.slots(queue.policy.needs, queue, without)
        if slots:
            found += taken
            wanted -= slots
    return found


def for_idle_hosts(pool: Pool, now: float) -> Iterator[tuple[Run, Flights]]:
    """What has waited too long, as far as it would start elsewhere at once.

    Call it when `pool.look_again` has come; it sets the next time, as long as something waits.
    """
    pool.look_again = None
    if len(pool.hosts) < 2:
        return
    for share in pool.shares.by_run.values():
        for queue in share.run.queues:
            if not queue.unstarted or queue.policy.pool != pool.name:
                continue
            pool.look_again = now + 2 * AHEAD_SECONDS
            idle = 0 if queue else sum(host.free(queue.policy.needs, queue)[0] for host in pool.hosts.values())
            if idle:
                waited = (
                    pair
                    for pair in unstarted(share.run)
                    if pair[1].sent.queue is queue
                    and pair[1].assign_time + 2 * AHEAD_SECONDS <= now
                    and pool.hosts[pair[1].host].ahead
                    and not pool.hosts[pair[1].host].free(queue.policy.needs, queue)[0]
                )
                yield share.run, list(islice(waited, idle))
