"""What a target tells of an attempt's end, translated into what the ladder of outcomes takes.

`fetching.py` calls this before it fetches the output. Nothing here decides an outcome: daggyr.attempts.outcome does.
"""

from __future__ import annotations

from daggyr.attempts import outcome
from daggyr.v1.task_pb2 import SUCCEEDED, AttemptResult
from daggyr_server.executors.ssh.script import Ended

_FULL = "its target could keep no files when it ended (is its disk full?), so that what it wrote may be lost"
_CAUSES = {"kill": outcome.Cause.KILL, "timeout": outcome.Cause.TIMEOUT}  # the words of remote.sh


def result_of(ended: Ended, start_ns: int, stop_ns: int) -> AttemptResult:
    """The result of what was started, without its output's sizes. Times are nanoseconds since the epoch."""
    result = outcome.result_of(seen_of(ended), start_ns=start_ns, stop_ns=stop_ns, cpu_seconds=ended.cpu_seconds)
    if ended.gone:
        result.notes.insert(0, "its folder on the target was removed while it ran, and its output with it")
    if ended.full:
        if result.outcome == SUCCEEDED:
            result.notes.append(_FULL)
        # Nobody knows of which stream something was lost.
        result.stdout.incomplete = result.stderr.incomplete = True
    return result


def seen_of(ended: Ended) -> outcome.Seen:
    """What a target's warden tells of an end, in the words of the ladder."""
    number = outcome.signal_in(ended.status) if ended.by_signal else None
    return outcome.Seen(
        exit_code=ended.status if number is None else None,
        signal=number,
        cause=_CAUSES.get(ended.cause),
        timeout=ended.limit,
        host_fault=_FULL if ended.full else None,
        unkept=_FULL if ended.full and ended.whole else None,
    )
