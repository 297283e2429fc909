"""Reading the output of one attempt: what is stored, what its host still has, and how much was not kept.

The call ReadOutput (reading.py) iterates over `read_output`. While an attempt runs, its host may have more than the tracker; once
it has ended, the tracker has what was kept, by offset. Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from daggyr.v1.runs_pb2 import ReadOutputResponse
from daggyr.v1.task_pb2 import STDOUT
from daggyr_server.core.commands import Key
from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import State
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.ended import Reader
from daggyr_server.trackers.base import StoredAttempt

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
LIVE_SECONDS = 0.5  # Without `follow`, output of an attempt that runs is waited for this long after the last piece.
AGAIN_SECONDS = 1.0  # With `follow`, an attempt is looked at again this soon after its host has ended the stream.


async def read_output(
    reader: Reader, changes: Changes, run: Run, number: int, attempt: int, stream: int, offset: int, *, follow: bool
) -> AsyncIterator[ReadOutputResponse]:
    """The output from `offset` (bytes) on. `attempt` 0 is the last one; with `follow`, the first one is waited for.

    With `follow`, the output comes until the attempt has ended. Raises TrackerError.
    """
    if attempt == 0:
        attempt = await _last_attempt(changes, run, number, follow=follow)
    while attempt:
        now = run.graph.newest(number)  # An edit may have renumbered the task meanwhile.
        number = now if now is not None else number
        flight = run.in_flight.get(number)
        if flight is not None and flight.attempt != attempt:
            flight = None
        known = flight.number if flight is not None else await _number_then(reader, run, number, attempt)
        async for answer in _stored(reader, run, known, attempt, stream, offset):
            offset = answer.offset + len(answer.data)
            yield answer
        if flight is None:
            return
        key = (run.run_id, known, attempt)
        async for answer in _live(reader, flight, key, stream, offset, follow):
            offset = answer.offset + len(answer.data)
            yield answer
        if not follow:
            return
        await _change(changes, run, attempt, flight)


async def _last_attempt(changes: Changes, run: Run, number: int, *, follow: bool) -> int:
    while True:
        now = run.graph.newest(number)
        if now is None:
            return run.attempts[number]
        if run.attempts[now] or not follow or run.state not in (State.QUEUED, State.RUNNING):
            return run.attempts[now]
        await changes.wait(run.run_id, changes.seq(run.run_id))


async def _number_then(reader: Reader, run: Run, number: int, attempt: int) -> int:
    """The number that a task had when an attempt was made that has ended."""
    lineage = run.graph.lineage(number)
    for known in lineage[:-1]:
        if await _ended(reader, run, known, attempt) is not None:
            return known
    return lineage[-1]


async def _stored(
    reader: Reader, run: Run, number: int, attempt: int, stream: int, offset: int
) -> AsyncIterator[ReadOutputResponse]:
    """What the tracker has and, of an attempt that has ended, how much is missing at the end."""
    while pieces := await reader.output(run.run_id, number, attempt, stream, offset, CHUNK_BYTES):
        for piece in pieces:
            for start in range(0, len(piece.data), CHUNK_BYTES):
                data = piece.data[start : start + CHUNK_BYTES]
                at = piece.offset + start
                yield ReadOutputResponse(data=data, offset=at, missing_bytes=at - offset, attempt=attempt)
                offset = at + len(data)
    stored = await _ended(reader, run, number, attempt)
    if stored is not None:
        size = (stored.result.stdout if stream == STDOUT else stored.result.stderr).size_bytes
        if size > offset:
            yield ReadOutputResponse(offset=size, missing_bytes=size - offset, attempt=attempt)


async def _ended(reader: Reader, run: Run, number: int, attempt: int) -> StoredAttempt | None:
    """The attempt of the task with this number, if it has ended."""
    stored = await reader.attempts(run.run_id, number, before=attempt + 1, limit=1)
    return stored[-1] if stored and stored[-1].attempt == attempt else None


async def _live(
    reader: Reader, flight: InFlight, key: Key, stream: int, offset: int, follow: bool
) -> AsyncIterator[ReadOutputResponse]:
    """What the attempt's host has, as it comes; without `follow`, until nothing comes for a while."""
    chunks = None
    try:
        chunks = reader.live_output(flight, key, stream, offset)
        if chunks is None:
            return
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
                yield ReadOutputResponse(data=data, offset=at, missing_bytes=missing, attempt=key[2])
                offset = at + len(data)
    except Exception as error:  # An executor's code may be anybody's.
        log.error("the executor of pool %s has a fault and gives no output: %s: %s", flight.pool, type(error).__name__, error)
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


async def _change(changes: Changes, run: Run, attempt: int, flight: InFlight) -> None:
    """Wait until the run changes, or a moment: the host may know of the end before it is committed."""
    seq = changes.seq(run.run_id)
    if run.current(flight.number, attempt) is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_SECONDS):
                await changes.wait(run.run_id, seq)
