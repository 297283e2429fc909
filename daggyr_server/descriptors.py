"""How many descriptors this process may open, and how many of them connections may take.

`daggyr-server` calls `take_all` at its start, and listeners ask for `connections`. The programs that the coordinator starts (the
agent of a local pool, Slurm's commands) pass through `as_given` and get the limit that the coordinator was given: programs that
close every possible descriptor, or use select(2), were made for the usual limit. Nothing here opens anything.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence

FILES = 512  # descriptors that are left for files, pipes and the programs that the coordinator starts
_given: int | None = None  # the soft limit before `take_all` raised it


def take_all() -> None:
    """Raise the limit as far as this user may; see setrlimit(2). Where the kernel refuses, it stays as it was."""
    global _given
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # The limit may be above what the kernel gives to anybody (fs.nr_open).
        return
    _given = soft


def connections() -> int:
    """How many connections a listener takes at once; further ones are closed as they come. It is at least half of the limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 2**20
    return int(min(2**31 - 1, max(soft - FILES, soft // 2)))


def as_given(command: Sequence[str]) -> list[str]:
    """`command`, changed so that it starts with the limit with which the coordinator was started."""
    if _given is None:
        return list(command)
    return ["/bin/sh", "-c", 'ulimit -S -n "$0" && exec "$@"', str(_given), *command]
