"""What /proc tells of processes: who they are, when they began, and which DAGGYR_* variables they were started with.

`descendants` asks about the agent's children, and `leftovers` about everybody on the host. Nothing here changes anything. A
process may be gone, or its number another's, as soon as an answer is given; the time of its start tells two processes apart.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_TICK_NS = 1_000_000_000 // _TICKS
_MAX_ENVIRONMENT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """A process as proc_pid_stat(5) shows it; `born` is in clock ticks since boot."""

    pid: int
    parent: int
    group: int
    session: int
    born: int


def clock_ticks() -> int:
    """Now, as /proc counts the start of processes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // _TICK_NS


def look(pid: int) -> ProcessEntry | None:
    """The process of that number, which may be a zombie; None if there is none."""
    try:
        fields = _read(pid, "stat", 4096).rpartition(b")")[2].split()
        return ProcessEntry(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
    except (OSError, IndexError):
        return None


def everybody() -> dict[int, ProcessEntry]:
    """All processes that this one can see, by their numbers."""
    numbers = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208
    return {pid: seen for pid in numbers if (seen := look(pid)) is not None}


def daggyr_variables(pid: int) -> dict[bytes, bytes]:
    """The variables DAGGYR_* that the process's program was started with; none if they may not be read."""
    try:
        environment = _read(pid, "environ", _MAX_ENVIRONMENT)
    except OSError:
        return {}
    if b"DAGGYR_" not in environment:
        return {}
    return dict(line.split(b"=", 1) for line in environment.split(b"\0") if line.startswith(b"DAGGYR_") and b"=" in line)


def numbering() -> str:
    """Names the boot and the namespace in which process numbers, and ticks since boot, mean what they mean here.

    See random(4) for the boot's id and pid_namespaces(7). Where a sandbox hides one of them, the answer is never the same twice,
    so that numbers that were written down mean nothing to the next process. Raises OSError where /proc is not mounted.
    """
    if not Path("/proc/self/stat").exists():
        raise OSError(errno.ENOENT, "/proc is not mounted, and an agent needs it to follow processes")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return secrets.token_hex(16)


def _read(pid: int, name: str, limit: int) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read(limit)
