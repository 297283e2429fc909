"""The attempts of one SSH target: which wait, which were sent, which run, which have ended; and what of its resources is free.

`target.py` adds attempts, and the parts of a connection (`starting.py`, `watching.py`, `fetching.py`) carry them from one phase
to the next. Nothing here sends or reports.

    WAITING ──> SENT ──> RUNNING ──> ENDED      then it is told of, and forgotten here
    PLACED  ──────────────┘             an earlier coordinator placed it; where it stands is not known yet
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from daggyr.attempts.keys import Ident, name_of
from daggyr.v1.task_pb2 import TaskSpec
from daggyr_server.executors.ssh.script import Ended


class AttemptPhase(Enum):
    WAITING = auto()  # here, for resources
    SENT = auto()  # the target may have begun it
    RUNNING = auto()
    ENDED = auto()  # its output is being fetched
    PLACED = auto()  # by an earlier coordinator


@dataclass(slots=True, eq=False)
class TargetAttempt:
    """One attempt, from `start` or `recover` until its result was told."""

    ident: Ident
    name: str  # of its folder on the target
    task_id: str
    spec: TaskSpec | None  # unless an earlier coordinator placed it
    phase: AttemptPhase
    needs: Mapping[str, int]
    stopping: bool = False  # the driver wants its end
    attended: bool = False  # its warden can tell this connection of its end
    sent_ns: int | None = None  # by this host's monotonic clock; None: an earlier coordinator sent it
    start_ns: int = 0
    told_start: bool = False
    has_folder: bool = False  # the shell was told to make it
    missed: int = 0  # looks in a row that found nobody
    ended: Ended | None = None


@dataclass(slots=True)
class TargetAttempts:
    """All attempts of one target that have no result yet."""

    free: dict[str, int] = field(default_factory=dict)  # units of the target's resources that nobody uses
    held: dict[Ident, TargetAttempt] = field(default_factory=dict)
    waiting: deque[TargetAttempt] = field(default_factory=deque)
    ended: deque[TargetAttempt] = field(default_factory=deque)
    unused: list[str] = field(default_factory=list)  # folders made ahead, for attempts that were not sent
    complete: bool = False  # all that an earlier coordinator placed here was placed

    def add(self, ident: Ident, task_id: str, spec: TaskSpec) -> TargetAttempt:
        """Add a new attempt at the end of the queue."""
        attempt = TargetAttempt(ident, name_of(ident), task_id, spec, AttemptPhase.WAITING, dict(spec.resources))
        self.held[ident] = attempt
        self.waiting.append(attempt)
        return attempt

    def place(self, ident: Ident) -> None:
        """Add an attempt that an earlier coordinator placed."""
        if ident not in self.held:
            self.held[ident] = TargetAttempt(ident, name_of(ident), "", None, AttemptPhase.PLACED, {})

    def next(self) -> TargetAttempt | None:
        """Take the first attempt that waits, which is SENT then; None if there is none, or if what it needs is not free."""
        if not self.waiting:
            return None
        attempt = self.waiting[0]
        if any(self.free.get(name, 0) < units for name, units in attempt.needs.items()):
            return None
        self.waiting.popleft()
        attempt.phase = AttemptPhase.SENT
        self._use(attempt, 1)
        return attempt

    def took_up(self, attempt: TargetAttempt, needs: Mapping[str, int]) -> None:
        """Note that an attempt runs. `needs` count if it was PLACED, because its specification is not known here then."""
        if attempt.phase is AttemptPhase.PLACED:
            attempt.needs = needs
            self._use(attempt, 1)
        attempt.phase = AttemptPhase.RUNNING

    def end(self, attempt: TargetAttempt, ended: Ended) -> None:
        """Note that an attempt's process has ended: its resources are free, and its output is to be fetched."""
        if attempt.phase in (AttemptPhase.SENT, AttemptPhase.RUNNING):
            self._use(attempt, -1)
        attempt.phase = AttemptPhase.ENDED
        attempt.ended = ended
        self.ended.append(attempt)

    def forget(self, attempt: TargetAttempt) -> None:
        """Forget an attempt whose result is told."""
        if self.held.pop(attempt.ident, None) is None:
            return
        if attempt.phase is AttemptPhase.WAITING:
            self.waiting.remove(attempt)
            if attempt.has_folder:
                self.unused.append(attempt.name)
        elif attempt.phase in (AttemptPhase.SENT, AttemptPhase.RUNNING):
            self._use(attempt, -1)

    def resize(self, resources: Mapping[str, int]) -> None:
        """Note the target's resources, of which those are free that the attempts there leave."""
        self.free = dict(resources)
        for attempt in self.held.values():
            if attempt.phase in (AttemptPhase.SENT, AttemptPhase.RUNNING):
                self._use(attempt, 1)

    def in_phase(self, *phases: AttemptPhase) -> list[TargetAttempt]:
        return [attempt for attempt in self.held.values() if attempt.phase in phases]

    def known(self, idents: Iterable[Ident]) -> list[TargetAttempt]:
        return [self.held[ident] for ident in idents if ident in self.held]

    def _use(self, attempt: TargetAttempt, sign: int) -> None:
        for name, units in attempt.needs.items():
            self.free[name] = self.free.get(name, 0) - sign * units
