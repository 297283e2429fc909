"""Whether this host can start tasks and keep what they write: what is looked at, what begins a pause, what is blamed on the host.

`attempts` asks `reason` before it starts anything, tells of starts that failed, and asks `blamed` at the end of each attempt.
`room` looks at the disk, `host_pause` keeps the time. Everything happens in the event loop, but for the look before a pause ends,
which has a thread of its own. Nothing here starts or ends an attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from daggyr.attempts.outcome import STOPPED_NOTE
from daggyr.v1.task_pb2 import HostFault

from .execution import Execution
from .execution_context import ExecutionContext
from .host_pause import HostPause
from .room import Room

_ROOM_SECONDS = 1.0  # between two looks at the room while attempts run
_BLAMED_SECONDS = 10.0  # A task that fails so soon after its host could keep nothing may have failed for that.


class HostCondition:
    """What is known of the host."""

    def __init__(
        self, context: ExecutionContext, room: Room, running: Callable[[], Iterable[Execution]], changed: Callable[[], None]
    ) -> None:
        """`running` gives the executions whose results are not told. `changed` is called when a pause has begun or ended."""
        self._context = context
        self._room = room
        self._running = running
        self._changed = changed
        self._pause = HostPause(context.loop, self._look_at_host, self._pause_changed)
        self._looked_at = float("-inf")  # when the room was looked at
        self._unkept: str | None = None  # why what tasks write cannot be kept, as of the last look

    @property
    def reason(self) -> str | None:
        """Why nothing is started; None if the host is well. Threads may read it."""
        return self._pause.reason

    def fault(self) -> HostFault | None:
        """What the coordinator is told; None if the host is well."""
        self.look()
        return self._pause.fault()

    def begin_pause(self, reason: str) -> None:
        """A start has failed."""
        self._pause.begin(reason)

    def look(self, *, soon: bool = False) -> None:
        """Begin a pause if the disk has no room, or fails. `soon` looks again although that was done within the last second."""
        now = self._context.loop.time()
        if not soon and now - self._looked_at < _ROOM_SECONDS:
            return
        self._looked_at = now
        shortage = self._room.shortage()
        if shortage is not None:
            self._pause.begin(shortage)
            self._look_at_writing()
        elif (failing := self._room.failing()) is not None:
            self._cannot_keep(failing)
        elif self._pause.reason is None:
            self._unkept = None
            if (fault := self._context.journal.fault) is not None:
                self._pause.begin(fault)

    def blamed(self, execution: Execution) -> str | None:
        """Why what an attempt wrote until its end just now could not be kept, if that is so: its failure may be the host's."""
        if execution.failed:
            self._look_at_writing()
        if self._unkept is not None or execution.unkept_while is None:
            return self._unkept
        soon = self._context.loop.time() - execution.unkept_at <= _BLAMED_SECONDS
        return execution.unkept_while if soon else None

    def close(self) -> None:
        """Look no more."""
        self._pause.close()

    def _look_at_writing(self) -> None:
        """Find out whether a file can be written. If not, what runs now may have lost what it wrote."""
        self._unkept = None
        unwritable = self._room.unwritable()
        if unwritable is not None:
            self._cannot_keep(unwritable)

    def _cannot_keep(self, reason: str) -> None:
        """What runs now may have lost what it wrote. No file that is there is used again, as it may lie on a failed disk."""
        self._unkept = reason
        self._context.captures.renew()
        self._pause.begin(reason)
        for execution in self._running():
            execution.unkept_while, execution.unkept_at = reason, self._context.loop.time()

    def _pause_changed(self) -> None:
        if self._pause.reason is None:
            self._context.journal.mend()
            self.look(soon=True)
        self._changed()

    def _look_at_host(self) -> str | None:
        """What is wrong with the host: it must have its folder and room, write a file, start a process. In a thread."""
        if self._context.leaving:
            return STOPPED_NOTE
        return self._room.mended() or self._room.shortage() or self._room.unusable() or self._context.launcher.try_to_start()
