"""Which queues were passed over by smaller tasks, and which hosts are kept for them.

A queue is passed over when it was its turn, it found no room, and tasks that need less of something were placed behind it. After
RESERVE_AFTER seconds of that, one host is kept for its first task: nothing is put there that would keep that task from fitting. A
host is only chosen if what the task lacks there is what the smaller tasks use as well. So a host whose only GPU is taken for
hours is not emptied meanwhile.

The pool alone calls this. It decides nothing about who is placed where, and never moves a task.
"""

from __future__ import annotations

from collections.abc import Iterable

from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.placing.host import Host

RESERVE_AFTER = 30.0  # seconds


class Reservations:
    """Of one pool; `kept` is for reading."""

    def __init__(self) -> None:
        self.kept: dict[ReadyQueue, Host] = {}
        self._since: dict[ReadyQueue, float] = {}
        self._contended: dict[ReadyQueue, set[str]] = {}  # the resources of which smaller tasks needed less

    def passed_over(self, queue: ReadyQueue, contended: Iterable[str], now: float) -> None:
        """Tasks that need less of `contended` went before this queue's first."""
        self._since.setdefault(queue, now)
        self._contended.setdefault(queue, set()).update(contended)

    def due(self, now: float) -> float | None:
        """When a queue will have waited long enough to get a host; None if none waits for that."""
        times = [since + RESERVE_AFTER for queue, since in self._since.items() if queue not in self.kept]
        return min((time for time in times if time > now), default=None)

    def make(self, hosts: Iterable[Host], now: float) -> None:
        """Keep a host for each queue that has waited long enough."""
        for queue, since in self._since.items():
            if queue in self.kept or now < since + RESERVE_AFTER:
                continue
            needs, contended = queue.policy.needs, self._contended[queue]
            other = tuple((name, units) for name, units in needs if name not in contended)
            fit = [
                host
                for host in hosts
                if host.open and host.reserved is None and host.could_hold(needs) and host.slots(other, queue) > 0
                if host.host != queue.avoid and host.lasts(queue, now) and host.takes(queue.wants.kind)
            ]
            if fit:
                host = min(fit, key=lambda host: max(host.load.get(name, 0) / host.resources[name] for name in contended))
                host.reserved = queue
                self.kept[queue] = host

    def drop(self, queue: ReadyQueue) -> Host | None:
        """Forget a queue that was served or has nothing left. Returns the host that was kept for it, if there was one."""
        if self._since.pop(queue, None) is None:
            return None
        del self._contended[queue]
        host = self.kept.pop(queue, None)
        if host is not None:
            host.reserved = None
        return host

    def replace(self, queue: ReadyQueue, successor: ReadyQueue) -> None:
        """Another queue with the same needs has waited for as long as a queue, which nobody has any more."""
        if queue not in self._since:
            return
        # The order stays, because those who have waited for longer are seen to first.
        self._since = {successor if each is queue else each: since for each, since in self._since.items()}
        self._contended[successor] = self._contended.pop(queue)
        host = self.kept.pop(queue, None)
        if host is not None:
            self.kept[successor], host.reserved = host, successor

    def release(self, host: Host) -> None:
        """Give up a host that can no longer be kept; its queue waits for another host."""
        if host.reserved is not None:
            del self.kept[host.reserved]
            host.reserved = None
