"""How much memory this host has, wherever that can be learnt.

The agent and the server's local pool ask. Some sandboxes and containers have no /proc/meminfo, or none that says anything; then
the C library is asked (sysconf(3)), and whoever gets None does without a figure. Control groups are not looked at here.
"""

from __future__ import annotations

import os

_MEMINFO = "/proc/meminfo"
_MAX_BYTES = 64 * 1024


def total_memory() -> int | None:
    """The host's memory in bytes; None if nothing here tells."""
    return _from_proc(b"MemTotal") or _pages("SC_PHYS_PAGES")


def available_memory() -> int | None:
    """What processes could still have, in bytes; None if nothing here tells."""
    return _from_proc(b"MemAvailable") or _pages("SC_AVPHYS_PAGES")


def _from_proc(name: bytes) -> int | None:
    """A line of /proc/meminfo (proc_meminfo(5)), `MemTotal:  16318480 kB`, in bytes; None if there is none."""
    try:
        with open(_MEMINFO, "rb") as file:
            lines = file.read(_MAX_BYTES).splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == name + b":" and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def _pages(name: str) -> int | None:
    try:
        count = os.sysconf(name)
        return count * os.sysconf("SC_PAGE_SIZE") if count > 0 else None
    except (OSError, ValueError):
        return None
