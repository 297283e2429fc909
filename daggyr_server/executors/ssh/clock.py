"""One target's time since its boot, in this host's time: the parts of a connection ask it when an attempt started and stopped.

A target's wall clock may be wrong, so attempts are timed there by /proc/uptime, and read here by this host's clock. Nothing here
talks with the target.
"""

from __future__ import annotations

import time

from daggyr_server.executors.ssh.script import Ended, centiseconds

_CENTISECOND_NS = 10_000_000


class TargetClock:
    """The clock of one connection. Points of time are nanoseconds since the epoch."""

    def __init__(self, uptime: str, boot: str) -> None:
        """`uptime` is the target's now; `boot` names the boot that it counts from. Raises ValueError."""
        self._boot = boot
        self._boot_ns = time.time_ns() - centiseconds(uptime) * _CENTISECOND_NS

    def start_ns(self, uptime: str, sent_ns: int) -> int:
        """When an attempt started of which a line has come just now. It was sent at `sent_ns`. Raises ValueError."""
        since_boot = centiseconds(uptime) * _CENTISECOND_NS
        # A line is late by its way here, so the one that came soonest tells best when the target booted.
        self._boot_ns = min(self._boot_ns, time.time_ns() - since_boot)
        return max(self._boot_ns + since_boot, sent_ns)

    def span_ns(self, ended: Ended, sent_ns: int) -> tuple[int, int]:
        """When an attempt started and stopped that was sent at `sent_ns`, or by an earlier coordinator if that is 0."""
        now = time.time_ns()
        took = max(0, ended.ended - ended.began) * _CENTISECOND_NS
        if ended.boot and ended.boot != self._boot:
            return now - took, now
        start = max(self._boot_ns + ended.began * _CENTISECOND_NS, sent_ns)
        stop = min(start + took, now)
        return min(max(stop - took, sent_ns), stop), stop
