"""One target's time since its boot, in this host's time: the parts of a connection ask it when an attempt started and stopped.

A target's wall clock may be wrong, so attempts are timed there by /proc/uptime, and compared here by the clock of this host that
nobody sets. Only what is told is a time of its wall clock. Nothing here talks with the target.
"""

from __future__ import annotations

import time

from daggyr_server.executors.ssh.script import Ended, centiseconds

_CENTISECOND_NS = 10_000_000


class TargetClock:
    """The clock of one connection. What is told are points of time in nanoseconds since the epoch.

    When an attempt was sent is given by this host's monotonic clock in nanoseconds; None stands for an earlier coordinator's.
    """

    def __init__(self, uptime: str, boot: str) -> None:
        """`uptime` is the target's now; `boot` names the boot that it counts from. Raises ValueError."""
        self._boot = boot
        # By this host's monotonic clock.
        self._boot_ns = time.monotonic_ns() - centiseconds(uptime) * _CENTISECOND_NS

    def start_ns(self, uptime: str, sent_ns: int | None) -> int:
        """When an attempt started of which a line has come just now. Raises ValueError."""
        since_boot = centiseconds(uptime) * _CENTISECOND_NS
        # A line is late by its way here, so the one that came soonest tells best when the target booted.
        self._boot_ns = min(self._boot_ns, time.monotonic_ns() - since_boot)
        return _wall_ns(_not_before(sent_ns, self._boot_ns + since_boot))

    def span_ns(self, ended: Ended, sent_ns: int | None) -> tuple[int, int]:
        """When an attempt started and stopped. The time between is what the target measured, or less."""
        now = time.monotonic_ns()
        took = max(0, ended.ended - ended.began) * _CENTISECOND_NS
        if ended.boot and ended.boot != self._boot:
            start, stop = now - took, now
        else:
            stop = min(_not_before(sent_ns, self._boot_ns + ended.began * _CENTISECOND_NS) + took, now)
            start = min(_not_before(sent_ns, stop - took), stop)
        told = _wall_ns(stop)
        return told - (stop - start), told


def _not_before(sent_ns: int | None, time_ns: int) -> int:
    return time_ns if sent_ns is None else max(time_ns, sent_ns)


def _wall_ns(monotonic_ns: int) -> int:
    """What the wall clock showed then, if nobody has set it since."""
    return time.time_ns() - (time.monotonic_ns() - monotonic_ns)
