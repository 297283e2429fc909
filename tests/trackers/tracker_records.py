"""Short ways to write records and results as the driver commits them, and to read output as a client does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daggyr.v1.task_pb2 import STDOUT, AttemptOutcome, AttemptResult
from daggyr_server.core.records import AttemptRecorded, AttemptsAssigned, OutputKept, RunAdded, RunMoved, TasksMoved
from daggyr_server.core.states import Outcome, State
from daggyr_server.trackers.base import Piece, Tracker

DAY = 1_356_998_400  # 2013-01-01, in seconds since the epoch


def run_added(run_id: int = 1, document: bytes = b"{}", *, request_id: str | None = None) -> RunAdded:
    return RunAdded(
        run_id=run_id,
        request_id=f"request-{run_id}" if request_id is None else request_id,
        tags={"env": "test"},
        pool="default",
        submit_time=DAY,
        document=document,
    )


def run_moved(state: State, time: float = DAY, *, run_id: int = 1, counts: Mapping[State, int] | None = None) -> RunMoved:
    return RunMoved(run_id, state, time, counts or {})


def assigned(
    *numbers: int, attempt: int = 1, run_id: int = 1, host: str = "h1", host_name: str = "one", time: float = DAY
) -> AttemptsAssigned:
    return AttemptsAssigned(run_id, host, host_name, list(numbers), [attempt] * len(numbers), time)


def moved(
    state: State, *numbers: int, attempts: int = 0, run_id: int = 1, reason: str = "retry", time: float = DAY
) -> TasksMoved:
    return TasksMoved(run_id, list(numbers), [attempts] * len(numbers), state, reason, time)


def ended(outcome: Outcome, state: State, *, number: int = 0, attempt: int = 1, run_id: int = 1) -> AttemptRecorded:
    result = AttemptResult(outcome=int(outcome))  # type: ignore[arg-type]
    return AttemptRecorded(run_id, number, attempt, outcome, "h1", "one", DAY, result, state)


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
    """All of an attempt's output, page by page, each asked for from where the page before ended."""
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
    """All of an attempt's output, as stretches without a gap."""
    stretches: list[tuple[int, bytearray]] = []
    for page in await pages(tracker, 1024 * 1024, **of):
        for piece in page:
            if not stretches or stretches[-1][0] + len(stretches[-1][1]) < piece.offset:
                stretches.append((piece.offset, bytearray()))
            stretches[-1][1].extend(piece.data)
    return [(offset, bytes(data)) for offset, data in stretches]
