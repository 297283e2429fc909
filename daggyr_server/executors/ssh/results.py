"""How an attempt on an SSH target ended, as an AttemptResult: one pure function and the words for what was refused.

`target.py` calls it once all output was fetched.
"""

from __future__ import annotations

import signal

from google.protobuf.timestamp_pb2 import Timestamp

from daggyr.v1.task_pb2 import (
    FAILED,
    KILLED,
    SUCCEEDED,
    TIMED_OUT,
    AttemptOutcome,
    AttemptResult,
)
from daggyr_server.executors.ssh.script import Ended

_SIGNALS = range(1, 65)


def judge(ended: Ended) -> tuple[AttemptOutcome, list[str]]:
    """The outcome, and notes for a person: exit code 0 has succeeded, whoever asked for the end."""
    notes = ["its folder on the target was removed while it ran, and its output with it"] if ended.gone else []
    if ended.status == 0:
        if ended.cause == "timeout":
            notes.append(f"it ended with exit code 0 when its timeout of {ended.limit} s had passed")
        return SUCCEEDED, notes
    if ended.cause == "kill":
        return KILLED, notes
    if ended.cause == "timeout":
        return TIMED_OUT, [*notes, f"its timeout of {ended.limit} s had passed"]
    number = signal_of(ended)
    if number == signal.SIGKILL:
        notes.append("ended by SIGKILL, not from here: another process, or the kernel when memory ran out")
    elif number is not None:
        notes.append(f"ended by {_name(number)}")
    return FAILED, notes


def result_of(ended: Ended, start_ns: int, stop_ns: int) -> AttemptResult:
    """The result of what was started, without its output's sizes. Times are nanoseconds since the epoch."""
    outcome, notes = judge(ended)
    number = signal_of(ended)
    return AttemptResult(
        outcome=outcome,
        notes=notes,
        exit_code=ended.status if number is None else None,
        signal=number,
        start_time=timestamp(start_ns),
        stop_time=timestamp(stop_ns),
        cpu_seconds=ended.cpu_seconds,
    )


def signal_of(ended: Ended) -> int | None:
    number = ended.status - 128
    return number if ended.by_signal and number in _SIGNALS else None


def timestamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
