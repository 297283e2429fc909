"""The executor that runs nothing: every attempt SUCCEEDED at once. For measuring the coordinator and trying graphs out.

The driver calls it as any executor. It answers within the coordinator, on the next turn of the event loop; a daggyr-agent with
`--noop` does the same over the wire. It starts no process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    SUCCEEDED,
    Assignment,
    AssignmentBatch,
    AttemptKey,
    AttemptResult,
    AttemptUpdate,
    Host,
    OutputChunk,
    Placement,
)
from daggyr_server.executors.base import Executor, Reports, forgotten
from daggyr_server.executors.context import ExecutorContext


class NoopSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`workers` is how many attempts there are at once."""

    workers: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 1


class NoopExecutor(Executor):
    """One pool that does nothing."""

    Settings = NoopSettings

    def __init__(self, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> None:
        super().__init__(pool, settings, reports, context)
        self._closed = False

    def largest(self) -> Mapping[str, int] | None:
        return {"cores": self.settings.workers}

    async def open(self) -> None:
        host = Host(host=self.pool, name=self.pool, state=HOST_AVAILABLE, takes_ahead=True)
        host.resources["cores"] = self.settings.workers
        self.reports.host(host)

    def start(self, host: str, batch: AssignmentBatch) -> None:
        asyncio.get_running_loop().call_soon(self._answer, host, batch)

    def _answer(self, host: str, batch: AssignmentBatch) -> None:
        if self._closed:
            return
        result = AttemptResult(outcome=SUCCEEDED, exit_code=0, cpu_seconds=0.0)
        result.start_time.FromNanoseconds(time.time_ns())
        result.stop_time.CopyFrom(result.start_time)
        updates = [AttemptUpdate(key=assignment.key, finished=result) for assignment in batch.assignments]
        self.reports.updates(host, updates, forgotten)

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        """Nothing happens, because all attempts have ended already."""

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None:
        """Nothing happens, because all attempts have ended already."""

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        """Tell that all have SUCCEEDED: there is nothing that could have been lost with the earlier coordinator."""
        self._answer(self.pool, AssignmentBatch(assignments=[Assignment(key=key) for key, _ in placed]))

    async def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        return
        yield

    async def close(self) -> None:
        self._closed = True
