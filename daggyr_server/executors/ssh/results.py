"""What a target tells of an attempt's end, translated into what the ladder of outcomes takes, and the words for what was refused.

`session.py` calls it once all output was fetched. Nothing here decides an outcome: daggyr.attempts.outcome does.
"""

from __future__ import annotations

from daggyr.attempts import outcome
from daggyr.v1.task_pb2 import AttemptResult, TaskSpec
from daggyr_server.executors.ssh.script import Ended

_CAUSES = {"kill": outcome.Cause.KILL, "timeout": outcome.Cause.TIMEOUT}  # the words of remote.sh
_MAX_SHOWN = 300  # characters of a user's text in a note


def result_of(ended: Ended, start_ns: int, stop_ns: int) -> AttemptResult:
    """The result of what was started, without its output's sizes. Times are nanoseconds since the epoch."""
    result = outcome.result_of(seen_of(ended), start_ns=start_ns, stop_ns=stop_ns, cpu_seconds=ended.cpu_seconds)
    if ended.gone:
        result.notes.insert(0, "its folder on the target was removed while it ran, and its output with it")
    return result


def seen_of(ended: Ended) -> outcome.Seen:
    """What a target's warden tells of an end, in the words of the ladder."""
    number = outcome.signal_in(ended.status) if ended.by_signal else None
    return outcome.Seen(
        exit_code=ended.status if number is None else None, signal=number, cause=_CAUSES.get(ended.cause), timeout=ended.limit
    )


def refusal(reason: str, spec: TaskSpec | None) -> AttemptResult:
    """The result of what could not be started, for a reason that remote.sh gives, or in the target's own words."""
    program = _shown(spec.command[0]) if spec is not None else "the program"
    folder = _shown(spec.working_directory) if spec is not None else "the folder"
    notes = {
        "home": "the folder where tasks start cannot be entered: see `working_directory` of the pool",
        "folder": f"no such folder: working_directory {folder} (relative ones count from where the pool's tasks start)",
        "enter": f"cannot enter working_directory {folder}",
        "program": f"no such program on the target: {program}",
        "executable": f"{program} is not executable: chmod +x it on the target",
        "directory": f"{program} is a folder, not a program",
    }
    return outcome.result_of(outcome.Seen(rejected=notes.get(reason, reason)))


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "...'"
