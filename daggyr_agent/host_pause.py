"""The pause of a host that is at fault: nothing is started, then the agent looks again, and goes on or pauses for longer.

`attempts` begins a pause when the host could not start a process, or cannot keep what tasks write, and asks `reason` before it
starts anything. A pause is one second long at first, and twice as long each time, up to five minutes. Then `look` is called in a
thread of its own, because a disk that fails may make it wait for long. A host that was well for longer than its last pause begins
with a second again. Times are those of the event loop, whose clock nobody sets. Nothing here knows of attempts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from daggyr.attempts.times import duration
from daggyr.backoff import Backoff
from daggyr.v1.task_pb2 import HostFault

SHORTEST, LONGEST = 1.0, 300.0  # seconds
_MOST_LETTERS = 500

_log = logging.getLogger(__name__)


class HostPause:
    """The pauses of this host, one after another."""

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Callable[[], str | None], changed: Callable[[], None]) -> None:
        """`look` says what is wrong with the host, or None. `changed` is called in the event loop after each begin and end."""
        self._loop = loop
        self._look = look
        self._changed = changed
        self._backoff = Backoff(SHORTEST, LONGEST)
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0
        self._length = 0.0
        self._ended = float("-inf")
        self.reason: str | None = None  # why nothing is started; None if the host is well. Threads may read it.

    def fault(self) -> HostFault | None:
        """What the coordinator is told; None if the host is well."""
        if self.reason is None:
            return None
        return HostFault(reason=self.reason, pause=duration(max(0.0, self._until - self._loop.time())))

    def begin(self, reason: str) -> None:
        """Begin a pause, unless there is one."""
        if self.reason is not None:
            return
        if self._loop.time() - self._ended > self._length:
            self._backoff.reset()
        self._pause(reason)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _pause(self, reason: str) -> None:
        self.reason = "".join(letter if letter.isprintable() else "?" for letter in reason[:_MOST_LETTERS])
        self._length = self._backoff.next()
        self._until = self._loop.time() + self._length
        self._timer = self._loop.call_at(self._until, self._begin_look)
        _log.warning("nothing is started for %g s: %s", self._length, self.reason)
        self._changed()

    def _begin_look(self) -> None:
        try:
            threading.Thread(target=self._look_in_thread, daemon=True).start()
        except RuntimeError as error:  # There is no process for it, or no memory.
            self._pause(f"a thread cannot be started: {error}")

    def _look_in_thread(self) -> None:
        try:
            found = self._look()
        except Exception as error:  # Whatever it is, a host that cannot even be looked at is not well.
            found = f"it cannot be looked at: {error}"
        with contextlib.suppress(RuntimeError):  # The event loop is closed, because the agent has left.
            self._loop.call_soon_threadsafe(self._looked, found)

    def _looked(self, found: str | None) -> None:
        if found is not None:
            self._pause(found)
            return
        self.reason = None
        self._ended = self._loop.time()
        _log.info("attempts are started again")
        self._changed()
