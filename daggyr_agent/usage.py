"""What processes and the host use: the peak memory of one process, and the figures of a heartbeat.

Executions, `watch` and the session ask. Nothing is kept here, except for what two looks at the processor need between them.

**Peak memory.** wait4(2) gives a process's largest resident set, but with a floor: the kernel counts the memory that the
process had between fork and exec, which was the agent's own (exec_mmap in fs/exec.c folds the old memory's peak into the new
program's; with vfork it is the very same memory). For example, /bin/true needs 1.5 MB and is reported with 34 MB when the
agent has 34 MB. So wait4's figure is told only where it is above the agent's own peak, where it is exact. Below that, `watch`
looks at VmHWM (proc_pid_status(5)) while the process runs, soon after its start and then at doubling intervals, and the last
look is told. It misses only what came after it, and at most what the agent has. A process that ended before the first look (10
ms) and stayed below the floor has no figure, because it would be a wrong one.
"""

from __future__ import annotations

import os

import psutil

from daggyr.host_memory import available_memory
from daggyr.v1.agents_pb2 import Heartbeat

# Kernels add up a process's memory from counters of each processor, which may each be off by some pages.
_INEXACT = 2 * 1024 * 1024


class PeakMemory:
    """Tells a process's peak memory from wait4's figure and the last look at it, in bytes; None if it cannot be known."""

    def __init__(self) -> None:
        self._own = 0

    def of(self, waited: int, looked: int) -> int | None:
        """`waited` is wait4's, `looked` the last look's or 0."""
        if waited > self._own + _INEXACT:
            self._own = max(self._own, resident_peak("self"))  # reading it costs 30 us; it only grows
            if waited > self._own + _INEXACT:
                return waited
        return looked or None


def resident_peak(pid: int | str) -> int:
    """The largest resident set so far of a process that runs, in bytes; 0 if it has ended."""
    try:
        descriptor = os.open(f"/proc/{pid}/status", os.O_RDONLY)
    except OSError:
        return 0
    try:
        text = os.read(descriptor, 4096)
    except OSError:
        return 0
    finally:
        os.close(descriptor)
    _, found, rest = text.partition(b"VmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if found else 0


class HostUsage:
    """The host's figures for heartbeats."""

    def __init__(self) -> None:
        _cpu_percent()  # the first call only begins the interval

    def heartbeat(self, *, running: int, waiting: int) -> Heartbeat:
        """Load of one minute, processors' use since the call before, available memory, and the given counts.

        A figure that this host does not tell (a /proc of which parts are missing) is 0.
        """
        return Heartbeat(
            load_average=_load_average(),
            cpu_percent=min(100.0, max(0.0, _cpu_percent())),
            memory_available_bytes=available_memory() or 0,
            running=running,
            waiting=waiting,
        )


def _load_average() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def _cpu_percent() -> float:
    try:
        return psutil.cpu_percent()
    except Exception:  # psutil parses /proc, and raises whatever a surprise there leads to
        return 0.0
