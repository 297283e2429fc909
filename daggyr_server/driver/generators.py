"""The output of generators while they run, and what becomes of it when they succeed.

The driver tells which attempts are generators when it starts them, hands over what they print, and asks for the addition
when one has SUCCEEDED. Generator output must be whole: pieces are put together here, independent of what a tracker drops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from daggyr.v1.task_pb2 import STDOUT, AttemptResult
from daggyr_server.core.commands import Key
from daggyr_server.core.graph.graph import Addition
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.spec import PoolLimits, SpecificationError, expand_generated

MAX_BYTES = 64 * 1024 * 1024
LARGE_BYTES = 64 * 1024  # more takes long enough to be noticed by callers
LARGE_RUN = 10_000  # tasks: so do new ones among more
MAX_REASON_BYTES = 4_000  # of faults


class Generators:
    """Standard output of the generators in flight, at most MAX_BYTES each."""

    def __init__(self, pools: Mapping[str, PoolLimits]) -> None:
        self._pools = pools
        self._output: dict[Key, bytearray] = {}

    def __bool__(self) -> bool:
        return bool(self._output)

    def __contains__(self, key: Key) -> bool:
        return key in self._output

    def begin(self, key: Key) -> None:
        """An attempt that is a generator was sent to its executor."""
        self._output[key] = bytearray()

    def keep(self, key: Key, stream: int, offset: int, data: bytes) -> None:
        """Take a piece of what a generator printed; a piece that came before changes nothing."""
        output = self._output.get(key)
        if output is None or stream != STDOUT or offset > len(output):
            return
        if offset + len(data) <= MAX_BYTES:
            output[offset : offset + len(data)] = data

    def forget(self, key: Key) -> None:
        """The attempt ended otherwise."""
        self._output.pop(key, None)

    async def addition(self, key: Key, run: Run, result: AttemptResult, keep: Callable[[], Keeping]) -> Addition | str:
        """The tasks that a generator printed, made for its run's graph as it is now, or why they are refused.

        Many are read in a thread; `keep` makes the list of what they execute. The run's graph must not change meanwhile.
        """
        document = self._output.pop(key, bytearray())
        size = result.stdout.size_bytes
        if size > MAX_BYTES:
            return f"the generator printed {size:,} bytes; the most is {MAX_BYTES:,}"
        if result.stdout.cut_bytes or len(document) != size:
            return f"only {len(document):,} of the {size:,} bytes that the generator printed arrived"
        expand = partial(
            expand_generated,
            document,
            run_parameters=run.parameters,
            graph=run.graph,
            generator=run.task_of(key[1]),
            pools=self._pools,
            default_pool=run.pool,
            keep=keep,
        )
        try:
            large = size > LARGE_BYTES or run.graph.size > LARGE_RUN
            return await asyncio.to_thread(expand) if large else expand()
        except SpecificationError as error:
            return f"the generator's tasks are refused: {error.text(MAX_REASON_BYTES)}"
