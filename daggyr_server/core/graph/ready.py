"""The tasks of one run that only wait for capacity, of one policy, in the order in which they became ready.

The run pushes tasks, the pool takes them. Neighbouring numbers are kept as ranges, so that a million expansions that become
ready together cost one entry. Every task in here is READY and stands here once: `tasks.py` calls `keep_ready` in the same step
in which it moves ready tasks elsewhere. A queue knows its run by number only, and never moves a task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from daggyr_server.core.graph.segments import Policy
from daggyr_server.core.states import Phase

_READY = int(Phase.READY)
_NEWEST = 0.1  # the newest duration's part in the mean
ELSEWHERE_SECONDS = 30.0  # for so long, tasks that were LOST on a host wait for room on another

QueueKey = tuple[int, str]  # among the queues of a run: the policy's index, and the host that is avoided


class TaskKind(NamedTuple):
    """What a host may limit tasks by: all that a scheduler behind it is told of them."""

    needs: tuple[tuple[str, int], ...]  # (resource, units), sorted, units > 0
    timeout_ns: int  # 0: none


def kind_of(policy: Policy) -> TaskKind:
    """The kind of the tasks of a policy."""
    return TaskKind(policy.needs, round(policy.timeout * 1e9))


class Wants(NamedTuple):
    """What the tasks of a queue want of a host, by which a pool knows that nothing is left for them."""

    kind: TaskKind
    avoid: str


class ReadyCount:
    """How many tasks are ready in all queues that are offered to one pool. The queues count, so that nobody walks them."""

    __slots__ = ("ready",)

    def __init__(self) -> None:
        self.ready = 0


class ReadyQueue:
    """First in, first out. `mean_seconds` is what its attempts took of late, `unstarted` is how many could be recalled.

    An ordinary queue's tasks go to any host. Tasks that were LOST on a host stand in a queue beside it, which avoids that host
    until `until`; then the ordinary queue absorbs them.
    """

    __slots__ = (
        "_entries",
        "_size",
        "avoid",
        "cores",
        "key",
        "mean_seconds",
        "offered",
        "ordinary",
        "policy",
        "policy_index",
        "run_id",
        "unstarted",
        "until",
        "wants",
    )

    def __init__(
        self, run_id: int, policy: Policy, policy_index: int, *, avoid: str = "", ordinary: ReadyQueue | None = None
    ) -> None:
        """With the host to `avoid` comes the `ordinary` queue of the same policy."""
        self.run_id = run_id
        self.policy = policy
        self.policy_index = policy_index
        self.avoid = avoid
        self.ordinary = ordinary
        self.key: QueueKey = (policy_index, avoid)
        self.wants = Wants(kind_of(policy), avoid)
        self.until = 0.0  # of one that avoids a host; its run says it when the first task comes
        self.cores = max(1, dict(policy.needs).get("cores", 1))  # what an attempt counts for in the run's share
        # None until an attempt has run
        self.mean_seconds: float | None = ordinary.mean_seconds if ordinary is not None else None
        self.unstarted = 0  # attempts in flight that have not started and were not recalled
        self.offered: ReadyCount | None = None  # where its ready tasks are counted, while it is offered to its pool
        self._size = 0
        self._entries: deque[list[int]] = deque()  # [first, beyond, order]

    def push(self, first: int, beyond: int, order: int) -> bool:
        """Add the numbers from `first` to before `beyond`; `order` grows from push to push within a run.

        Returns whether the queue was empty before.
        """
        entries = self._entries
        self._size += beyond - first
        if self.offered is not None:
            self.offered.ready += beyond - first
        if entries:
            last = entries[-1]
            if last[1] == first:
                last[1] = beyond
            else:
                entries.append([first, beyond, order])
            return False
        entries.append([first, beyond, order])
        return True

    def copied(self, ordinary: ReadyQueue | None = None) -> ReadyQueue:
        """A queue with the same tasks, offered to nobody. One that avoids a host comes with the `ordinary` one beside it."""
        queue = ReadyQueue(self.run_id, self.policy, self.policy_index, avoid=self.avoid, ordinary=ordinary)
        queue.mean_seconds, queue.until, queue._size = self.mean_seconds, self.until, self._size
        queue._entries = deque(entry[:] for entry in self._entries)
        return queue

    @property
    def seconds(self) -> float:
        """How long an attempt may take: its timeout, or else the mean of those before it; 0 if neither is known."""
        return self.policy.timeout or self.mean_seconds or 0.0

    def head(self) -> int | None:
        """The order of the task that waits longest, or None if there is none."""
        return self._entries[0][2] if self._entries else None

    def orders(self) -> list[int]:
        """The orders of all that waits, what waits longest in front; tasks that became ready side by side have one."""
        return [order for _, _, order in self._entries]

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        for first, beyond, _ in self._entries:
            yield from range(first, beyond)

    def take(self, most: int) -> list[int]:
        """Remove and return at most `most` tasks, longest waiting first."""
        entries = self._entries
        taken: list[int] = []
        while entries and most > 0:
            entry = entries[0]
            first, beyond = entry[0], entry[1]
            until = min(beyond, first + most)
            taken += range(first, until)
            most -= until - first
            if until == beyond:
                entries.popleft()
            else:
                entry[0] = until
        self._resize(self._size - len(taken))
        return taken

    def absorb(self, other: ReadyQueue) -> None:
        """Take all tasks of another queue, so that what has waited longest stays in front."""
        self._entries = deque(sorted([*self._entries, *other._entries], key=lambda entry: entry[2]))
        self._resize(self._size + other._size)
        other._entries = deque()
        other._resize(0)

    def clear(self) -> None:
        """Forget all tasks in here."""
        self._entries.clear()
        self._resize(0)

    def keep_ready(self, phases: bytearray) -> None:
        """Forget those that are no longer READY in `phases`, the phases of the run's tasks by number.

        This is linear, but fast where ranges are whole; only what people ask for comes here.
        """
        kept: deque[list[int]] = deque()
        for entry in self._entries:
            first, beyond, order = entry
            if phases.count(_READY, first, beyond) == beyond - first:
                kept.append(entry)
                continue
            for number in range(first, beyond):
                if phases[number] == _READY:
                    if kept and kept[-1][1] == number and kept[-1][2] == order:
                        kept[-1][1] = number + 1
                    else:
                        kept.append([number, number + 1, order])
        self._entries = kept
        self._resize(sum(beyond - first for first, beyond, _ in kept))

    def _resize(self, size: int) -> None:
        if self.offered is not None:
            self.offered.ready += size - self._size
        self._size = size

    def lasted(self, seconds: float) -> None:
        """An attempt of this queue took this long."""
        mean = self.mean_seconds
        self.mean_seconds = seconds if mean is None else mean + _NEWEST * (seconds - mean)
