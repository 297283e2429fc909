"""The tracker interface: where records become durable, and where history is read.

The driver commits the records of each step here before it acts on them, and reads attempts and output for clients. A tracker
decides nothing and never schedules. What it gives back of a whole run are types of the core (core/stored.py), as records are. One
conformance suite (tests/trackers) runs against all trackers; README.md in this folder shows how to add one.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daggyr.v1.task_pb2 import AttemptResult
from daggyr_server.core.records import AgentPinned, Record
from daggyr_server.core.states import State
from daggyr_server.core.stored import EVERY_RUN, RunFilter, RunRow, StoredRun

MAX_ATTEMPTS = 1_000  # read at once
SHOWN_TASKS = 3  # that an entry of a run's history names
MAX_ROWS_BYTES = 4 * 1024 * 1024  # of runs' tags, read at once
MAX_LIVES = 1_000  # starts that a tracker tells of when it is opened


class TrackerError(Exception):
    """The tracker cannot be used, or could not do what it was asked; the message says why and what to do.

    The same commit may succeed later: when the disk has room, or when the database is back.
    """


class LostTracker(TrackerError):
    """Another coordinator has the tracker now, or another tracker stands in its place. Nothing can be written any more.

    The coordinator must end, because what it believes may differ from what is durable; the next one reads that.
    """


class DamagedRun(TrackerError):
    """What the tracker holds of one run makes no sense. The tracker can be used, and other runs go on."""

    def __init__(self, run_id: int, what: str) -> None:
        super().__init__(
            f"run {run_id} is damaged in the tracker ({what}): nothing of it runs any more; bring back a copy from before, or "
            f"take the run away: daggyr delete {run_id}"
        )
        self.run_id = run_id


class DamagedPart(DamagedRun):
    """What the tracker holds of some attempts or changes of a run makes no sense. The run itself can be read, and goes on."""

    def __init__(self, run_id: int, what: str) -> None:
        TrackerError.__init__(
            self,
            f"a part of run {run_id} is damaged in the tracker ({what}): it cannot be shown, and the rest goes on; bring back a "
            f"copy from before, or take the run away once it has ended: daggyr delete {run_id}",
        )
        self.run_id = run_id


@dataclass(frozen=True, slots=True)
class Opened:
    """What a tracker tells when it is opened."""

    tracker_id: str  # random, made with the tracker; attempts of another tracker are nobody's here
    epoch: int  # higher at each opening; every commit checks that it is still the highest
    next_run_id: int  # higher than the id of any run before, deleted ones included
    durable: bool  # whether state outlives the process
    life: int  # this start's: random, 1 to 2**63 - 1 (new_life); part of the identity of all that this start assigns
    lives: Mapping[int, int]  # by epoch, the lives of the last MAX_LIVES starts, this one included
    first_id: str = ""  # the tracker_id before the tracker was restored for the first time; empty: it never was


def new_life() -> int:
    """The number of a start of a coordinator. A copy of the tracker draws another one at its own start."""
    return secrets.randbelow(2**63 - 1) + 1


@dataclass(frozen=True, slots=True)
class StoredAttempt:
    """An attempt that ended. All times, those in the result too, are kept to the microsecond at least."""

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
    """One entry in the history of a task or a run: a change that no attempt explains."""

    time: float  # seconds since the epoch
    number: int | None  # None for the run itself
    # From then on. A run that is edited, or whose end is asked for, keeps its state. In a run's history, where a person moved
    # some of its tasks, it is the state of these.
    state: State
    reason: str  # "kill", "retry", "mark" or "edit", if a person asked for it; else ""
    tasks: tuple[int, ...] = ()  # in a run's history: the first SHOWN_TASKS of those that a person moved...
    count: int = 0  # ...and how many they are


class Tracker(ABC):
    """Keeps runs, attempts and output. It is made with its address; then come `open`, any other calls, and `close`."""

    def __init__(self, address: str) -> None:
        """`address` is what `--tracker` names. Raises TrackerError if it is malformed."""
        self.address = address

    def __str__(self) -> str:
        """The tracker in messages. A subclass whose address may hold a secret shows it without that."""
        return self.address.partition(":")[0]

    @property
    def folder(self) -> Path | None:
        """A folder on this host's disk for the parts of large runs that need not be in memory.

        None for a tracker that keeps everything in memory anyway.
        """
        return None

    @abstractmethod
    async def open(self) -> Opened:
        """Begin. It is called once. Raises TrackerError if the tracker cannot be used, or if another coordinator holds it."""

    @abstractmethod
    async def commit(self, records: Sequence[Record]) -> None:
        """Make `records` durable, in order, all of them or none. They are durable when this returns.

        A piece of output may come again (same attempt, stream and offset); the tracker keeps it once.

        Raises TrackerError if the commit is not possible now. The caller then commits the same records again, before any others,
        until it succeeds. (If an answer was lost on its way, the caller cannot know whether the records were kept; the tracker
        finds out, and keeps nothing twice.) Raises LostTracker if no commit will be possible again, because another coordinator
        has opened the tracker since; none of the records is kept then.
        """

    def new_deposit(self) -> int:
        """A number under which `deposit` may write a document; 0 if this tracker takes none.

        A deposit is a large document that is written before the commit that it belongs to, so that other commits need not wait
        for it. It is nobody's until a commit has a record that names it (see records.py): then it is that record's document. The
        caller discards those that no commit has named and none will.
        """
        return 0

    async def deposit(self, number: int, document: bytes | bytearray) -> None:
        """Write a document under a number of `new_deposit`. Commits go on meanwhile; all of it is durable when this returns.

        Raises TrackerError and LostTracker as `commit` does. Then the number is of no more use.
        """
        raise NotImplementedError

    async def discard(self, number: int, limit: int) -> bool:
        """Take away about `limit` pieces of a deposit, unless a commit has named it. Returns whether more are left.

        Raises TrackerError and LostTracker as `commit` does.
        """
        return False

    async def deposits(self) -> list[int]:
        """The numbers of the deposits that no commit has named, ascending. An earlier coordinator may have left some."""
        return []

    @abstractmethod
    async def attempts(
        self, run_id: int, number: int, *, before: int | None = None, limit: int = MAX_ATTEMPTS
    ) -> list[StoredAttempt]:
        """The last `limit` of a task's ended attempts whose numbers are below `before`, oldest first. None means no such bound.

        The list is empty for a task or a run that is not known. Read page by page: a task may have tens of thousands. Raises
        DamagedPart.
        """

    async def results(self, run_id: int, attempts: Sequence[tuple[int, int]]) -> dict[tuple[int, int], AttemptResult]:
        """The results of those of these attempts, each the number of a task and of an attempt of its, that have ended.

        A list of tasks asks for many at once, so a tracker does better to find them together than one by one. Raises DamagedPart.
        """
        found = {}
        for number, attempt in attempts:
            for stored in await self.attempts(run_id, number, before=attempt + 1, limit=1):
                if stored.attempt == attempt:
                    found[number, attempt] = stored.result
        return found

    @abstractmethod
    async def output(self, run_id: int, number: int, attempt: int, stream: int, offset: int, limit: int) -> list[Piece]:
        """What was kept of an attempt's output from `offset` on, in order and without overlaps.

        The pieces have at most `limit` bytes together, which is at least 1; a first piece that is larger comes alone, so that a
        reader always gets on. The list is empty once nothing more is there. A gap between two pieces was not kept. All numbers
        are bytes, in the stream as the task wrote it.
        """

    @abstractmethod
    async def document(self, run_id: int, revision: int = 0) -> bytes | None:
        """What a run's graph was made from. None for a run or a revision that is not known.

        Revision 0 is the specification as it came; that of a growth is what the generator printed, or the specification that the
        edit brought.
        """

    @abstractmethod
    async def unfinished(self) -> list[int]:
        """The ids of the runs that are QUEUED or RUNNING, ascending."""

    @abstractmethod
    async def load(self, run_id: int) -> StoredRun | None:
        """A run as its records left it, after one commit and before the next; None for a run that is not known.

        Other work of the event loop has its turn while a large run is read. Raises DamagedRun.
        """

    @abstractmethod
    async def find_request(self, request_id: str) -> int | None:
        """The run that was submitted with this request_id, or None."""

    @abstractmethod
    async def rows(self, *, before: int | None, limit: int, wanted: RunFilter = EVERY_RUN) -> list[RunRow]:
        """At most `limit` runs with ids below `before`, newest first. None means no such bound.

        All runs that are `wanted` are among them, and others may be, because some of a filter is cheaper for whoever asks. Other
        work of the event loop has its turn while the tracker looks for them among many runs.

        A run that takes their tags to MAX_ROWS_BYTES or above is the last one of the list. So a short list is not the end of all
        runs; an empty one is.
        """

    @abstractmethod
    async def history(self, run_id: int, number: int | None) -> list[StateChange]:
        """The state changes of a task, or of the run itself if `number` is None, that no attempt explains, oldest first.

        Those of a run include what a person moved of its tasks by a kill, a retry or a mark. Raises DamagedPart.
        """

    @abstractmethod
    async def pins(self) -> list[AgentPinned]:
        """The agents whose keys are known, as last pinned, in the order in which they came."""

    @abstractmethod
    async def delete(self, run_ids: Sequence[int], limit: int) -> bool:
        """Take away about `limit` rows of some runs, the runs themselves with the last ones, then give their room back.

        Returns whether more is left to do; call it with the same runs until it is False. Commits go on between the calls. From
        the first call on, no other method but `deleting` knows any of the runs, and their ids are never used again. A run that is
        not known is no error; without any run, only room is given back. The first call marks all of them at once, so the caller
        gives a few hundred at most. Raises TrackerError and LostTracker as `commit` does.
        """

    async def scrub(self) -> None:
        """Leave nothing of deleted runs in the tracker's files. The driver calls it once after a number of deletions.

        It is done when this returns, or, if somebody else reads the files now, soon after. A tracker without files does nothing.
        Raises TrackerError and LostTracker as `commit` does.
        """
        return

    @abstractmethod
    async def deleting(self) -> list[int]:
        """The ids of the runs that `delete` has begun and not ended, ascending. An earlier coordinator may have left some."""

    @abstractmethod
    async def close(self) -> None:
        """End. What was committed stays as durable as it is. A second call does nothing."""
