"""One attempt from its process's start to its result: the life of an execution.

`attempts` makes an execution when the attempt's turn has come. Then these methods are called, in this order:

    carry_out   in a thread of `slots`. It starts the process, waits for its end and reaps it. Between its end and its reaping the
                process is a zombie, which keeps the number of its group: if anybody else is left, the group gets SIGKILL then.
    settle      in the event loop. It ends descendants that had left the group (descendants.py).
    result      in the event loop. It makes the message that tells of the end.

Meanwhile the event loop may call `end`, and `watch` calls `look`. To end an attempt, SIGTERM goes to the process group, and
SIGKILL follows when the grace period has passed. A process that lasts until the first look is written down in the journal. A
process is signalled, looked up and reaped with the context's lock held, so that nobody signals a number that has become a
stranger's. Nothing here knows of queues, of the coordinator, or of other attempts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable

from daggyr.attempts.outcome import EXITED_0, Cause, Seen, judge
from daggyr.attempts.startable import NotStartable
from daggyr.attempts.times import timestamp
from daggyr.v1.task_pb2 import RETURNED, STDOUT, AttemptResult, OutputStream

from .attempt import AssignedAttempt
from .capture import Capture, Kept
from .descendants import Family
from .execution_context import ExecutionContext
from .proc import look
from .process import End, reap, signal_group
from .start_faults import HostError, LostError

_log = logging.getLogger(__name__)


class Execution:
    """An attempt that has a process, will have one in a moment, or had one."""

    __slots__ = (
        "_began",
        "_capture",
        "_context",
        "_end",
        "_ended_ns",
        "_family",
        "_kill_at",
        "_kill_timer",
        "_oom_kills",
        "_runs",
        "_signal",
        "_written_down",
        "attempt",
        "cause",
        "deadline",
        "disowned",
        "fault",
        "lasts",
        "looked_peak",
        "pid",
        "started_ns",
        "succeeded",
        "unkept_at",
        "unkept_while",
    )

    def __init__(self, context: ExecutionContext, attempt: AssignedAttempt, runs: Callable[[Execution], None]) -> None:
        """`runs` is called in the event loop once the process has lasted until the first look of `watch`."""
        self.attempt = attempt
        self.pid = 0  # of the process; 0 unless it can be signalled
        self.started_ns = 0  # since the epoch
        self.deadline = float("inf")  # of the timeout, by the event loop's clock
        self.looked_peak = 0  # bytes
        self.cause: Cause | None = None  # why the agent began to end it
        self.disowned = False  # it is no longer this agent's: nobody is told of it
        self.fault: NotStartable | HostError | LostError | None = None  # why it was not started, or has no end that is known
        self.unkept_while: str | None = None  # why its host could not keep what tasks write, at some time while it ran...
        self.unkept_at = float("-inf")  # ...and when that was seen last, by the event loop's clock
        self.lasts = False  # The process has lasted until the first look.
        self.succeeded = False  # `attempts` sets it: its resources went to the next attempt in its slot.
        self._context = context
        self._runs = runs
        self._signal: signal.Signals | None = None  # a signal that was asked for before there was a process
        self._kill_at = float("inf")
        self._kill_timer: asyncio.TimerHandle | None = None
        self._capture: Capture | None = None
        self._family: Family | None = None
        self._end: End | None = None
        self._began = 0  # the same, by the clock that nobody sets, which says how long it took
        self._ended_ns = 0
        self._oom_kills: int | None = None
        self._written_down: tuple[int, int] | None = None  # the process's number, and when it began

    # -- in a thread of `slots`

    def carry_out(self) -> None:
        """Start the process, wait for its end and reap it; `fault` is set if it could not be started."""
        try:
            self._start()
        except (NotStartable, HostError, LostError) as fault:
            self.fault = fault
            return
        except Exception as error:
            # This is a fault of the agent. If the thread ended here, the attempt would seem to run for ever.
            _log.exception("attempt %s could not be started", self.attempt.ident)
            self.fault = LostError(f"a fault of the agent: {error}")
            return
        context, pid = self._context, self.pid
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            self._ended_ns = self.started_ns + time.monotonic_ns() - self._began
            alone = context.descendants.alone()
            capture = self._capture
            again = alone and capture is not None and capture.is_as_made()
            with context.lock:
                self.pid = 0
                if not alone:
                    signal_group(pid, signal.SIGKILL)
                self._end = reap(pid)
                if again:
                    self._capture = None
        except ChildProcessError:  # The agent is leaving, and has reaped everything itself.
            self.fault = LostError("the end of its process was missed")
            return
        if again and capture is not None:
            context.captures.recycle(capture)
        if alone and self._family is not None:
            context.descendants.gone(self._family)
            self._family = None

    def _start(self) -> None:
        context, attempt = self._context, self.attempt
        try:
            process = attempt.process_spec()
        except ValueError as error:
            raise NotStartable(str(error)) from None
        try:
            self._capture = capture = context.captures.take(attempt.template.whole_stdout_bytes)
        except OSError as error:
            raise HostError(f"files for the output cannot be made: {error.strerror}") from None
        environment = process.environment
        self._oom_kills = context.oom_kills.so_far()
        # The family is made before the start, so that it is known to whatever comes from the process.
        family = self._family = context.descendants.family(
            (
                environment[b"DAGGYR_RUN_ID"],
                environment[b"DAGGYR_TASK_ID"],
                environment[b"DAGGYR_ATTEMPT"],
                environment[b"DAGGYR_LIFE"],
            )
        )
        self.started_ns, self._began = time.time_ns(), time.monotonic_ns()
        if attempt.template.timeout > 0:
            self.deadline = time.monotonic() + attempt.template.timeout
        with context.lock:
            leaving = context.leaving
            context.starting += 1
        try:
            if leaving:
                raise HostError("the agent is leaving")
            family.leader = self.pid = context.launcher.start(
                process.command,
                environment,
                working_directory=process.working_directory,
                stdin=process.stdin,
                outputs=capture.outputs,
            )
        except Exception:  # Whatever was raised, nothing was started, so nothing of the attempt stays.
            context.descendants.gone(family)
            self._family = self._capture = None
            context.captures.recycle(capture)
            raise
        finally:
            with context.lock:
                context.starting -= 1
                if self.pid and self._signal is not None:
                    signal_group(self.pid, self._signal)
        context.watch.add(self)

    # -- in the event loop

    def end(self, cause: Cause, grace: float) -> None:
        """Send SIGTERM to the process group, and SIGKILL after `grace` seconds (0: SIGKILL at once).

        The first cause counts, and a later call can only make the end come sooner. A process that has ended stays as it was.
        """
        context = self._context
        with context.lock:
            if self._end is not None:
                return
            self.cause = self.cause or cause
            if grace <= 0:
                self._send(signal.SIGKILL)
            elif self._kill_timer is None:
                self._send(signal.SIGTERM)
        kill_at = context.loop.time() + grace
        if grace > 0 and kill_at < self._kill_at:
            if self._kill_timer is not None:
                self._kill_timer.cancel()
            self._kill_at = kill_at
            self._kill_timer = context.loop.call_at(kill_at, self._kill)

    def disown(self) -> None:
        """Kill the process group at once, and tell nobody of the attempt any more."""
        self.disowned = True
        self.end(Cause.STOP, 0)

    def _kill(self) -> None:
        with self._context.lock:
            self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        """Signal the group, or note the signal for the moment when there is a group. The caller holds the lock."""
        if self.pid:
            signal_group(self.pid, number)
        elif self._signal is not signal.SIGKILL:
            self._signal = number

    def look(self, *, first: bool) -> int:
        """Keep the files small and see to the timeout; `watch` calls this. Returns how many bytes were written so far."""
        if first:
            self._outlived_first_look()
        if self._context.loop.time() >= self.deadline:
            self.deadline = float("inf")
            self.end(Cause.TIMEOUT, self._context.kill_grace)
        with self._context.lock:
            return self._capture.trim() if self._capture is not None else 0

    def _outlived_first_look(self) -> None:
        self.lasts = True
        with self._context.lock:  # The process is not reaped before it was looked up, so that the number is its own.
            seen = look(self.pid) if self.pid else None
        if seen is not None:
            self._written_down = seen.pid, seen.born
            self._context.journal.runs(seen.pid, seen.born)
        if not self.disowned:
            self._runs(self)

    def read(self, stream: OutputStream, offset: int) -> tuple[int, bytes]:
        """What can be read at or after `offset` now, for `follow`, and where that begins; empty if there is nothing new."""
        with self._context.lock:
            return self._capture.stream(stream).read(offset) if self._capture is not None else (offset, b"")

    def settle(self, settled: Callable[[Execution], None]) -> None:
        """Call `settled` once no descendant is left, which is usually at once. The execution was carried out."""
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        if self._written_down is not None:
            self._context.journal.ended(*self._written_down)
        if self._family is None:
            settled(self)
        else:
            self._context.descendants.end(self._family, lambda: settled(self))

    @property
    def is_over(self) -> bool:
        """Whether the execution was carried out and no process of it is left."""
        return self._family is None and (self.fault is not None or self._end is not None)

    @property
    def failed(self) -> bool:
        """Whether its process ended by itself and did not succeed."""
        return self._end is not None and self._end.exit_code != 0 and self.cause is None

    def result(self, unkept: str | None) -> tuple[AttemptResult | None, tuple[Kept, ...]]:
        """The result, and the output for the caller to release; no result if the attempt is disowned. Once, after `settle`.

        `unkept` says why the host could not keep what tasks wrote when the process had ended, if that is so. A task that failed
        then may have failed for that alone.
        """
        context, end, capture = self._context, self._end, self._capture
        assert end is not None
        self._capture = None
        if self.disowned:
            if capture is not None:
                context.captures.drop(capture)
            return None, ()
        incomplete = unkept or self.unkept_while
        outcome, notes = judge(
            EXITED_0
            if end.exit_code == 0 and self.cause is None and incomplete is None
            else Seen(
                exit_code=end.exit_code,
                signal=end.signal,
                cause=self.cause,
                timeout=self.attempt.template.timeout,
                oom_kills=context.oom_kills.since(self._oom_kills) if end.signal == signal.SIGKILL else None,
                unkept=incomplete if self.attempt.template.whole_stdout_bytes and end.exit_code == 0 else None,
                host_fault=unkept,
            )
        )
        if incomplete is not None and outcome != RETURNED:
            notes.append(f"what it wrote may not have been kept: {incomplete}")
        if self._family is not None:
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
            max_rss_bytes=context.peaks.of(end.max_rss_bytes, self.looked_peak),
            notes=notes,
        )
        outputs = context.captures.keep(capture) if capture is not None else ()
        for kept in outputs:
            (result.stdout if kept.stream == STDOUT else result.stderr).CopyFrom(kept.extent.summary())
        if incomplete is not None:
            result.stdout.incomplete = result.stderr.incomplete = True
        return result, outputs
