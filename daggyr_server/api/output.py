"""Reading the output of one attempt: what is stored, what its executor still has, and what was not kept.

`RunsServicer.ReadOutput` iterates over `read_output`. An attempt that runs has its output on its host only; once it has ended,
the tracker has what was kept, by offset. This file only reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from daggyr.v1.runs_pb2 import ReadOutputResponse
from daggyr.v1.task_pb2 import STDOUT, AttemptKey
from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import State
from daggyr_server.driver.loop import Driver
from daggyr_server.trackers.base import StoredAttempt

CHUNK_BYTES = 256 * 1024
LIVE_SECONDS = 0.5  # without `follow`: output of an attempt that runs is waited for this long after the last piece
AGAIN_SECONDS = 1.0  # with `follow`: how soon an attempt is looked at again if its host ends the stream


async def read_output(
    driver: Driver, run: Run, number: int, attempt: int, stream: int, offset: int, *, follow: bool
) -> AsyncIterator[ReadOutputResponse]:
    """The output from `offset` on; `attempt` 0 is the last one, and with `follow` the first that starts."""
    if attempt == 0:
        attempt = await _last_attempt(driver, run, number, follow=follow)
    while attempt:
        now = run.graph.newest(number)  # an edit may have come in between
        number = now if now is not None else number
        flight = run.in_flight.get(number)
        if flight is not None and flight.attempt != attempt:
            flight = None
        known = flight.number if flight is not None else await _number_then(driver, run, number, attempt)
        async for answer in _stored(driver, run, known, attempt, stream, offset):
            offset = answer.offset + len(answer.data)
            yield answer
        if flight is None:
            return
        async for answer in _live(
            driver, flight, AttemptKey(run_id=run.run_id, task_number=known, attempt=attempt), stream, offset, follow
        ):
            offset = answer.offset + len(answer.data)
            yield answer
        if not follow:
            return
        await _change(driver, run, attempt, flight)


async def _last_attempt(driver: Driver, run: Run, number: int, *, follow: bool) -> int:
    while True:
        now = run.graph.newest(number)
        if now is None:
            return run.attempts[number]
        if run.attempts[now] or not follow or run.state not in (State.QUEUED, State.RUNNING):
            return run.attempts[now]
        await driver.changes.wait(run.run_id, driver.changes.seq(run.run_id))


async def _number_then(driver: Driver, run: Run, number: int, attempt: int) -> int:
    """The number that a task had when an attempt was made that has ended."""
    lineage = run.graph.lineage(number)
    for known in lineage[:-1]:
        if await _ended(driver, run, known, attempt) is not None:
            return known
    return lineage[-1]


async def _stored(
    driver: Driver, run: Run, number: int, attempt: int, stream: int, offset: int
) -> AsyncIterator[ReadOutputResponse]:
    """What the tracker has; of an attempt that has ended, also that more is missing at the end."""
    while pieces := await driver.tracker.output(run.run_id, number, attempt, stream, offset, CHUNK_BYTES):
        for piece in pieces:
            for start in range(0, len(piece.data), CHUNK_BYTES):
                data = piece.data[start : start + CHUNK_BYTES]
                at = piece.offset + start
                yield ReadOutputResponse(data=data, offset=at, missing_bytes=at - offset, attempt=attempt)
                offset = at + len(data)
    stored = await _ended(driver, run, number, attempt)
    if stored is not None:
        size = (stored.result.stdout if stream == STDOUT else stored.result.stderr).size_bytes
        if size > offset:
            yield ReadOutputResponse(offset=size, missing_bytes=size - offset, attempt=attempt)


async def _ended(driver: Driver, run: Run, number: int, attempt: int) -> StoredAttempt | None:
    """An attempt that has ended, of a task under this number."""
    stored = await driver.tracker.attempts(run.run_id, number, before=attempt + 1, limit=1)
    return stored[-1] if stored and stored[-1].attempt == attempt else None


async def _live(
    driver: Driver, flight: InFlight, key: AttemptKey, stream: int, offset: int, follow: bool
) -> AsyncIterator[ReadOutputResponse]:
    """What the attempt's host has, as it comes; without `follow`, until nothing comes for a while."""
    executor = driver.executors.get(flight.pool)
    if executor is None:
        return  # the pool is not configured any more
    chunks = executor.follow(flight.host, key, stream, offset)
    try:
        while True:
            try:
                async with asyncio.timeout(None if follow else LIVE_SECONDS):
                    chunk = await anext(chunks)
            except (StopAsyncIteration, TimeoutError):
                return
            missing = max(0, chunk.offset - offset)
            data = chunk.data[max(0, offset - chunk.offset) :]
            if data or missing:
                at = max(offset, chunk.offset)
                yield ReadOutputResponse(data=data, offset=at, missing_bytes=missing, attempt=key.attempt)
                offset = at + len(data)
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


async def _change(driver: Driver, run: Run, attempt: int, flight: InFlight) -> None:
    """Wait until the run changes, or a moment: the host may know of the end before it is committed."""
    seq = driver.changes.seq(run.run_id)
    if run.current(flight.number, attempt) is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_SECONDS):
                await driver.changes.wait(run.run_id, seq)
