"""What each run has in a pool, and whose turn it is: equal shares.

The run with the least in flight goes first, counted in cores by weight (see `host.py`); among equals the one served longest ago.
The line is kept from round to round, so that ten thousand runs that wait cost nothing while nothing happens to them. A run is
known by its number only. The pool alone calls this; it never moves a task and knows no host.
"""

from __future__ import annotations

import heapq

from daggyr_server.core.graph.ready import QueueKey, ReadyCount, ReadyQueue, Wants

PlaceInLine = tuple[int, int, int]  # in the line: usage, served, run id; the least goes first


class Share:
    """What one run has in a pool."""

    __slots__ = ("in_flight", "place", "queues", "run_id", "served", "usage")

    def __init__(self, run_id: int) -> None:
        self.run_id = run_id
        self.queues: dict[QueueKey, ReadyQueue] = {}  # the queues that may have ready tasks
        self.usage = 0  # cores times weight, of all in flight
        self.in_flight = 0
        self.served = 0  # when the run was served last; grows from placing to placing
        self.place: PlaceInLine | None = None


class Shares:
    """Of one pool. Public attributes are for reading."""

    def __init__(self) -> None:
        self.by_run: dict[int, Share] = {}
        self.count = ReadyCount()  # of tasks that only wait for capacity here
        self.ranked: dict[int, Share] = {}  # shares of runs in which some tasks have a higher priority than others
        self.wanted: dict[Wants, int] = {}  # how many of the queues of all shares want this
        self.avoiding: dict[ReadyQueue, None] = {}  # those of the queues of all shares whose tasks avoid a host
        self.line: list[PlaceInLine] = []  # a heap; an entry that is not its share's `place` any more is passed over
        self.moved: dict[int, Share] = {}  # shares whose place may be another now
        self._served = 0

    def add(self, queue: ReadyQueue, ranked: bool) -> None:
        """Take up a queue that may have ready tasks.

        `ranked` says that some tasks of its run have a higher priority than others.
        """
        run_id = queue.run_id
        share = self.by_run.get(run_id)
        if share is None:
            share = self.by_run[run_id] = Share(run_id)
        if ranked:
            self.ranked[run_id] = share
        if queue.key not in share.queues:
            share.queues[queue.key] = queue
            queue.offered = self.count
            self.count.ready += len(queue)
            self.wanted[queue.wants] = self.wanted.get(queue.wants, 0) + 1
            if queue.avoid:
                self.avoiding[queue] = None
            self.moved[run_id] = share

    def expect(self, queue: ReadyQueue) -> None:
        """Something of the queue's run is in flight, whether anything of it is ready or not."""
        self.by_run.setdefault(queue.run_id, Share(queue.run_id))

    def withdraw(self, share: Share, queue: ReadyQueue) -> None:
        """A queue has no ready tasks any more, or may not have them placed."""
        del share.queues[queue.key]
        queue.offered = None
        self.count.ready -= len(queue)
        self.avoiding.pop(queue, None)
        wants = queue.wants
        self.wanted[wants] -= 1
        if not self.wanted[wants]:
            del self.wanted[wants]
        self._forget_empty(share)

    def replace(self, share: Share, queue: ReadyQueue, successor: ReadyQueue) -> None:
        """Another queue with the same key and wants is there instead of a queue."""
        share.queues[queue.key] = successor
        successor.offered, queue.offered = self.count, None
        self.count.ready += len(successor) - len(queue)
        if queue in self.avoiding:
            del self.avoiding[queue]
            self.avoiding[successor] = None

    def charge(self, queue: ReadyQueue, weight: int, count: int) -> None:
        """Attempts of the queue were sent (`count` is positive), or one has ended (-1)."""
        run_id = queue.run_id
        share = self.by_run[run_id]
        share.usage += queue.cores * weight * count
        share.in_flight += count
        self.moved[run_id] = share
        if not share.in_flight:
            self._forget_empty(share)

    def _forget_empty(self, share: Share) -> None:
        if not share.in_flight and not share.queues:
            run_id = share.run_id
            del self.by_run[run_id]
            self.moved.pop(run_id, None)
            self.ranked.pop(run_id, None)

    def line_up(self) -> None:
        """Give runs whose place may be another now their place in the line."""
        for share in self.moved.values():
            self._line_up(share)
        self.moved.clear()
        if len(self.line) > 2 * len(self.by_run) + 16:
            self.line = [share.place for share in self.by_run.values() if share.place is not None]
            heapq.heapify(self.line)

    def _line_up(self, share: Share) -> None:
        place = (share.usage, share.served, share.run_id)
        if share.queues and share.place != place:
            share.place = place
            heapq.heappush(self.line, place)

    def first(self) -> Share | None:
        """The run whose turn it is, or None if none waits."""
        while self.line:
            share = self.by_run.get(self.line[0][2])
            if share is not None and share.place == self.line[0]:
                return share
            heapq.heappop(self.line)
        return None

    def step_out(self, share: Share) -> None:
        """Take the first out of the line; it is in there again after the next `line_up`."""
        heapq.heappop(self.line)
        share.place = None
        self.moved[share.run_id] = share

    def serve(self, share: Share) -> None:
        """The run got something: it lines up again at once, among equals behind the others."""
        self._served += 1
        share.served = self._served
        self.moved.pop(share.run_id, None)
        self._line_up(share)
