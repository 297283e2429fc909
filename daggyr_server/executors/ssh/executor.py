"""The ssh executor: attempts run on hosts that are reached by SSH and on which nothing is installed.

The driver calls it. It passes what it is asked on to the targets of its pool, each of which keeps itself connected (`target.py`);
it never opens a connection itself. A target needs Linux, a POSIX /bin/sh, coreutils and setsid(1).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec

from daggyr.attempts.keys import ident_of
from daggyr.attempts.outcome import without_process
from daggyr.v1.task_pb2 import LOST, AssignmentBatch, AttemptKey, AttemptUpdate, OutputChunk, Placement
from daggyr_server.executors.base import Executor, ExecutorError, Reports, forgotten
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.ssh.connection import check_files
from daggyr_server.executors.ssh.settings import SshSettings
from daggyr_server.executors.ssh.target import Target

_ASKED = ("cores", "memory_mb")  # what a target is asked for if its settings do not say it
_UNKNOWN = 2**62


class SshExecutor(Executor):
    """One pool of SSH targets."""

    Settings: ClassVar[type[msgspec.Struct]] = SshSettings
    sized_by: ClassVar[str] = "targets.resources"

    def __init__(self, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> None:
        super().__init__(pool, settings, reports, context)
        self._targets = {target.known_as: Target(target, settings, pool, reports, context) for target in settings.targets}

    async def open(self) -> None:
        fault = await asyncio.to_thread(check_files, self.settings)
        if fault:
            raise ExecutorError(f"pool {self.pool}: {fault}")
        for target in self._targets.values():
            target.open()

    def largest(self) -> Mapping[str, int]:
        largest: dict[str, int] = {}
        for target in self.settings.targets:
            for name, units in (dict.fromkeys(_ASKED, _UNKNOWN) | target.resources).items():
                largest[name] = max(units, largest.get(name, 0))
        return largest

    def start(self, host: str, batch: AssignmentBatch) -> None:
        if host in self._targets:
            self._targets[host].start(batch)
            return
        result = without_process(LOST, f"the pool {self.pool} has no target {host}")
        updates = [AttemptUpdate(key=assignment.key, finished=result) for assignment in batch.assignments]
        asyncio.get_running_loop().call_soon(self.reports.updates, host, updates, forgotten)

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        if host in self._targets:
            self._targets[host].stop(map(ident_of, keys))

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None:
        if host in self._targets:
            self._targets[host].recall(map(ident_of, keys))

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        by_host: dict[str, list[AttemptKey]] = {name: [] for name in self._targets}
        for key, placement in placed:
            by_host.setdefault(placement.host, []).append(key)
        for host, keys in by_host.items():
            if host in self._targets:
                self._targets[host].recover(map(ident_of, keys))
            else:
                result = without_process(LOST, f"the pool {self.pool} has no target {host} any more")
                self.reports.updates(host, [AttemptUpdate(key=key, finished=result) for key in keys], forgotten)

    async def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        if host in self._targets:
            async with aclosing(self._targets[host].follow(ident_of(key), stream, offset)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def close(self) -> None:
        await asyncio.gather(*(target.close() for target in self._targets.values()))
