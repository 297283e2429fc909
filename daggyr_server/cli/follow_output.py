"""Follows the output of running tasks, for `daggyr logs -f`.

A watch tells which attempts have begun. Each of them is then followed with a stream of its own; the number of streams has a
bound. What an attempt wrote before comes first, so that only attempts that ended before this began are left out. Nothing here
ends a run.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterable
from contextlib import aclosing
from typing import NamedTuple

import grpc

from daggyr.client import ENDED, Client, ServerError
from daggyr.v1.run_pb2 import State, TaskSummary, TaskType
from daggyr.v1.runs_pb2 import TaskChange
from daggyr.v1.task_pb2 import RETURNED, OutputStream
from daggyr_server.cli.outputs import Unshown, show

_STREAMS = 32
_QUEUE = 1000
# A task that waits may have an attempt that has not begun. If it has an outcome, it waits for its retry.
_STARTED = {State.STATE_RUNNING, *ENDED}


class _Begun(NamedTuple):
    """An attempt that has begun. `attempt` 0 means the task's last one."""

    task_number: int
    task_id: str
    attempt: int


class OutputFollower:
    """Prints the output of a run's tasks until they have ended."""

    def __init__(
        self,
        client: Client,
        run_id: int,
        stream: OutputStream,
        numbers: range | None,
        *,
        to: int = 1,
        unshown: Unshown | None = None,
    ) -> None:
        """`numbers` are those of the tasks to follow, or None for all tasks of the run. `to` is the descriptor to write to.

        `unshown` is asked to look at each attempt that was shown.
        """
        self._client = client
        self._run_id = run_id
        self._stream = stream
        self._to = to
        self._unshown = unshown
        self._numbers = numbers
        self._is_single = numbers is not None and len(numbers) == 1
        self._ended: set[int] = set()  # those of self._numbers whose tasks have ended
        self._shown = array("I")  # task number -> the last attempt that was shown
        self._begun: asyncio.Queue[_Begun | None] = asyncio.Queue(_QUEUE)

    async def until_ended(self) -> None:
        """Print until all followed tasks have ended. Raises ServerError, or stdout.Closed."""
        # A single task gets one stream, which keeps its attempts in order.
        count = 1 if self._is_single else _STREAMS
        jobs = [asyncio.create_task(self._watch(count)), *(asyncio.create_task(self._show()) for _ in range(count))]
        try:
            await asyncio.gather(*jobs)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _watch(self, showing: int) -> None:
        async with aclosing(self._client.watch(self._run_id, tasks=True)) as changes:
            async for change in changes:
                if change.missed:
                    await self._read_again()
                await self._take(change.tasks)
                if self._numbers is not None and len(self._ended) == len(self._numbers):
                    break
        for _ in range(showing):
            await self._begun.put(None)

    async def _read_again(self) -> None:
        async with aclosing(self._client.tasks(self._run_id)) as pages:
            async for page in pages:
                for task in page:
                    if self._is_followed(task) and task.task_type != TaskType.TASK_TYPE_STRUCTURAL:
                        if task.attempt_count:
                            await self._begun.put(_Begun(task.task_number, task.task_id, 0))
                        self._note_end(task)

    async def _take(self, tasks: Iterable[TaskChange]) -> None:
        for task in tasks:
            if self._is_followed(task):
                started = task.state in _STARTED or task.outcome not in (0, RETURNED)
                if task.attempt and started:
                    await self._begun.put(_Begun(task.task_number, task.task_id, task.attempt))
                self._note_end(task)

    def _is_followed(self, task: TaskSummary | TaskChange) -> bool:
        return self._numbers is None or task.task_number in self._numbers

    def _note_end(self, task: TaskSummary | TaskChange) -> None:
        if self._numbers is not None and task.state in ENDED:
            self._ended.add(task.task_number)

    async def _show(self) -> None:
        while (begun := await self._begun.get()) is not None:
            try:
                attempt = begun.attempt or await self._last_attempt(begun.task_id)
                if self._is_news(begun.task_number, attempt):
                    found = await show(
                        self._client,
                        self._run_id,
                        begun.task_id,
                        attempt,
                        self._stream,
                        prefixed=not self._is_single,
                        follow=True,
                        to=self._to,
                    )
                    if self._unshown is not None:
                        await self._unshown.look(begun.task_id, attempt, found=found)
            except ServerError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND:  # the attempt never started, or an edit has taken its task away
                    raise

    async def _last_attempt(self, task_id: str) -> int:
        attempts = (await self._client.task(self._run_id, task_id)).attempts
        return attempts[-1].attempt if attempts else 0

    def _is_news(self, number: int, attempt: int) -> bool:
        """Whether an attempt was not shown before. It counts as shown afterwards."""
        if number >= len(self._shown):
            self._shown.extend([0] * (number + 1 - len(self._shown)))
        if attempt <= self._shown[number]:
            return False
        self._shown[number] = attempt
        return True
