"""The output of generators while they run, and the tasks that it makes when they succeed.

The loop tells which attempts are generators when it starts them, hands over what they print, and asks for the tasks when one of
them ends. Pieces are put together here, because a generator's output must be whole and a tracker may drop output. Nothing here
changes a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from daggyr.bounds import MAX_NOTE_BYTES, cut
from daggyr.v1.task_pb2 import RETURNED, STDOUT, AttemptResult
from daggyr_server.core.commands import Key
from daggyr_server.core.events import AttemptEnded
from daggyr_server.core.graph.graph import Addition
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.states import Outcome
from daggyr_server.spec import PoolLimits, SpecificationError, expand_generated

MAX_BYTES = 64 * 1024 * 1024
LARGE_BYTES = 64 * 1024  # Reading a larger document takes so long that callers would notice.
LARGE_RUN = 10_000  # tasks; adding to a larger run takes as long
MAX_REASON_BYTES = 4_000  # of the faults of a document
_TAKEN = bytearray()  # compared by identity: what the generator printed is being read, and nothing comes any more


class Generators:
    """Standard output of the generators whose attempts are in flight, at most MAX_BYTES each."""

    def __init__(self, pools: Mapping[str, PoolLimits]) -> None:
        self._pools = pools
        self.printed: dict[Key, bytearray] = {}  # by attempt; for reading

    def begin(self, key: Key) -> None:
        """The attempt of a generator was sent to its executor."""
        self.printed[key] = bytearray()

    def keep(self, key: Key, stream: int, offset: int, data: bytes) -> None:
        """Take a piece of what a generator printed; a piece that came before changes nothing."""
        output = self.printed.get(key)
        if output is None or output is _TAKEN or stream != STDOUT or offset > len(output):
            return
        if offset + len(data) <= MAX_BYTES:
            output[offset : offset + len(data)] = data

    def forget(self, key: Key) -> None:
        """The attempt has ended: whatever it printed is not needed any more."""
        self.printed.pop(key, None)

    async def completed(self, ended: AttemptEnded, run: Run | None, keep: Callable[[], Keeping]) -> AttemptEnded:
        """The end of a generator's attempt, with the tasks that it printed, or with why they are refused.

        The tasks are made for the run's graph as it is now, which must not change meanwhile. An attempt that did not succeed, or
        whose end does not count any more, comes back as it was. `keep` makes the list of what the tasks execute.
        """
        document = self.printed.pop(ended[:3])
        return await self.made(ended, run, document, keep) if run is not None else ended

    def is_large(self, ended: AttemptEnded, run: Run) -> bool:
        """Whether it takes long to make the tasks of a generator that has succeeded."""
        return bool(ended.result.stdout.size_bytes > LARGE_BYTES or run.graph.size > LARGE_RUN)

    def take(self, key: Key) -> bytearray:
        """What a generator whose attempt has ended printed, for `made`. From now on it gets no more, until it is forgotten."""
        document, self.printed[key] = self.printed[key], _TAKEN
        return document

    async def made(self, ended: AttemptEnded, run: Run, document: bytearray, keep: Callable[[], Keeping]) -> AttemptEnded:
        """As `completed`, of an attempt that printed `document`."""
        flight = run.current(ended.number, ended.attempt)
        counts = flight is not None and run.counts_for(run.task_of(ended.number), flight)
        if ended.outcome is not Outcome.SUCCEEDED or not counts:
            return ended
        if (unkept := _unkept(document, ended.result)) is not None:
            ended.result.outcome = RETURNED
            ended.result.notes.append(unkept)
            return ended._replace(outcome=Outcome.RETURNED)
        addition = await self._addition(ended, run, document, keep)
        if not isinstance(addition, str):
            return ended._replace(addition=addition)
        refusal = cut(addition, MAX_NOTE_BYTES)
        ended.result.notes.extend(refusal.splitlines())
        return ended._replace(refusal=refusal)

    async def _addition(self, ended: AttemptEnded, run: Run, document: bytearray, keep: Callable[[], Keeping]) -> Addition | str:
        """The tasks that a generator printed, or why they are refused. Many are read in a thread."""
        size = ended.result.stdout.size_bytes
        if size > MAX_BYTES:
            return f"the generator printed {size:,} bytes; the most is {MAX_BYTES:,}"
        expand = partial(
            expand_generated,
            document,
            run_parameters=run.parameters,
            graph=run.graph,
            generator=run.task_of(ended.number),
            pools=self._pools,
            default_pool=run.pool,
            keep=keep,
        )
        try:
            return await asyncio.to_thread(expand) if self.is_large(ended, run) else expand()
        except SpecificationError as error:
            return f"the generator's tasks are refused: {error.text(MAX_REASON_BYTES)}"


def _unkept(document: bytearray, result: AttemptResult) -> str | None:
    """Why the document of a generator is not whole, if that is its host's fault."""
    size, came = result.stdout.size_bytes, len(document)
    if size > MAX_BYTES or not (result.stdout.incomplete or result.stdout.cut_bytes or came != size):
        return None
    more = ", and more may be missing" if result.stdout.incomplete else ""
    return f"{came:,} of the {size:,} bytes that the generator printed arrived{more}"
