"""What the sqlite and the postgres tracker do alike: read, and know that they are closed or lost.

Both are subclasses of `SqlTracker`. How each opens its database, commits, deletes and closes is its own. Which rows a record
makes is in batch.py, what rows tell in rows.py, which rows a deletion takes in deletion.py. Nothing here writes by itself.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from daggyr.v1.task_pb2 import AttemptResult
from daggyr_server.core.records import AgentPinned
from daggyr_server.core.stored import EVERY_RUN, RunFilter, RunRow, StoredRun, needed
from daggyr_server.trackers.base import (
    MAX_ATTEMPTS,
    DamagedPart,
    LostTracker,
    Opened,
    Piece,
    StateChange,
    StoredAttempt,
    Tracker,
    TrackerError,
)
from daggyr_server.trackers.pieces import DOCUMENT_PIECE_BYTES, MAX_OFFSET, cut, in_order, joined
from daggyr_server.trackers.sql.batch import stored_text
from daggyr_server.trackers.sql.lock_holder import LockHolder
from daggyr_server.trackers.sql.readers import Readers, Row, Snapshot
from daggyr_server.trackers.sql.rows import (
    TasksFold,
    growth,
    making_sense,
    run_history,
    run_row,
    shown_row,
    stored_attempt,
    task_history,
)
from daggyr_server.trackers.task_rows import unpack

WAIT = 10.0  # seconds that a coordinator waits for another one to let go: one that is being replaced is about to
MAX_OUTPUT_BYTES = 10 * 1024**3  # of a run; the oldest goes first
SCANNED_RUNS = 5_000  # in one statement, for those that are wanted: a millisecond or two
_DOCUMENT_PIECES_A_TURN = 4  # of a mebibyte each


class SqlTracker(Tracker):
    """See the head of this file.

    `where` names the database in messages. `wait` is how long, in seconds, another coordinator may still hold the tracker;
    `output_limit` how many bytes of output are kept of a run.
    """

    def __init__(self, address: str, where: str, readers: Readers, *, wait: float, output_limit: int) -> None:
        super().__init__(address)
        self._where = where
        self._readers = readers
        self._wait = wait
        self._output_limit = output_limit
        self._opened: Opened | None = None
        self._lost: str | None = None  # why nothing can be written any more
        self._writing = asyncio.Lock()  # one commit, piece of a deposit or slice of a deletion at a time
        self._last_deposit = 0  # the greatest number of any

    def __str__(self) -> str:
        return self._where

    # -- reading ------------------------------------------------------------------------------------------------------

    async def attempts(
        self, run_id: int, number: int, *, before: int | None = None, limit: int = MAX_ATTEMPTS
    ) -> list[StoredAttempt]:
        before = MAX_OFFSET if before is None else before
        rows = await self._readers.rows("attempts", run_id=run_id, number=number, before=before, limit=limit)
        with making_sense(run_id, DamagedPart):
            return [stored_attempt(row) for row in rows]

    async def results(self, run_id: int, attempts: Sequence[tuple[int, int]]) -> dict[tuple[int, int], AttemptResult]:
        # As JSON, because each database has another way to take a list.
        asked = msgspec.json.encode(attempts).decode()
        with making_sense(run_id, DamagedPart):
            return {
                (number, attempt): AttemptResult.FromString(result)
                for number, attempt, result in await self._readers.rows("results", run_id=run_id, attempts=asked)
            }

    async def output(self, run_id: int, number: int, attempt: int, stream: int, offset: int, limit: int) -> list[Piece]:
        if offset > MAX_OFFSET:
            return []
        of = {"run_id": run_id, "number": number, "attempt": attempt, "stream": stream}
        rows = await self._readers.rows("output", **of, offset=offset, limit=limit)
        return in_order(rows, offset, limit)

    async def document(self, run_id: int, revision: int = 0) -> bytes | None:
        async with self._readers.snapshot() as snapshot:
            if not await snapshot.rows("has_document", run_id=run_id, revision=revision):
                return None
            return await _document(snapshot, run_id, revision)

    async def unfinished(self) -> list[int]:
        return [run_id for (run_id,) in await self._readers.rows("unfinished")]

    async def find_request(self, request_id: str) -> int | None:
        rows = await self._readers.rows("find_request", request_id=stored_text(request_id))
        return int(rows[0][0]) if rows else None

    async def rows(self, *, before: int | None, limit: int, wanted: RunFilter = EVERY_RUN) -> list[RunRow]:
        below = MAX_OFFSET if before is None else before
        if wanted.is_open:
            return [shown_row(row) for row in await self._readers.runs(below, 0, limit, wanted)]
        while True:
            ((lowest,),) = await self._readers.rows("scanned", before=below, count=SCANNED_RUNS)
            if lowest is None:
                return []
            found = await self._readers.runs(below, lowest, limit, wanted)
            if found:
                return [shown_row(row) for row in found]
            below = lowest
            await asyncio.sleep(0)

    async def history(self, run_id: int, number: int | None) -> list[StateChange]:
        with making_sense(run_id, DamagedPart):
            return await self._history(run_id, number)

    async def _history(self, run_id: int, number: int | None) -> list[StateChange]:
        if number is None:
            return run_history(await self._readers.rows("run_history", run_id=run_id))
        return task_history(await self._readers.rows("task_history", run_id=run_id, number=number), number)

    async def pins(self) -> list[AgentPinned]:
        return [AgentPinned(*row) for row in await self._readers.rows("pins")]

    async def deleting(self) -> list[int]:
        return [run_id for (run_id,) in await self._readers.rows("deleting")]

    async def load(self, run_id: int) -> StoredRun | None:
        with making_sense(run_id):
            return await self._load(run_id)

    async def _load(self, run_id: int) -> StoredRun | None:
        async with self._readers.snapshot() as snapshot:
            runs = await snapshot.rows("run", run_id=run_id)
            if not runs:
                return None
            *_, pool, stopped = runs[0]
            # In a thread, because a row may tell of many tasks.
            fold = await asyncio.to_thread(
                TasksFold,
                await snapshot.rows("hosts", run_id=run_id),
                await snapshot.rows("assignments", run_id=run_id),
                await snapshot.rows("task_changes", run_id=run_id),
            )
            async for rows in snapshot.in_turns("ended", self._readers.rows_a_turn, run_id=run_id):
                fold.ended(rows)
            growths = [growth(row) for row in await snapshot.rows("growths", run_id=run_id)]
            replaced: dict[int, bytes] = {}
            for one in growths:
                if one.number is None and (kept := await _document(snapshot, run_id, -one.revision)):
                    replaced[one.revision] = kept
            documents = {revision: await _document(snapshot, run_id, revision) for revision in needed(growths, replaced)}
            folded = await asyncio.to_thread(fold.result)
            return StoredRun(
                run_row(runs[0]),
                documents.get(0, b""),
                pool,
                [replace(one, document=documents.get(one.revision, b"")) for one in growths],
                *folded,
                replaced,
                unpack(stopped),
            )

    # -- deposits ------------------------------------------------------------------------------------------------------

    def new_deposit(self) -> int:
        self._last_deposit += 1
        return self._last_deposit

    async def deposit(self, number: int, document: bytes | bytearray) -> None:
        # Each piece is a transaction of its own. Commits that have come meanwhile are first, because the lock is fair.
        for start, data in cut(0, document, DOCUMENT_PIECE_BYTES):
            await self._add_deposit_piece(number, start, data)

    async def discard(self, number: int, limit: int) -> bool:
        if not await self._readers.rows("is_deposit", number=number):
            return False
        return await self._discard_pieces(number, limit) > 0

    async def deposits(self) -> list[int]:
        return [number for (number,) in await self._readers.rows("deposits")]

    @abstractmethod
    async def _add_deposit_piece(self, number: int, start: int, data: bytes | memoryview) -> None:
        """Make a piece durable, as long as the tracker is this coordinator's. Raises as `commit` does."""

    @abstractmethod
    async def _discard_pieces(self, number: int, limit: int) -> int:
        """Take pieces away that are nobody's; returns how many. Raises as `commit` does."""

    # -- another life --------------------------------------------------------------------------------------------------

    async def last_sign(self) -> float | None:
        """When a coordinator before this one last did something that can be told, in seconds since the epoch; None if nothing is.

        Raises TrackerError.
        """
        ((time,),) = await self._readers.rows("last_sign")
        return None if time is None else float(time)

    async def begin_another_life(self, tracker_id: str, epoch: int, next_run_id: int) -> None:
        """Be another tracker from now on, with a higher epoch, that gives out other run ids. Raises TrackerError."""
        await self._write_life(tracker_id, epoch, next_run_id)
        self._opened = replace(self._own(), tracker_id=tracker_id, epoch=epoch, next_run_id=next_run_id)

    @abstractmethod
    async def _write_life(self, tracker_id: str, epoch: int, next_run_id: int) -> None:
        """Make this durable. Raises TrackerError."""

    # -- closed or lost -----------------------------------------------------------------------------------------------

    def _own(self) -> Opened:
        """What this coordinator was told when it opened the tracker, as long as it may write. Raises TrackerError."""
        if self._lost is not None:
            raise LostTracker(self._lost)
        if self._opened is None:
            raise TrackerError(f"the tracker {self._where} is closed")
        return self._opened

    def _lose(self, why: str) -> LostTracker:
        """From now on nothing can be written. Returns the error to raise."""
        self._lost = why
        return LostTracker(why)

    def _taken_over(self, holder: Row) -> LostTracker:
        """`holder` is the row of the coordinator that has opened the tracker since."""
        return self._lose(f"the tracker {self._where} was taken over by another coordinator: {LockHolder(*holder)}")


async def _document(snapshot: Snapshot, run_id: int, revision: int) -> bytes:
    pieces: list[tuple[int, bytes]] = []
    async for rows in snapshot.in_turns("document", _DOCUMENT_PIECES_A_TURN, run_id=run_id, revision=revision):
        pieces += rows
    return joined(pieces)
