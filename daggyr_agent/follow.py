"""Streams the output of attempts to those who follow it, while the attempts run.

The session passes Follow messages on and asks for the next message to send. Each follow has at most one piece under way, so
that a slow connection slows the follow down and fills no memory. Only files that are followed are looked at, every 0.1 s. What
is cut out of a file is passed over. Follows end with their session, and the coordinator asks again in the next. Nothing here
is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from daggyr.attempts.keys import Ident, ident_of
from daggyr.v1.agents_pb2 import AgentMessage, Follow, FollowedOutput
from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputChunk, OutputStream

from .outbox import Outbox
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
        self._ready: deque[_Followed] = deque()  # to be looked at, in turn
        self._idle: list[_Followed] = []  # had nothing new when last looked at
        self._refused: deque[int] = deque(maxlen=MAX_FOLLOWS)
        self._timer: asyncio.TimerHandle | None = None

    def command(self, follow: Follow) -> None:
        """Begin or stop a follow. A follow of no stream, or beyond MAX_FOLLOWS, ends at once."""
        if follow.stop:
            self._follows.pop(follow.follow_id, None)
            return
        if follow.follow_id in self._follows:
            return
        if follow.stream not in (STDOUT, STDERR) or len(self._follows) >= MAX_FOLLOWS:
            _log.warning("a follow was refused: its stream is %d, and %d are under way", follow.stream, len(self._follows))
            self._refused.append(follow.follow_id)
        else:
            followed = _Followed(follow.follow_id, ident_of(follow.key), follow.stream, follow.offset)
            self._follows[follow.follow_id] = followed
            self._ready.append(followed)
        self._added()

    def take(self) -> AgentMessage | None:
        """The next message to send, or None if no follow has anything new."""
        if self._refused:
            return AgentMessage(followed=FollowedOutput(follow_id=self._refused.popleft(), end=True))
        while self._ready:
            followed = self._ready.popleft()
            if self._follows.get(followed.follow_id) is not followed:
                continue  # stopped
            offset, data, ended = self._read(followed)
            if data:
                followed.offset = offset + len(data)
                self._ready.append(followed)
                chunk = OutputChunk(stream=followed.stream, offset=offset, data=data)
                return AgentMessage(followed=FollowedOutput(follow_id=followed.follow_id, chunk=chunk))
            if ended:
                del self._follows[followed.follow_id]
                return AgentMessage(followed=FollowedOutput(follow_id=followed.follow_id, end=True))
            self._idle.append(followed)
        if self._idle and self._timer is None:
            self._timer = self._loop.call_later(_INTERVAL, self._look_again)
        return None

    def close(self) -> None:
        """Forget all follows."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._follows.clear()
        self._ready.clear()
        self._idle.clear()

    def _look_again(self) -> None:
        self._timer = None
        self._ready.extend(self._idle)
        self._idle.clear()
        self._added()

    def _read(self, followed: _Followed) -> tuple[int, bytes, bool]:
        """What is there at the follow's offset: where it begins, the bytes, and whether no more will come after them."""
        if execution := self._work.execution(followed.ident):
            return *execution.read(followed.stream, followed.offset), False
        if self._work.waits(followed.ident):
            return followed.offset, b"", False
        if finished := self._outbox.undelivered(followed.ident):
            for kept in finished.outputs:
                if kept.stream == followed.stream:
                    offset, length = kept.extent.next_kept(followed.offset)
                    try:
                        return offset, kept.read(offset, length) if length else b"", True
                    except OSError:
                        break
        return followed.offset, b"", True
