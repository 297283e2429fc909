"""How often an OOM killer struck in the agent's own control group: the counter, read seldom.

An execution asks for the OOM kills when SIGKILL has ended its process. Where the group has no counter, the answers are None.
Nothing here changes a control group.
"""

from __future__ import annotations

import time

from daggyr.control_group import ControlGroup


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
