"""Records and results as the driver would commit them, short to write."""

from __future__ import annotations

from collections.abc import Sequence

from daggyr.v1.task_pb2 import STDOUT, AttemptOutcome, AttemptResult
from daggyr_server.core.records import AttemptRecorded, OutputKept, RunAdded
from daggyr_server.core.states import Outcome, State
from daggyr_server.trackers.base import Piece, Tracker

DAY = 1_356_998_400  # 2013-01-01, in seconds since the epoch


def run_added(run_id: int = 1, document: bytes = b"{}") -> RunAdded:
    return RunAdded(
        run_id=run_id, request_id=f"request-{run_id}", tags={"env": "test"}, pool="default", submit_time=DAY, document=document
    )


def recorded(
    result: AttemptResult | None = None,
    *,
    run_id: int = 1,
    number: int = 0,
    attempt: int = 1,
    host: str = "h1",
    host_name: str = "one",
    assign_time: float = DAY,
) -> AttemptRecorded:
    if result is None:
        result = AttemptResult(outcome=AttemptOutcome.SUCCEEDED)
    outcome = Outcome(result.outcome)
    state = State.COMPLETED if outcome is Outcome.SUCCEEDED else State.ERRORED
    return AttemptRecorded(run_id, number, attempt, outcome, host, host_name, assign_time, result, state)


def kept(offset: int, data: bytes, *, run_id: int = 1, number: int = 0, attempt: int = 1, stream: int = STDOUT) -> OutputKept:
    return OutputKept(run_id, number, attempt, stream, offset, data)


async def pages(
    tracker: Tracker, limit: int, *, offset: int = 0, run_id: int = 1, number: int = 0, attempt: int = 1, stream: int = STDOUT
) -> list[Sequence[Piece]]:
    """All of an attempt's output, asked for as a reader does: from where the page before ended."""
    found: list[Sequence[Piece]] = []
    while page := await tracker.output(run_id, number, attempt, stream, offset, limit):
        assert sum(len(piece.data) for piece in page) <= limit or len(page) == 1
        for piece in page:
            assert piece.data, "a piece without bytes"
            assert piece.offset >= offset, "pieces out of order, or overlapping"
            offset = piece.offset + len(piece.data)
        found.append(page)
    return found


async def whole(tracker: Tracker, **of: int) -> list[tuple[int, bytes]]:
    """All of an attempt's output with its gaps: what lies side by side is put together."""
    stretches: list[tuple[int, bytearray]] = []
    for page in await pages(tracker, 1024 * 1024, **of):
        for piece in page:
            if not stretches or stretches[-1][0] + len(stretches[-1][1]) < piece.offset:
                stretches.append((piece.offset, bytearray()))
            stretches[-1][1].extend(piece.data)
    return [(offset, bytes(data)) for offset, data in stretches]
