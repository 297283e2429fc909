"""Kinds of attempts of which Slurm takes few or none for now, for a limit of the site: what is kept of them, and what is told.

A kind is known from the first refusal until Slurm takes whole arrays of it again, or nothing of it has come for some time.
Meanwhile the core is told how many more attempts of the kind are wanted (`limits`), which are about as many as may soon be
submitted. So what Slurm does not take waits in the core, where it keeps nothing from others. What was given before the first
refusal waits in the pool, up to the kind's part of MAX_HELD_BACK, and does not count against what the pool offers; the rest goes
back (`surplus`).

`KnownJobs` has one `RefusedKinds`, and the submitter changes it. Nothing here submits anything or tells anybody.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from daggyr.attempts.times import duration
from daggyr.backoff import Backoff
from daggyr.v1.task_pb2 import KindLimit
from daggyr_server.executors.slurm.client import Needs

# Attempts that wait in a pool beside what it offers. The refused kinds share it equally, and each has at least one. With more
# kinds than that, those above count against what the pool offers.
MAX_HELD_BACK = 3_000
_MAX_REASON = 300  # characters of a reason that is told of each kind


class JobKind(NamedTuple):
    """All that Slurm is told of an attempt and may refuse it for. The core knows kinds by resources and timeout."""

    needs: Needs
    timeout: float  # seconds; 0: none
    resources: tuple[tuple[str, int], ...]  # from which the needs were made, sorted


class Alike(NamedTuple):
    """What the tasks of one array share."""

    kind: JobKind
    whole_stdout_bytes: int


@dataclass(slots=True, eq=False)
class HeldBack:
    """What is known of a kind of which Slurm takes few or none."""

    backoff: Backoff
    most: int = 0  # tasks that are submitted together at most: less after each refusal, more after two submissions
    reason: str = ""  # in Slurm's words
    tried: float = 0.0  # monotonic
    due: float = 0.0  # when it is tried again, monotonic; 0 unless not even one is taken
    taken: int = 0  # submissions since the last refusal


class RefusedKinds:
    """Of one pool. What waits there is given as the kind of each attempt that is of a refused kind."""

    def __init__(self) -> None:
        self.by_kind: dict[JobKind, HeldBack] = {}

    @property
    def _part(self) -> int:
        """How many attempts of each kind may wait in the pool."""
        return max(1, MAX_HELD_BACK // max(1, len(self.by_kind)))

    def limits(self, waiting: Iterable[JobKind]) -> Iterator[KindLimit]:
        """How many more attempts of each kind are wanted, and why not more."""
        here = Counter(waiting)
        part = self._part
        for kind, refused in self.by_kind.items():
            yield KindLimit(
                resources=dict(kind.resources),
                timeout=duration(kind.timeout) if kind.timeout else None,
                room=max(0, min(2 * refused.most, part) - here[kind]),
                reason=f"Slurm does not let it in for now: {refused.reason or 'it was too much at once'}"[:_MAX_REASON],
            )

    def surplus(self, waiting: Iterable[JobKind]) -> Counter[JobKind]:
        """How many attempts there are of each kind beyond its part; kinds that keep to theirs are left out."""
        part = self._part
        return Counter({kind: count - part for kind, count in Counter(waiting).items() if count > part})

    def reasons(self, waiting: Iterable[JobKind]) -> Iterable[str]:
        """Why Slurm takes none of the kinds that wait, each reason once."""
        here = set(waiting)
        return dict.fromkeys(refused.reason for kind, refused in self.by_kind.items() if refused.due and kind in here)

    def hurry(self, interval: float) -> None:
        """Something has ended, which may have made room: try each kind again, `interval` seconds after it was tried last."""
        for refused in self.by_kind.values():
            refused.due = min(refused.due, refused.tried + interval)

    def forget(self, waiting: Iterable[JobKind], seconds: float) -> bool:
        """Forget kinds of which nothing waits, and which were tried more than `seconds` ago. Returns whether there were any."""
        if not self.by_kind:
            return False
        here, long_ago = set(waiting), time.monotonic() - seconds
        gone = [kind for kind, refused in self.by_kind.items() if kind not in here and refused.tried < long_ago]
        for kind in gone:
            del self.by_kind[kind]
        return bool(gone)
