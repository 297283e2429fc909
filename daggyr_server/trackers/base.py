"""The tracker interface: where records become durable, and where history is read.

The driver commits the records of each step here before it acts on them, and reads attempts and output for clients. A tracker
knows nothing of scheduling and decides nothing. One conformance suite (tests/trackers) runs against all of them.

README.md in this folder shows how to add one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daggyr.v1.task_pb2 import AttemptResult
from daggyr_server.core.records import AgentPinned, Record
from daggyr_server.core.states import State
from daggyr_server.core.stored import RunRow, StoredRun

MAX_ATTEMPTS = 1_000  # read at once
MAX_ROWS_BYTES = 4 * 1024 * 1024  # of runs' tags, read at once


class TrackerError(Exception):
    """A tracker that cannot be used, or could not do what it was asked; the message says why and what to do.

    After a commit that raised it, asking again may succeed: when the disk has room, when the database is back.
    """


class LostTracker(TrackerError):
    """The tracker is another coordinator's by now, or another tracker stands in its place. Nothing can be written any more.

    The coordinator must end; what is durable is found by the next one.
    """


@dataclass(frozen=True, slots=True)
class Opened:
    """What a tracker tells when it is opened."""

    tracker_id: str  # random, made with the tracker; attempts of another tracker are nobody's here
    epoch: int  # higher at each opening; every commit checks that it is still the highest
    next_run_id: int  # no run, not even a deleted one, had this id or a higher one
    durable: bool  # whether state outlives the process


@dataclass(frozen=True, slots=True)
class StoredAttempt:
    """An attempt that ended. Times, the result's too, are kept to the microsecond at least."""

    attempt: int
    host: str
    host_name: str
    assign_time: float  # seconds since the epoch
    result: AttemptResult


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an attempt's output."""

    offset: int  # bytes, in the stream as the task wrote it
    data: bytes


@dataclass(frozen=True, slots=True)
class StateChange:
    """One entry of a task's or run's history that no attempt tells."""

    time: float  # seconds since the epoch
    number: int | None  # None: the run
    state: State  # from then on; asking for a run's end and editing it leave its state as it was
    reason: str  # "kill", "retry", "mark", "edit", or "" for the run's own course


class Tracker(ABC):
    """Keeps runs, attempts and output. Life: made with its address, `open`, any calls, `close`."""

    def __init__(self, address: str) -> None:
        """`address` as given to `--tracker`. Raises TrackerError if it is malformed."""
        self.address = address

    @property
    def folder(self) -> Path | None:
        """A folder on this host's disk for what of large runs need not be in memory. None: state is in memory anyway."""
        return None

    @abstractmethod
    async def open(self) -> Opened:
        """Begin; called once. Raises TrackerError if it cannot be used, or another coordinator holds it."""

    @abstractmethod
    async def commit(self, records: Sequence[Record]) -> None:
        """Make `records` durable, all of them or none, in order; when this returns, they are.

        Output that was kept already (same attempt, stream and offset) is harmless.

        Raises TrackerError if it cannot be done now: commit the same records again, before any others, until it can. (An answer
        that was lost on its way leaves open what was kept; the tracker finds out and keeps nothing twice.) Raises LostTracker
        if it never can, because another coordinator has opened the tracker since; nothing is kept of the records then.
        """

    @abstractmethod
    async def attempts(
        self, run_id: int, number: int, *, before: int | None = None, limit: int = MAX_ATTEMPTS
    ) -> list[StoredAttempt]:
        """The last `limit` of a task's ended attempts with numbers below `before` (None: all), oldest first.

        Empty for tasks and runs that are not known. There may be tens of thousands: nobody reads them in one turn.
        """

    @abstractmethod
    async def output(self, run_id: int, number: int, attempt: int, stream: int, offset: int, limit: int) -> list[Piece]:
        """What was kept of an attempt's output from `offset` on, in order and without overlaps.

        At most `limit` bytes, at least 1; more only if the first piece is larger: there is always one piece at least, until
        nothing more is there. A gap before a piece was not kept. All numbers are bytes, in the stream as the task wrote it.
        """

    @abstractmethod
    async def document(self, run_id: int, revision: int = 0) -> bytes | None:
        """What a run's graph was made from: its specification as it came, or, with the revision of a growth, what a generator
        printed or an edit brought. None for a run or a growth that is not known."""

    @abstractmethod
    async def unfinished(self) -> list[int]:
        """The ids of the runs that are QUEUED or RUNNING, ascending."""

    @abstractmethod
    async def load(self, run_id: int) -> StoredRun | None:
        """A run as its records left it; None for one that is not known.

        Others have their turn while a large run is read; what is returned is one commit's state.
        """

    @abstractmethod
    async def find_request(self, request_id: str) -> int | None:
        """The run that was submitted with this request_id, or None."""

    @abstractmethod
    async def rows(self, *, before: int | None, limit: int) -> list[RunRow]:
        """At most `limit` runs, newest first, with ids below `before`; None: from the newest.

        Fewer as soon as they hold MAX_ROWS_BYTES of tags together, one at least: only where there are none does a list end.
        """

    @abstractmethod
    async def history(self, run_id: int, number: int | None) -> list[StateChange]:
        """State changes of a task (or, for None, of the run itself) that no attempt tells, oldest first."""

    @abstractmethod
    async def pins(self) -> list[AgentPinned]:
        """The agents whose keys are known, as last pinned, in the order in which they came."""

    @abstractmethod
    async def delete(self, run_id: int, limit: int) -> bool:
        """Take away about `limit` rows of a run, the run itself with the last ones, then give room back.

        Returns whether more is left to do: call it until it is False. Commits go on between calls. A run that was begun to be
        deleted is not known any more to the other methods but `deleting`. Its id is never used again. A run that is not known is
        no error. Raises TrackerError and LostTracker as `commit` does.
        """

    async def scrub(self) -> None:
        """Called once after deletions: nothing of what they took away is left in the tracker's files when this returns, or, if
        somebody else reads them now, soon after. Does nothing where there are no files. Raises as `commit` does."""
        return

    @abstractmethod
    async def deleting(self) -> list[int]:
        """The ids of runs that `delete` has begun and not ended, ascending: an earlier coordinator may have left some."""

    @abstractmethod
    async def close(self) -> None:
        """End; all that was committed stays as durable as it is. Safe to call twice."""
