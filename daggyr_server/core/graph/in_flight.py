"""Attempts in flight: they were assigned to a host and have not ended. The core keeps one object for each of them until then.

The run makes and ends them, the machine makes orders of them, and the pools look at where they are. Only the files of this
folder change one; the machine asks for a change by calling `ask_end` and `ask_back`. Nothing here decides anything.
"""

from __future__ import annotations

from daggyr_server.core.graph.ready import ReadyQueue
from daggyr_server.core.moment import Moment


class Sent:
    """What attempts that were assigned to one host together have in common."""

    __slots__ = ("host", "host_name", "pool", "queue", "since", "time", "weight")

    def __init__(self, pool: str, host: str, host_name: str, queue: ReadyQueue, weight: int, now: Moment) -> None:
        self.pool = pool
        self.host = host
        self.host_name = host_name
        self.queue = queue
        self.weight = weight  # what each counts for on its host (see placing/host.py); 0 until its pool has adopted it
        self.since, self.time = now  # when they were assigned, by the steady and by the wall clock


class InFlight:
    """An attempt that was assigned and has not ended.

    `number` is the number that its task had at that time, because hosts and records know the attempt by it.
    """

    __slots__ = ("attempt", "held", "killed", "number", "recalled", "sent", "start_time", "stopping", "void")

    def __init__(self, number: int, attempt: int, sent: Sent) -> None:
        self.number = number
        self.attempt = attempt
        self.sent = sent
        self.start_time: float | None = None  # by the wall clock of its host
        self.stopping = False  # its end was asked for
        self.recalled = False  # it was asked back
        self.void = False  # an edit changed its task: however the attempt ends, the task is queued again...
        self.killed = False  # ...or is KILLED, because a person asked for that after the edit
        self.held = False  # an edit took its task away, and another task of that name waits for the attempt's end

    def ask_end(self) -> bool:
        """Note that its end is asked for. Returns whether it was not before."""
        asked_now = not self.stopping
        self.stopping = True
        return asked_now

    def ask_back(self) -> None:
        """Note that it is asked back. It has not started and was not asked back before."""
        self.sent.queue.unstarted -= 1
        self.recalled = True

    @property
    def pool(self) -> str:
        return self.sent.pool

    @property
    def host(self) -> str:
        return self.sent.host

    @property
    def host_name(self) -> str:
        return self.sent.host_name

    @property
    def assign_time(self) -> float:
        return self.sent.time
