"""Calls of executors, whose code may be anybody's: what one of them raises is told, and everything that is not its own goes on.

The loop asks executors through `CarefulCalls`. The coordinator and recovery use `unusable` for what is raised before anything has
begun, because then the coordinator does not start. Nothing here waits but `close_all`, and nothing here catches an executor that
blocks the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from daggyr.attempts.outcome import without_process
from daggyr.v1.task_pb2 import REJECTED, AssignmentBatch, AttemptKey, AttemptUpdate
from daggyr_server.executors.base import Executor, ExecutorError, forgotten

log = logging.getLogger(__name__)

CLOSE_SECONDS = 9.5  # for all executors together: a coordinator that is stopped is gone within 10 s


class CarefulCalls:
    """Calls the executors of one coordinator. Where in its code an executor has raised, the log says the first time only."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str, type[Exception]]] = set()  # bounded by what the executors' code can raise
        self._left_behind: set[str] = set()  # the pools whose executors did not close

    def start(self, pool: str, executor: Executor, host: str, batch: AssignmentBatch) -> None:
        """See Executor.start. If it raises, the attempts end as REJECTED, and what it may have started is stopped."""
        try:
            executor.start(host, batch)
        except Exception as error:
            note = self._told(pool, "start attempts", error)
            keys = [assignment.key for assignment in batch.assignments]
            self.stop(pool, executor, host, keys)
            result = without_process(REJECTED, note)
            executor.reports.updates(host, [AttemptUpdate(key=key, finished=result) for key in keys], forgotten)

    def stop(self, pool: str, executor: Executor, host: str, keys: Sequence[AttemptKey]) -> None:
        """See Executor.stop."""
        try:
            executor.stop(host, keys)
        except Exception as error:
            self._told(pool, "stop attempts", error)

    def recall(self, pool: str, executor: Executor, host: str, keys: Sequence[AttemptKey]) -> None:
        """See Executor.recall."""
        try:
            executor.recall(host, keys)
        except Exception as error:
            self._told(pool, "recall attempts", error)

    def demand(self, pool: str, executor: Executor, ready: int) -> None:
        """See Executor.demand."""
        try:
            executor.demand(ready)
        except Exception as error:
            self._told(pool, "hear what its pool demands", error)

    def durable(self, calls: Iterable[Callable[[], None]]) -> None:
        """Say that what was reported is durable."""
        for call in calls:
            try:
                call()
            except Exception as error:
                self._told("", "take that its reports are durable", error)

    async def close_all(self, executors: Mapping[str, Executor]) -> None:
        """Close the executors, side by side. One that takes too long is left behind."""
        closing = {
            asyncio.ensure_future(_close(executor)): pool for pool, executor in executors.items() if pool not in self._left_behind
        }
        if not closing:
            return
        try:
            done, late = await asyncio.wait(closing, timeout=CLOSE_SECONDS)
        except asyncio.CancelledError:
            for task in closing:
                task.cancel()
            raise
        for task in late:
            task.cancel()
            self._left_behind.add(closing[task])
            log.error("the executor of pool %s did not close within %g s and is left behind", closing[task], CLOSE_SECONDS)
        for task in done:
            error = task.exception()
            if isinstance(error, Exception):
                self._told(closing[task], "close", error)

    def _told(self, pool: str, doing: str, error: Exception) -> str:
        """Log that an executor has raised instead of `doing` what it was asked; returns it in words."""
        fault = (pool, doing, type(error))
        words = _in_words(pool, doing, error)
        log.error("%s", words, exc_info=None if fault in self._seen else error)
        self._seen.add(fault)
        return words


async def _close(executor: Executor) -> None:
    await executor.close()


def unusable(pool: str, doing: str, error: Exception) -> ExecutorError:
    """Log where in its code an executor has raised at the start of the coordinator; returns what is to be raised instead."""
    log.error("%s", _in_words(pool, doing, error), exc_info=error)
    return ExecutorError(_in_words(pool, doing, error))


def _in_words(pool: str, doing: str, error: Exception) -> str:
    who = f"the executor of pool {pool}" if pool else "an executor"  # Who reported is not known by then.
    return f"{who} has a fault and did not {doing}: {type(error).__name__}: {error}"
