"""Output of one attempt on its way from an agent's session to whoever follows it.

The agent executor makes one for each Follow that it sends, and puts in what comes; `follow` reads. It holds a bounded number of
chunks: a reader that is slower than the attempt asks again from where it is, instead of filling memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from daggyr.v1.agents_pb2 import FollowedOutput
from daggyr.v1.task_pb2 import OutputChunk
from daggyr_server.executors.agents.session import Session

MAX_FOLLOWED = 64  # chunks of one follow that its reader has not taken; then it is asked for again later


class Followed:
    """At most MAX_FOLLOWED chunks of one follow in one session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.overrun = False  # the reader was too slow: what it has not got must be asked for again
        self._chunks: deque[OutputChunk] = deque()
        self._ended = False
        self._wake = asyncio.Event()

    def put(self, followed: FollowedOutput) -> None:
        """Take what an agent sent."""
        if self._ended:
            return
        if followed.chunk.data:
            if len(self._chunks) >= MAX_FOLLOWED:
                self.overrun = True
                self.end()
                return
            self._chunks.append(followed.chunk)
        self._ended = self._ended or followed.end
        self._wake.set()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._wake.set()

    async def chunks(self) -> AsyncIterator[OutputChunk]:
        """What came, as it comes."""
        while self._chunks or not self._ended:
            if self._chunks:
                yield self._chunks.popleft()
            else:
                self._wake.clear()
                await self._wake.wait()
