"""The tasks of one run that only wait for capacity, of one policy, in the order in which they became ready.

The run pushes, the pool scheduler takes. Neighbouring numbers are kept as ranges, so that a million expansions that become
ready together cost one entry. A task that stops being ready stays in here: whoever takes checks its phase, and what has
moved on is passed over.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from daggyr_server.core.graph import Policy
from daggyr_server.core.states import Phase

if TYPE_CHECKING:
    from daggyr_server.core.run import Run

_READY = int(Phase.READY)
_WEIGHT = 0.1  # of the newest duration in the mean


class ReadyQueue:
    """First in, first out. `passed_since` belongs to the scheduler; `mean_seconds` is what its attempts took of late."""

    __slots__ = ("_entries", "_size", "mean_seconds", "passed_since", "policy", "policy_index", "run")

    def __init__(self, run: Run, policy: Policy, policy_index: int) -> None:
        self.run = run
        self.policy = policy
        self.policy_index = policy_index
        self.passed_since: float | None = None
        self.mean_seconds: float | None = None  # None until an attempt ended
        self._size = 0
        self._entries: deque[list[int]] = deque()  # [first, beyond, order]

    def push(self, first: int, beyond: int, order: int) -> bool:
        """Add the numbers from `first` to before `beyond`; `order` grows from push to push within a run.

        Returns whether the queue had no entries before.
        """
        entries = self._entries
        self._size += beyond - first
        if entries:
            last = entries[-1]
            if last[1] == first:
                last[1] = beyond
            else:
                entries.append([first, beyond, order])
            return False
        entries.append([first, beyond, order])
        return True

    def head(self) -> int | None:
        """The order of the task that waits longest, or None if no task is ready."""
        entries, phases = self._entries, self.run.phases
        while entries:
            entry = entries[0]
            if phases[entry[0]] == _READY:
                return entry[2]
            entry[0] += 1
            self._size -= 1
            if entry[0] == entry[1]:
                entries.popleft()
        return None

    def __len__(self) -> int:
        """How many tasks are in here, those that moved on meanwhile included."""
        return self._size

    def lasted(self, seconds: float) -> None:
        """An attempt of this queue took this long."""
        mean = self.mean_seconds
        self.mean_seconds = seconds if mean is None else mean + _WEIGHT * (seconds - mean)

    def first(self) -> int:
        """The number of the task that waits longest; only after `head` found one."""
        return self._entries[0][0]

    def take(self, most: int) -> list[int]:
        """Remove and return at most `most` tasks that are ready, longest waiting first."""
        entries, phases = self._entries, self.run.phases
        taken: list[int] = []
        while entries and most > 0:
            entry = entries[0]
            first, beyond = entry[0], entry[1]
            until = min(beyond, first + most)
            found = [number for number in range(first, until) if phases[number] == _READY]
            taken += found
            most -= len(found)
            self._size -= until - first
            if until == beyond:
                entries.popleft()
            else:
                entry[0] = until
        return taken
