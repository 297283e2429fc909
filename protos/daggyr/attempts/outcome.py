"""How the end of an attempt becomes its outcome: one ladder, from what was seen of the end to the outcome and the notes.

Every executor says what it saw as a `Seen` and calls `judge` once for each attempt, or `result_of`, which calls it. An executor
translates what only its own world says, such as Slurm's states, into a `Seen` first. The outcomes are those of the contract
(task.proto). Nothing here looks at a process, at files or at a scheduler.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from enum import Enum, auto

from daggyr.attempts.times import timestamp
from daggyr.v1.task_pb2 import (
    FAILED,
    KILLED,
    LOST,
    OOM_KILLED,
    REJECTED,
    RETURNED,
    SUCCEEDED,
    TIMED_OUT,
    AttemptOutcome,
    AttemptResult,
)

STOPPED_NOTE = "the agent was stopped"
OVER_NOTE = "the time that its host had was over: give the pool a longer time limit, or the task a timeout that fits into it"

_SIGNALS = range(1, 65)  # Linux has these, signal(7)
_SHELLS_BASE = 128  # a shell tells an end by signal N as exit code 128 + N (POSIX, Shell Command Language, 2.8.2)


class Cause(Enum):
    """Why an executor itself began to end an attempt. The first cause counts; later ones change nothing."""

    KILL = auto()  # a person asked for it
    TIMEOUT = auto()  # its timeout had passed
    STOP = auto()  # the executor itself stops
    OVER = auto()  # the time that its host has is over


class Scheduler(Enum):
    """Why a scheduler ended an attempt, in as many words as the ladder tells apart."""

    TIME_LIMIT = auto()  # the time that the scheduler gave it had passed
    OUT_OF_MEMORY = auto()  # it used more memory than the scheduler gave it
    TAKEN_AWAY = auto()  # its place went away: it was preempted, its node failed, its job could not begin
    CANCELLED = auto()  # somebody asked the scheduler itself to end it
    UNEXPLAINED = auto()  # the scheduler ended it, and does not say why


_SCHEDULED: dict[Scheduler, AttemptOutcome] = {
    Scheduler.TIME_LIMIT: TIMED_OUT,
    Scheduler.OUT_OF_MEMORY: OOM_KILLED,
    Scheduler.TAKEN_AWAY: LOST,
    Scheduler.CANCELLED: KILLED,
    Scheduler.UNEXPLAINED: LOST,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of an attempt's end. The texts among it are notes for a person, in words that name what they can change."""

    exit_code: int | None = None  # if its process exited
    signal: int | None = None  # if a signal ended its process
    rejected: str | None = None  # why it could not be started, and never will be, if that is so
    unkept: str | None = None  # why its host could not keep what had to be kept whole (a generator's document), if that is so
    host_fault: str | None = None  # why its host could not start it, or keep what it wrote, if that is so
    cause: Cause | None = None  # why its executor began to end it, if it did
    timeout: float = 0.0  # seconds; the task's
    scheduler: Scheduler | None = None  # why a scheduler ended it, if one did
    scheduler_words: str = ""
    vanished: str | None = None  # why nobody saw how it ended, if that is so
    # How many processes near it an OOM killer ended while it ran, or None if that is not known.
    oom_kills: int | None = None


EXITED_0 = Seen(exit_code=0)  # how most attempts end: one object for all of them


