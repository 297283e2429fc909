"""Streams the output of attempts to those who follow it, while the attempts run.

The session passes Follow messages on and asks for the next message to send; each follow has at most one piece under way, so that
a slow connection slows the follow down and fills no memory. Files are looked at every 0.1 s, and only those that are followed.
What is cut out of a file is passed over. Follows end with their session: the coordinator asks again in the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from daggyr.v1.agents_pb2 import AgentMessage, Follow, FollowedOutput
from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputChunk, OutputStream

from .outbox import Ident, Outbox, ident_of
from .work import Work

MAX_FOLLOWS = 1_000

_INTERVAL = 0.1  # seconds

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Followed:
    follow_id: int
    ident: Ident
    stream: OutputStream
    offset: int


class Follows:
    """The follows of one session. `added` is called when there is something to send."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Work, outbox: Outbox, added: Callable[[], None]) -> None:
        self._loop = loop
        self._work = work
        self._outbox = outbox
        self._added = added
        self._follows: dict[int, _Followed] = {}
        self._ready: deque[_Followed] = deque()  # to be read from next
        self._idle: list[_Followed] = []  # had nothing new when last looked at
        self._timer: asyncio.TimerHandle | None = None

    def command(self, follow: Follow) -> None:
        """Begin or stop a follow."""
        if follow.stop:
            self._follows.pop(follow.follow_id, None)
            return
        if follow.follow_id in self._follows:
            return
        followed = _Followed(follow.follow_id, ident_of(follow.key), follow.stream, follow.offset)
        if follow.stream in (STDOUT, STDERR) and len(self._follows) < MAX_FOLLOWS:
            self._follows[follow.follow_id] = followed
        else:
            _log.warning("a follow was refused: %d are under way", len(self._follows))
        self._ready.append(followed)
        self._added()

    def take(self) -> AgentMessage | None:
        """The next piece to send, or None if nobody has anything new."""
        while self._ready:
            followed = self._ready.popleft()
            known = self._follows.get(followed.follow_id)
            if known is not followed:
                if known is None and followed.stream in (STDOUT, STDERR) and followed.follow_id in self._follows:
                    continue
            message = self._message(followed)
            if message is not None:
                return message
        return None

    def close(self) -> None:
        """Forget all follows."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._follows.clear()
        self._ready.clear()
        self._idle.clear()
