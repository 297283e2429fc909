"""What the agent's own control group says: how much memory and how many processes it may use, and of OOM kills.

`resources` and `limits` ask for the limits once. An execution asks for the OOM kills when SIGKILL has ended its process. Version
2, and version 1 with the controllers for memory and pids, are read (Linux, admin-guide/cgroup-v2 and cgroup-v1). Where neither
is there, the answers are None. Nothing here changes a control group.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

# Version 1 writes "no limit" as the largest multiple of the page size; nothing near it is a real limit.
_NO_LIMIT = 2**60


class ControlGroup:
    """The group that the process was in when this was made."""

    def __init__(self, membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> None:
        self._unified: list[Path] = []  # from the group itself up to its mount
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
            elif "pids" in controllers.split(","):
                self._pids = list(_upwards(mount / "pids", path))
            elif "memory" in controllers.split(","):
                self._memory = list(_upwards(mount / "memory", path))

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


class OomKills:
    """The group's counter of OOM kills, which is read at most once a second while nobody was killed."""

    def __init__(self, group: ControlGroup) -> None:
        self._group = group
        self._count: int | None = None
        self._read_at = float("-inf")

    def so_far(self) -> int | None:
        """The counter, not older than a second; None if the group has none."""
        now = time.monotonic()
        if now - self._read_at >= 1:
            self._read_at = now
            self._count = self._group.oom_kills()
        return self._count

    def since(self, before: int | None) -> int | None:
        """How much the counter has grown since `so_far` said `before`."""
        now = self._group.oom_kills()
        return None if now is None or before is None else now - before


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group's folder and those above it. In a container, the path may be the host's: then only the mount is there."""
    folder = root / path.lstrip("/")
    if folder.is_dir() and ".." not in folder.parts:
        while folder != root:
            yield folder
            folder = folder.parent
    yield root


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
