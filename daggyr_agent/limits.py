"""How many attempts this process may run at once, by the limits that it was started with: descriptors and processes.

`agent` asks once, at its start, before it says what it offers. A host that cannot run what it offers would get attempts that wait
there for nothing, so it offers fewer cores, and says why. Nothing here counts what runs later: a start that fails all the same
makes the host pause (`host_pause`).
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Mapping
from pathlib import Path

from daggyr.control_group import ControlGroup

MOST_ATTEMPTS = 4096  # This holds beside resources, because a task may need none.
_DESCRIPTORS_EACH = 3  # An attempt has two files, and one descriptor more while it starts.
_DESCRIPTORS_SPARE = 64
_TASKS_EACH = 2  # The kernel counts the process, and the agent's thread that waits for it.
_TASKS_SPARE = 24  # threads of gRPC and of the agent

_log = logging.getLogger(__name__)


def most_attempts(cores: int, group: ControlGroup, proc: Path = Path("/proc")) -> tuple[int, str]:
    """How many attempts may run at once, and which limit says so, as a part of a sentence.

    The limit on descriptors is raised only where it is too low for `cores` attempts, and no further than they need: tasks inherit
    it, and many programs do not bear a high one. The usual limit of 1,024 is enough for 320 attempts.
    """
    found = [(MOST_ATTEMPTS, "no more run at once")]
    descriptors = _descriptors(min(MOST_ATTEMPTS, cores))
    if descriptors is not None:
        most = max(1, (descriptors - _DESCRIPTORS_SPARE) // _DESCRIPTORS_EACH)
        found.append((most, f"it may open no more than {descriptors:,} descriptors (ulimit -n)"))
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes != resource.RLIM_INFINITY and os.geteuid() != 0:  # getrlimit(2): it is not enforced for root
        most = max(1, (processes - _tasks_of(os.getuid(), proc) - _TASKS_SPARE) // _TASKS_EACH)
        found.append((most, f"its user may have no more than {processes:,} processes (ulimit -u)"))
    left = group.processes_left()
    if left is not None:
        found.append((max(1, (left - _TASKS_SPARE) // _TASKS_EACH), "its control group has room for few processes (pids.max)"))
    return min(found)


def offered(resources: Mapping[str, int], most: int, limit: str) -> tuple[dict[str, int], str]:
    """What of `resources` can be offered where `most` attempts may run at once, and why that is less; empty if it is not.

    The words go behind the host's name: "offers 1 of 50 cores, because ...".
    """
    cores = resources["cores"]
    if cores <= most:
        return dict(resources), ""
    return {**resources, "cores": most}, f"offers {most:,} of {cores:,} cores, because {limit}"


def _descriptors(attempts: int) -> int | None:
    """The limit on descriptors, after it was raised for so many attempts if need be; None if there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    wanted = _DESCRIPTORS_SPARE + _DESCRIPTORS_EACH * attempts
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted <= soft:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        _log.warning("the limit on descriptors stays at %d: %s", soft, error)
        return soft
    return wanted


def _tasks_of(user: int, proc: Path) -> int:
    """How many processes and threads a user has, which is what RLIMIT_NPROC counts."""
    count = 0
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            try:
                if folder.stat().st_uid == user:
                    count += sum(1 for _ in (folder / "task").iterdir())
            except OSError:
                continue  # it has ended
    return count
