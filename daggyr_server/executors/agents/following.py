"""Output of attempts on its way from agents' sessions to those who follow it.

The agent executor has one `FollowedOutputs`: it opens a follow for each reader, passes on what sessions bring, and ends the
follows of a session that has ended. A follow holds a bounded number of chunks. A reader that is slower than its attempt asks
again from where it is, so that it fills no memory. Nothing here keeps output, or knows where an attempt runs.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from daggyr.v1.agents_pb2 import CoordinatorMessage, Follow, FollowedOutput
from daggyr.v1.task_pb2 import AttemptKey, OutputChunk, OutputStream
from daggyr_server.executors.agents.session import AgentSession

MAX_FOLLOWED = 64  # chunks of one follow that its reader has not taken; beyond these, the reader asks again later


class Followed:
    """At most MAX_FOLLOWED chunks of one follow in one session."""

    def __init__(self, session: AgentSession) -> None:
        self.session = session
        self.overrun = False  # the reader was too slow: it has to ask again for what it did not get
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
        """Say that nothing more comes."""
        self._ended = True
        self._wake.set()

    async def chunks(self) -> AsyncIterator[OutputChunk]:
        """Yield what came, as it comes, until the end."""
        while self._chunks or not self._ended:
            if self._chunks:
                yield self._chunks.popleft()
            else:
                self._wake.clear()
                await self._wake.wait()


class FollowedOutputs:
    """The open follows of one pool."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._open: dict[int, Followed] = {}

    @contextmanager
    def opened(self, session: AgentSession, key: AttemptKey, stream: OutputStream, offset: int) -> Iterator[Followed]:
        """Ask a session's agent for output as long as the context lasts."""
        follow_id = next(self._ids)
        followed = self._open[follow_id] = Followed(session)
        session.send(CoordinatorMessage(follow=Follow(follow_id=follow_id, key=key, stream=stream, offset=offset)))
        try:
            yield followed
        finally:
            del self._open[follow_id]
            session.send(CoordinatorMessage(follow=Follow(follow_id=follow_id, stop=True)))

    def put(self, session: AgentSession, followed: FollowedOutput) -> None:
        """Take what a session's agent sent. Output of a follow that is closed, or of another session, is passed over."""
        found = self._open.get(followed.follow_id)
        if found is not None and found.session is session:
            found.put(followed)

    def end(self, session: AgentSession) -> None:
        """Say that a session has ended."""
        for followed in self._open.values():
            if followed.session is session:
                followed.end()

    def end_all(self) -> None:
        """Say that the pool is closed."""
        for followed in self._open.values():
            followed.end()
