"""One attempt from its process's start to its result: the life of an execution.

`attempts` makes an Execution when the attempt's turn has come and is called back as it goes on (see `Listener`), last with
the result, when no process of it is left. In between:

    runs        the process runs; its timeout may pass, and `end` may be called
    being ended SIGTERM went to the process group; SIGKILL follows when the grace period has passed
    ended       the process is a zombie: the rest of its group gets SIGKILL while the zombie still holds the group's number,
                then it is reaped
    gone        descendants that had left the group are ended too (descendants.py); the result is made

Nothing here knows of queues, of the coordinator, or of other attempts.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from daggyr.v1.task_pb2 import STDOUT, AttemptResult, OutputStream

from .attempt import Attempt
from .capture import Capture, Captures, Kept
from .cgroup import OomKills
from .descendants import Descendants
from .exits import Exits
from .outcomes import Ending, judge
from .proc import clock_ticks
from .process import End, HostError, Launcher, StartRefusedError, reap, signal_group
from .usage import PeakMemory
from .watch import Watch

DEFAULT_GRACE = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Host:
    """What of this host executions use."""

    loop: asyncio.AbstractEventLoop
    launcher: Launcher
    exits: Exits
    captures: Captures
    descendants: Descendants
    watch: Watch
    oom_kills: OomKills
    peaks: PeakMemory


class Listener(Protocol):
    """Who is told how an execution goes on; each method is called once at most, in this order."""

    def runs(self, execution: Execution) -> None:
        """It has run for some milliseconds: not a short attempt."""

    def gone(self, execution: Execution) -> None:
        """No process of it is left; its resources are free. The result comes soon."""

    def finished(self, execution: Execution, result: AttemptResult | None, outputs: tuple[Kept, ...]) -> None:
        """The result; None if its ending is SILENT."""


def timestamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


class Execution:
    """An attempt that has a process, or had one a moment ago."""

    __slots__ = (
        "_end",
        "_ended_ns",
        "_family",
        "_given_back",
        "_host",
        "_kill_at",
        "_kill_timer",
        "_listener",
        "_oom_kills",
        "_timeout_timer",
        "attempt",
        "capture",
        "ending",
        "lasts",
        "looked_peak",
        "pid",
        "started_ns",
    )

    def __init__(self, host: Host, attempt: Attempt, listener: Listener) -> None:
        """Start the attempt's process. Raises StartRefusedError or HostError; then nothing runs, and nobody is told."""
        self.attempt = attempt
        self.ending: Ending | None = None
        self.lasts = False  # it is not a short one
        self.looked_peak = 0
        self._host = host
        self._listener = listener
        self._kill_at = 0.0
        self._kill_timer: asyncio.TimerHandle | None = None
        self._timeout_timer: asyncio.TimerHandle | None = None
        self._end: End | None = None
        self._given_back = False
        self._ended_ns = 0
        try:
            order = attempt.order()
        except ValueError as error:
            raise StartRefusedError(str(error)) from None
        try:
            self.capture: Capture = host.captures.take(attempt.template.whole_stdout_bytes)
        except OSError as error:
            raise HostError(f"cannot make files for the output: {error.strerror}") from None
        born = clock_ticks()
        self.started_ns = time.time_ns()
        try:
            self.pid = host.launcher.start(
                order.command,
                order.environment,
                working_directory=order.working_directory,
                stdin=order.stdin,
                stdout=self.capture.stdout.descriptor,
                stderr=self.capture.stderr.descriptor,
            )
        except (StartRefusedError, HostError):
            host.captures.give_back(self.capture, reusable=True)
            raise
        try:
            host.exits.watch(self.pid, self._ended)
        except OSError as error:
            signal_group(self.pid, signal.SIGKILL)
            reap(self.pid)
            host.captures.drop(self.capture)
            raise HostError(f"cannot watch a process: {error.strerror}") from None
        environment = order.environment
        self._family = host.descendants.started(
            self.pid,
            (environment[b"DAGGYR_RUN_ID"], environment[b"DAGGYR_TASK_ID"], environment[b"DAGGYR_ATTEMPT"]),
            born,
        )
        self._oom_kills = host.oom_kills.so_far()
        host.watch.add(self)
        if attempt.template.timeout > 0:
            self._timeout_timer = host.loop.call_later(attempt.template.timeout, self.end, Ending.TIMEOUT, DEFAULT_GRACE)

    def end(self, ending: Ending, grace: float) -> None:
        """Ask the process group to end, and make it after `grace` seconds (0: at once). A sooner end may be asked for later.

        The first reason counts, but for SILENT, which always does.
        """
        if ending is Ending.SILENT or (self.ending is None and self.pid):
            self.ending = ending
        if not self.pid:
            return  # it has ended; only its descendants are waited for
        if grace <= 0:
            signal_group(self.pid, signal.SIGKILL)
            return
        kill_at = self._host.loop.time() + grace
        if self._kill_timer is None:
            signal_group(self.pid, signal.SIGTERM)
        elif kill_at >= self._kill_at:
            return
        else:
            self._kill_timer.cancel()
        self._kill_at = kill_at
        self._kill_timer = self._host.loop.call_at(kill_at, signal_group, self.pid, signal.SIGKILL)

    def read(self, stream: OutputStream, offset: int) -> tuple[int, bytes]:
        """For `follow`: what can be read at or after `offset` now, and where it begins; empty if there is nothing new."""
        if self._given_back:
            return offset, b""
        return self.capture.stream(stream).read(offset)

    def outlived_first_look(self) -> None:
        """For `watch`."""
        self.lasts = True
        self._host.descendants.lasts(self._family)
        if self.ending is not Ending.SILENT:
            self._listener.runs(self)

    def _ended(self) -> None:
        pid, self.pid = self.pid, 0
        descendants = self._host.descendants
        alone = descendants.alone()
        if not alone:
            signal_group(pid, signal.SIGKILL)
        self._end = reap(pid)
        self._ended_ns = time.time_ns()
        for timer in (self._kill_timer, self._timeout_timer):
            if timer is not None:
                timer.cancel()
        if descendants.ended(self._family, self._gone, alone=alone):
            self._finish(clean=True)

    def _gone(self) -> None:
        self._finish(clean=False)

    def _finish(self, *, clean: bool) -> None:
        host, end = self._host, self._end
        assert end is not None
        if self.ending is Ending.SILENT:
            host.captures.drop(self.capture)
            self._listener.gone(self)
            self._listener.finished(self, None, ())
            return
        outputs = host.captures.give_back(self.capture, reusable=clean)
        self._given_back = True
        self._listener.gone(self)
        # Later, so that other slots are filled first: their processors have nothing to do until then.
        host.loop.call_soon(self._tell, end, outputs)

    def _tell(self, end: End, outputs: tuple[Kept, ...]) -> None:
        host = self._host
        if self.ending is Ending.SILENT:  # said in between
            for kept in outputs:
                kept.release()
            self._listener.finished(self, None, ())
            return
        outcome, notes = judge(
            exit_code=end.exit_code,
            number=end.signal,
            ending=self.ending,
            timeout=self.attempt.template.timeout,
            oom_kills=host.oom_kills.since(self._oom_kills) if end.signal == signal.SIGKILL else None,
        )
        notes += [
            f"process {pid} of this attempt still runs: it has changed its user, and the agent may not end it"
            for pid in self._family.survivors
        ]
        result = AttemptResult(
            outcome=outcome,
            exit_code=end.exit_code,
            signal=end.signal,
            start_time=timestamp(self.started_ns),
            stop_time=timestamp(self._ended_ns),
            cpu_seconds=end.cpu_seconds,
            max_rss_bytes=host.peaks.of(end.max_rss_bytes, self.looked_peak),
            notes=notes,
        )
        for kept in outputs:
            (result.stdout if kept.stream == STDOUT else result.stderr).CopyFrom(kept.extent.summary())
        self._listener.finished(self, result, outputs)
