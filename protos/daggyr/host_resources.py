"""How many cores and how much memory this host has for tasks.

The agent, the local pool and the server's configuration ask; on SSH targets dg_host in remote.sh keeps the same rules, and a test
holds the two together. Cores are those that this process may run on (sched_getaffinity(2)), or the quota of its control group,
whichever is less. Memory is the host's, or the limit of the control group. Nothing here changes anything.
"""

from __future__ import annotations

import os

from daggyr.control_group import ControlGroup
from daggyr.host_memory import total_memory

_MEBIBYTE = 1024 * 1024


def usable_cores(group: ControlGroup | None = None) -> int:
    """Cores, one at least. OMP_NUM_THREADS and the like say nothing of the host, and are not asked."""
    quota = (group or ControlGroup()).cores()
    cores = len(os.sched_getaffinity(0))
    return cores if quota is None else min(cores, quota)


def usable_memory_mb(group: ControlGroup | None = None) -> int | None:
    """Memory in mebibytes; None where nothing tells it."""
    known = [memory for memory in (total_memory(), (group or ControlGroup()).memory_limit()) if memory is not None]
    return min(known) // _MEBIBYTE if known else None
