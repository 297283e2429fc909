"""What a process's own control group says: how many cores, how much memory and how many processes it may use, and of OOM kills.

The agent, the local pool and the server's configuration ask once, through `host_resources.py`; the agent asks for processes and
OOM kills as well. Version 2, and version 1 with the controllers for cpu, memory and pids, are read (Linux, admin-guide/cgroup-v2
and cgroup-v1, scheduler/sched-bwc). Where neither is there, the answers are None. Nothing here changes a control group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Version 1 writes "no limit" as the largest multiple of the page size; nothing near it is a real limit.
_NO_LIMIT = 2**60


class ControlGroup:
    """The group that the process was in when this was made."""

    def __init__(self, membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> None:
        self._unified: list[Path] = []  # from the group itself up to its mount
        self._cpu: list[Path] = []
        self._memory: list[Path] = []
        self._pids: list[Path] = []
        try:
            lines = membership.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            return
        for line in lines:
            number, controllers, path = (*line.split(":", 2), "", "")[:3]
            if number == "0" and not controllers:
                root = mount if (mount / "cgroup.controllers").exists() else mount / "unified"
                self._unified = list(_upwards(root, path))
                continue
            for controller, folders in (("cpu", self._cpu), ("pids", self._pids), ("memory", self._memory)):
                if controller in controllers.split(","):
                    folders += _upwards(mount / controller, path)

    def cores(self) -> int | None:
        """The least quota of the group and those above it, in cores; a part of a core counts as one. None if there is none."""
        quotas = [_words(folder / "cpu.max") for folder in self._unified]
        quotas += [[*_words(folder / "cpu.cfs_quota_us")[:1], *_words(folder / "cpu.cfs_period_us")[:1]] for folder in self._cpu]
        numbers = [list(map(int, quota)) for quota in quotas if len(quota) == 2 and all(word.isdecimal() for word in quota)]
        return min((max(1, -(-quota // period)) for quota, period in numbers if period), default=None)

    def memory_limit(self) -> int | None:
        """The least limit in bytes of the group and those above it; None if there is none."""
        limits = [_number(folder / "memory.max") for folder in self._unified]
        limits += [_number(folder / "memory.limit_in_bytes") for folder in self._memory]
        real = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
        return min(real, default=None)

    def processes_left(self) -> int | None:
        """How many processes and threads the group and those above it have room for; None if nothing limits them."""
        found = []
        for folder in (*self._unified, *self._pids):
            most, now = _number(folder / "pids.max"), _number(folder / "pids.current")
            if most is not None and now is not None:
                found.append(max(0, most - now))
        return min(found, default=None)

    def oom_kills(self) -> int | None:
        """How many processes of the group any OOM killer ended since it was made; None if the group does not say."""
        files = [(folder / "memory.events") for folder in self._unified[:1]]
        files += [(folder / "memory.oom_control") for folder in self._memory[:1]]
        for file in files:
            try:
                words = file.read_text().split()
            except OSError:
                continue
            figures = dict(zip(words[::2], words[1::2], strict=False))
            if figures.get("oom_kill", "").isdecimal():
                return int(figures["oom_kill"])
        return None


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group's folder and those above it. In a container, the path may be the host's: then only the mount is there."""
    folder = root / path.lstrip("/")
    if folder.is_dir() and ".." not in folder.parts:
        while folder != root:
            yield folder
            folder = folder.parent
    yield root


def _number(file: Path) -> int | None:
    words = _words(file)
    return int(words[0]) if len(words) == 1 and words[0].isdecimal() else None


def _words(file: Path) -> list[str]:
    """The words of a small file; none if it cannot be read."""
    try:
        return file.read_text().split()
    except OSError:
        return []
