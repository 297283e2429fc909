"""How the end of a process becomes the outcome of its attempt: one pure function and its vocabulary.

An execution calls `judge` once. It follows the table of outcomes in the contract (task.proto): exit code 0 has succeeded, whoever
asked for the end, because what the task did is done.
"""

from __future__ import annotations

import signal
from enum import Enum

from daggyr.v1.task_pb2 import FAILED, KILLED, LOST, OOM_KILLED, SUCCEEDED, TIMED_OUT, AttemptOutcome

STOPPED_NOTE = "the agent was stopped"


class Ending(Enum):
    """Why the agent itself ends a process."""

    KILL = "a person asked for it"
    TIMEOUT = "its timeout has passed"
    STOP = "the agent stops"
    SILENT = "it is no longer this agent's: nobody is told"


def judge(
    *,
    exit_code: int | None,
    number: int | None,
    ending: Ending | None,
    timeout: float,
    oom_kills: int | None,
) -> tuple[AttemptOutcome, list[str]]:
    """The outcome, and notes for a person.

    One of `exit_code` and `number` (of the signal) is set. `ending` is why the agent began to end it, if it did. `timeout` is
    in seconds. `oom_kills` is how many processes of the agent's control group an OOM killer ended since the start; None
    if that is not known.
    """
    if exit_code == 0:
        if ending is Ending.TIMEOUT:
            return SUCCEEDED, [f"it ended with exit code 0 when its timeout of {timeout:g} s had passed"]
        return SUCCEEDED, []
    if ending is Ending.KILL:
        return KILLED, []
    if ending is Ending.TIMEOUT:
        return TIMED_OUT, [f"its timeout of {timeout:g} s had passed"]
    if ending is Ending.STOP:
        return LOST, [STOPPED_NOTE]
    if number == signal.SIGKILL:
        if oom_kills:
            return OOM_KILLED, ["the kernel's OOM killer ended it: it or its host ran out of memory"]
        if oom_kills is None:
            return FAILED, ["ended by SIGKILL, not from this agent: another process, or the kernel when memory ran out"]
        return FAILED, ["ended by SIGKILL, from another process"]
    if number is not None:
        return FAILED, [f"ended by {_name(number)}"]
    return FAILED, []


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
