"""What every call of the client's service begins and ends with: which run and task it means, and how it ends if it is refused.

The classes of the calls derive from `Servicer`: submitting.py, reading.py, watching.py, steering.py, hosts.py. They
reach the driver through three objects, `requests`, `reader` and `changes`, and no other way. Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import grpc

from daggyr.bounds import MAX_NOTE_BYTES, cut
from daggyr.v1.run_pb2 import RunSummary
from daggyr_server.api import views
from daggyr_server.api.arriving import Arriving
from daggyr_server.api.statuses import fitting
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Kind
from daggyr_server.core.step import Reason
from daggyr_server.core.stored import RunRow
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.ended import Reader
from daggyr_server.driver.errors import BeingRestored, Closing, Refused
from daggyr_server.driver.requests import Requests
from daggyr_server.spec import PoolLimits
from daggyr_server.trackers.base import DamagedRun, StoredAttempt, TrackerError

LARGE_RUN = 20_000  # tasks
MAX_PAGE_BYTES = 1024 * 1024  # of the rows of one answer
MAX_INTEGER = 2**63 - 1  # the largest that a tracker can hold; fields of requests reach further
MAX_REFUSED = 10  # agents of a pool that are told of
TURN = 250  # rows that are made before everybody else has a turn: a millisecond or two
STRANGE_TOKEN = "this page token was not made by this server"
_CODES = {
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.GROWN: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NOT_NOW: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CONFLICT: grpc.StatusCode.ABORTED,
    Reason.STALE: grpc.StatusCode.ABORTED,
    Reason.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the configuration lets clients submit."""

    pools: Mapping[str, PoolLimits]
    executors: Mapping[str, str]  # pool -> its executor's name
    default_pool: str
    max_bytes: int  # of a document
    max_tasks: int  # of a run
    max_arriving_bytes: int = 2 * 1024**3  # of all documents together that are on their way
    arriving_seconds: float = 30.0  # for which a client may bring nothing of its document


