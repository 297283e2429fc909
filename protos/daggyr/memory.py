"""How much memory this host has, wherever that can be learnt.

The agent and the server's local pool ask. Some sandboxes and containers have no /proc/meminfo, or none that says anything; then
the C library is asked (sysconf(3)), and whoever gets None does without a figure. Control groups are not looked at here.
"""

from __future__ import annotations

import os

import psutil


def total_memory() -> int | None:
    """The host's memory in bytes; None if nothing here tells."""
    try:
        return int(psutil.virtual_memory().total)
    except Exception:  # psutil parses /proc, and raises whatever a surprise there leads to
        return _pages("SC_PHYS_PAGES")


def available_memory() -> int | None:
    """What processes could still have, in bytes; None if nothing here tells."""
    try:
        return int(psutil.virtual_memory().available)
    except Exception:
        return _pages("SC_AVPHYS_PAGES")


def _pages(name: str) -> int | None:
    try:
        count = os.sysconf(name)
        return count * os.sysconf("SC_PAGE_SIZE") if count > 0 else None
    except (OSError, ValueError):
        return None
