"""How many descriptors this process may open, and how many of them connections may take.

`daggyr-server` calls `take_all` at its start; listeners ask for `connections`. What the coordinator starts (the agent of a local
pool, Slurm's commands) gets the limit that the coordinator was given: `as_given` sees to that, because programs that close
every possible descriptor, or that use select(2), were made for the usual limit.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence

FILES = 512  # descriptors that are left for files, pipes and what the coordinator starts
_given: int | None = None  # the soft limit before `take_all` raised it


def take_all() -> None:
    """Raise the limit to what this user may have; see setrlimit(2)."""
    global _given
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # above what the kernel gives to anybody (fs.nr_open), for instance
        return
    _given = soft


def connections() -> int:
    """How many connections a listener takes at once; more are closed as they come. At least half of the limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 2**20
    return int(min(2**31 - 1, max(soft - FILES, soft // 2)))


def as_given(command: Sequence[str]) -> list[str]:
    """`command` so that it starts with the limit that the coordinator was started with."""
    if _given is None:
        return list(command)
    return ["/bin/sh", "-c", 'ulimit -S -n "$0" && exec "$@"', str(_given), *command]