class Servicer:
    """What the calls of one server share. Methods with a `context` end the call if they cannot return what they promise."""

    def __init__(self, requests: Requests, reader: Reader, changes: Changes, limits: Limits) -> None:
        self.requests = requests
        self.reader = reader
        self.changes = changes
        self.limits = limits
        self.arriving = Arriving(requests.folder, most=limits.max_arriving_bytes, patience=limits.arriving_seconds)

    async def summary(self, run: Run) -> RunSummary:
        """A run as it is, once that is durable."""
        await self.reader.settled(run.run_id)
        return self.summary_now(run)

    def summary_now(self, run: Run) -> RunSummary:
        """A run as the machine has it, which may be more than is durable."""
        summary = views.run_summary(run, self.reader.pools, self.changes.seq(run.run_id), self.reader.now())
        if not run.has_ended and (refused := self.refused_agents()):
            for pool in {policy.pool: None for policy in run.graph.policies}:
                summary.notes.extend(refused.get(pool, ()))
        if summary.ready:
            for pool in {policy.pool: None for policy in run.graph.policies}:
                summary.notes.extend(f"pool {pool}: {cut(note, MAX_NOTE_BYTES)}" for note in self.reader.lately_noted(pool))
        if self.reader.trouble is not None:
            trouble = cut(self.reader.trouble, MAX_NOTE_BYTES)
            summary.notes.append(f"nothing new is started, because state cannot be made durable: {trouble}")
        self._note_damage(summary)
        return summary

    def refused_agents(self) -> Mapping[str, Sequence[str]]:
        """By pool, some of the agents that want to join it and are refused, each with why."""
        found: dict[str, list[str]] = {}
        for pool, agent in self.reader.refused_agents():
            words = found.setdefault(pool, [])
            if len(words) < MAX_REFUSED:
                words.append(f"agent {agent.name} is refused: {agent.reason}")
        return found

    def stored_summary(self, row: RunRow) -> RunSummary:
        """A run that is not in memory: it has ended, or it is being restored."""
        if not row.damage and (damage := self.reader.damage.whole(row.run_id)) is not None:
            row = replace(row, damage=str(damage))
        summary = views.stored_summary(row, self.changes.seq(row.run_id), self.reader.now())
        restored = self.reader.being_restored(row.run_id)
        if restored is not None:
            summary.notes.append(restored)
        self._note_damage(summary)
        return summary

    def _note_damage(self, summary: RunSummary) -> None:
        damage = self.reader.damage.part(summary.run_id)
        if damage is not None:
            summary.notes.append(cut(str(damage), MAX_NOTE_BYTES))

    async def answered(self, answer: Awaitable[T], context: Context) -> T:
        """What the driver answers."""
        try:
            return await answer
        except (TrackerError, BeingRestored, Closing, Refused) as error:
            await end_call(error, context)

    async def damaged(self, run_id: int) -> RunSummary | None:
        """What can be told of a run that is damaged in the tracker; None if it is not, or nothing can. Raises nothing."""
        if not 0 < run_id <= MAX_INTEGER:
            return None
        try:
            await self.reader.find(run_id)
        except DamagedRun as damage:
            with contextlib.suppress(TrackerError):
                for row in await self.reader.rows(before=run_id + 1, limit=1):
                    if row.run_id == run_id:
                        return self.stored_summary(replace(row, damage=row.damage or str(damage)))
        except (TrackerError, BeingRestored, Closing, Refused):
            pass
        return None

    async def run(self, run_id: int, context: Context) -> Run:
        """The run of this id; 0 is the newest."""
        run = await self.find(run_id, context)
        if isinstance(run, str):
            await context.abort(grpc.StatusCode.NOT_FOUND, run)
        return run

    async def find(self, run_id: int, context: Context) -> Run | str:
        """The run of this id, or the newest run if it is 0; or the error that tells why there is none."""
        if not run_id:
            newest = await self.answered(self.reader.newest(), context)
            if newest is None:
                return "there are no runs yet"
            run_id = newest
        # A tracker cannot even be asked for a larger number.
        run = await self.answered(self.reader.find(run_id), context) if run_id <= MAX_INTEGER else None
        return run if run is not None else f"there is no run {run_id}; `daggyr runs` lists them"

    async def attempts(
        self, run: Run, number: int, context: Context, *, limit: int, since: tuple[int, int] | None = None
    ) -> list[tuple[int, StoredAttempt]]:
        """The last `limit` ended attempts of a task, oldest first, each with the number that the task had then.

        With `since`, the number of a task and of an attempt of its, only those before that attempt.
        """
        found: list[tuple[int, StoredAttempt]] = []
        lineage = list(run.graph.lineage(number))  # the newest first
        before = None
        if since is not None:
            if since[0] not in lineage:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, STRANGE_TOKEN)
            lineage = lineage[lineage.index(since[0]) :]
            before = since[1]
        for known in lineage:
            if len(found) >= limit:
                break
            stored = await self.answered(
                self.reader.attempts(run.run_id, known, before=before, limit=limit - len(found)), context
            )
            found = [(known, attempt) for attempt in stored] + found
            before = None
        return found

    async def last_attempt(self, run: Run, number: int, context: Context) -> StoredAttempt | None:
        """The task's last attempt that has ended."""
        last = await self.attempts(run, number, context, limit=1)
        return last[-1][1] if last else None

    async def learn_parents(self, run: Run) -> None:
        """Have the parents of a large run's tasks found in a thread, once, so that asking for those of one holds up nobody."""
        graph = run.graph
        if graph.size >= LARGE_RUN and not graph.knows_parents:
            frozen = graph.frozen()
            await asyncio.to_thread(frozen.parents, frozen.live)
            graph.learn_parents(frozen)

    async def learn_names(self, run: Run) -> None:
        """Have the names of a large run's tasks sorted in a thread, once, for the same reason."""
        graph = run.graph
        if graph.size >= LARGE_RUN and not graph.knows_names:
            frozen = graph.frozen()
            await asyncio.to_thread(frozen.number_of, "")
            graph.learn_names(frozen)

    async def number(self, run: Run, task_id: str, context: Context, *, before: bool = False) -> int:
        """A task's number. With `before`, also that of a task which an edit took away."""
        await self.learn_names(run)
        number = run.graph.number_of(task_id)
        if number is None and before:
            number = run.graph.number_before(task_id)
            now = run.graph.newest(number) if number is not None else None  # It may live on under another name.
            number = now if now is not None else number
        if number is None:
            message = f"run {run.run_id} has no task {task_id[:1024]!r}; `daggyr tasks {run.run_id}` lists them"
            await context.abort(grpc.StatusCode.NOT_FOUND, fitting(message))
        return number

    async def named(self, run: Run, names: Any, context: Context) -> Sequence[int] | None:
        """The numbers that plain names mean, each once; None for no names."""
        if not names:
            return None
        await self.learn_names(run)
        numbers: list[int] = []
        for name in names:
            found = run.graph.named(name)
            if found is None:
                await self.number(run, name, context)
            elif run.graph.kind(found[0]) is not Kind.TASK:
                message = f"task {name!r} runs nothing: name the task that it belongs to, or one of its expansions"
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, fitting(message))
            elif len(names) == 1:
                return found  # which costs nothing, however many they are
            else:
                numbers += found
        return tuple(dict.fromkeys(numbers))


async def end_call(error: Refused | BeingRestored | Closing | TrackerError, context: Context) -> NoReturn:
    """End a call with the status that fits the driver's error: UNAVAILABLE unless it is a refusal."""
    if isinstance(error, DamagedRun):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, fitting(str(error)))
    if not isinstance(error, Refused):
        await context.abort(grpc.StatusCode.UNAVAILABLE, fitting(str(error)))
    await context.abort(_CODES[error.refusal.reason], fitting(str(error)))


async def page_start(token: str, context: Context) -> int | None:
    """Where a page goes on whose token is an id or a number; None for the first page."""
    if not token:
        return None
    if not token.isdecimal() or len(token) > 18:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, STRANGE_TOKEN)
    return int(token)