def judge(seen: Seen) -> tuple[AttemptOutcome, list[str]]:
    """The outcome, and notes for a person. The first line that fits decides:

    1.  It could not be started: REJECTED.
    2.  Its host could not keep what it had to hand over whole: RETURNED.
    3.  Its exit code is 0, and no scheduler had ended it: SUCCEEDED. Whoever asked for the end here, what the task did is done.
    4.  Its executor began to end it, because a person asked: KILLED.
    5.  Its executor began to end it, because its timeout had passed: TIMED_OUT.
    6.  Its executor began to end it, because the executor itself stops: LOST.
    7.  Its executor began to end it, because the time that its host has is over: LOST.
    8.  A scheduler ended it, and says why: TIMED_OUT, OOM_KILLED, LOST or KILLED; LOST if it does not say why.
    9.  Its host could not start it, or could not keep what it wrote: RETURNED.
    10. Nobody saw how it ended: LOST.
    11. SIGKILL ended it while an OOM killer was at work: OOM_KILLED.
    12. SIGKILL ended it, and whether an OOM killer was at work is not known: FAILED.
    13. SIGKILL ended it, and no OOM killer was at work: FAILED.
    14. Another signal ended it: FAILED.
    15. It exited with another code: FAILED.
    """
    if seen.rejected is not None:
        return REJECTED, [seen.rejected]
    if seen.unkept is not None:
        return RETURNED, [seen.unkept]
    if seen.exit_code == 0 and seen.scheduler is None:
        if seen.cause is Cause.TIMEOUT:
            return SUCCEEDED, [f"it ended with exit code 0 when its timeout of {seen.timeout:.9g} s had passed"]
        return SUCCEEDED, []
    if seen.cause is Cause.KILL:
        return KILLED, []
    if seen.cause is Cause.TIMEOUT:
        return TIMED_OUT, [f"its timeout of {seen.timeout:.9g} s had passed"]
    if seen.cause is Cause.STOP:
        return LOST, [STOPPED_NOTE]
    if seen.cause is Cause.OVER:
        return LOST, [OVER_NOTE]
    if seen.scheduler is not None:
        return _SCHEDULED[seen.scheduler], [seen.scheduler_words]
    if seen.host_fault is not None:
        return RETURNED, [seen.host_fault]
    if seen.vanished is not None:
        return LOST, [seen.vanished]
    if seen.signal == signal.SIGKILL:
        if seen.oom_kills:
            return OOM_KILLED, ["the kernel's OOM killer ended it: it or its host ran out of memory"]
        if seen.oom_kills is None:
            return FAILED, ["ended by SIGKILL, not from here: another process, or the kernel when memory ran out"]
        return FAILED, ["ended by SIGKILL, not from here: another process"]
    if seen.signal is not None:
        return FAILED, [f"ended by {signal_name(seen.signal)}"]
    return FAILED, []


def result_of(
    seen: Seen, *, start_ns: int | None = None, stop_ns: int | None = None, cpu_seconds: float | None = None
) -> AttemptResult:
    """The result of an attempt whose end was seen, without its output's sizes. Times are nanoseconds since the epoch; what has no
    stop stopped now, or, if the clock was set back meanwhile, when it started.

    What was REJECTED, or RETURNED without an end of its process, has no process: its result has neither an exit code nor a start,
    and it stopped now.
    """
    outcome, notes = judge(seen)
    if outcome == REJECTED or (outcome == RETURNED and seen.exit_code is None and seen.signal is None):
        return without_process(outcome, *notes)
    return AttemptResult(
        outcome=outcome,
        notes=notes,
        exit_code=seen.exit_code,
        signal=seen.signal,
        start_time=None if start_ns is None else timestamp(start_ns),
        stop_time=timestamp(max(time.time_ns(), start_ns or 0) if stop_ns is None else stop_ns),
        cpu_seconds=cpu_seconds,
    )


def without_process(outcome: AttemptOutcome, *notes: str) -> AttemptResult:
    """The result of an attempt that has no process, or whose process nobody knows of any more. It stopped now."""
    return AttemptResult(outcome=outcome, notes=notes, stop_time=timestamp(time.time_ns()))


def signal_name(number: int) -> str:
    """What people call a signal; those without a name are called by their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def signal_in(status: int) -> int | None:
    """The signal that a shell's exit status tells of, if it can: an exit code above 128 that names a signal looks the same."""
    number = status - _SHELLS_BASE
    return number if number in _SIGNALS else None
