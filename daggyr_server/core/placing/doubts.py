"""Hosts on which attempts come to nothing, one after another: they are paused, tried with one attempt, and paused for longer.

The pool tells of each attempt that was LOST, or RETURNED without being asked back, and of the first one that ran after such an
end. A host may notice a fault of its own and pause itself; this is for what a host does not notice (an agent that crashes with
each task, a file system that hangs). Attempts that were LOST together count once, because a host that went away takes many along.

After STREAK such ends in a row the host is given nothing, at first for SHORTEST_PAUSE, then for twice as long each time. After
each pause it is given one attempt at a time, so that a host which is still at fault costs one task an attempt, and not as many as
it has room for. It is trusted again once an attempt there has ended otherwise, or has been there for CAREFUL_SECONDS. What is
known of a host stays when the host goes, because an agent that crashes may come back as a new host of the same name.

Only the pool calls this. Time comes in as an argument. Nothing here opens or closes a host.
"""

from __future__ import annotations

from daggyr_server.core.states import Outcome

STREAK = 3
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds
CAREFUL_SECONDS = 30.0
FORGOTTEN_AFTER = 3_600.0  # seconds without another end in vain
MOST_KEPT = 1_000  # hosts a pool; of more, those that were told of first are forgotten


class Doubt:
    """What is known of one host."""

    __slots__ = ("careful_until", "in_vain", "last", "time", "until")

    def __init__(self) -> None:
        self.in_vain = 0  # ends in vain, in a row
        self.last = Outcome.LOST  # the outcome of the last of them
        self.time = float("-inf")  # of the last of them
        self.until = float("-inf")  # nothing is given to the host until then...
        self.careful_until = float("-inf")  # ...and one attempt at a time until then; infinite until one is given to it

    @property
    def reason(self) -> str:
        """Why the host is paused, for people: a part of a sentence."""
        return f"of its attempts, {self.in_vain} in a row came to nothing (the last was {self.last.name})"


class Doubts:
    """Of one pool. `by_host` is for reading; it is empty while nothing is in doubt."""

    def __init__(self) -> None:
        self.by_host: dict[str, Doubt] = {}

    def in_vain(self, host: str, outcome: Outcome, sent_time: float, now: float) -> Doubt | None:
        """An attempt that was sent at `sent_time` came to nothing. Returns the host's doubt if a pause begins with it."""
        doubt = self.by_host.get(host)
        if doubt is None or now - doubt.time > FORGOTTEN_AFTER:
            self.by_host.pop(host, None)
            while len(self.by_host) >= MOST_KEPT:
                del self.by_host[next(iter(self.by_host))]
            doubt = self.by_host[host] = Doubt()
        if sent_time < doubt.time or now == doubt.time:
            return None  # It was there already when the last one ended, and the same may have ended both.
        doubt.in_vain += 1
        doubt.last, doubt.time = outcome, now
        if doubt.in_vain < STREAK:
            return None
        pause = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** min(doubt.in_vain - STREAK, 64))
        doubt.until = now + pause
        doubt.careful_until = float("inf")
        return doubt

    def tried(self, host: str, now: float) -> None:
        """A host that was paused is given an attempt."""
        doubt = self.by_host.get(host)
        if doubt is not None:
            doubt.careful_until = now + CAREFUL_SECONDS

    def ran(self, host: str) -> bool:
        """An attempt ran on a host. Returns whether the host was in doubt."""
        return self.by_host.pop(host, None) is not None
