"""How the end of a Slurm job becomes the outcome of its attempt: one pure function over what the job itself wrote, what Slurm
says of it, and what was asked.

The executor of job mode calls `judge` once an attempt is over. As everywhere, exit code 0 has succeeded, whoever asked for the
end, because what the task did is done; and what a person wanted ended is KILLED, an operator of the cluster included.
"""

from __future__ import annotations

import signal

from daggyr.v1.task_pb2 import (
    FAILED,
    KILLED,
    LOST,
    OOM_KILLED,
    REJECTED,
    SUCCEEDED,
    TIMED_OUT,
    AttemptOutcome,
)
from daggyr_server.executors.slurm.jobs.submission_folder import Reported

GONE = "GONE"  # beside Slurm's own states: it knows no such job, any more or at all

_LOST = {
    "PREEMPTED": "Slurm preempted its job",
    "NODE_FAIL": "the node of its job failed",
    "BOOT_FAIL": "the node of its job did not boot",
    "LAUNCH_FAILED": "its job could not be launched on its node",
    "REVOKED": "its job was revoked in Slurm",
}


def is_settled(reported: Reported | None, *, asked: bool) -> bool:
    """Whether the outcome is known from the job's own result alone, without waiting for what Slurm says."""
    return reported is not None and (reported.rejected is not None or reported.status == 0 or asked or reported.timed_out)


def judge(
    reported: Reported | None, state: str | None, *, asked: bool, timeout: float, printed: str
) -> tuple[AttemptOutcome, list[str]]:
    """The outcome, and notes for a person.

    `state` is the job's in squeue(1), GONE, or None if Slurm was not asked. `asked`: this coordinator wanted its end. `timeout`
    is the task's, in seconds. `printed` is what the job itself printed, for the notes of an end that nobody explains.
    """
    if reported is not None and reported.rejected is not None:
        return REJECTED, [reported.rejected]
    if reported is not None and reported.status == 0:
        if reported.timed_out:
            return SUCCEEDED, [f"it ended with exit code 0 when its timeout of {timeout:g} s had passed"]
        return SUCCEEDED, []
    if asked:
        return KILLED, []
    if reported is not None and reported.timed_out:
        return TIMED_OUT, [f"its timeout of {timeout:g} s had passed"]
    if state in ("TIMEOUT", "DEADLINE"):
        return TIMED_OUT, ["the time limit of its job had passed (`time_limit` of the pool, or the partition's)"]
    if state == "OUT_OF_MEMORY":
        return OOM_KILLED, [
            "it used more memory than its job was given (`memory_mb` of its resources, or the partition's default)"
        ]
    if state in _LOST:
        return LOST, [_LOST[state]]
    if state == "CANCELLED":
        return KILLED, ["its job was cancelled in Slurm, not from here"]
    if reported is None:
        known = "Slurm does not know its job any more" if state in (GONE, None) else f"Slurm calls its job {state}"
        note = f"{known}, and the job left no result: does its node have the pool's `directory`?"
        return LOST, [note, *([f"the job printed: {printed[:500]}"] if printed else [])]
    if reported.stopped:
        return LOST, ["Slurm ended its job, and does not know any more why"]
    number = ended_by(reported)
    if number == signal.SIGKILL:
        return FAILED, ["ended by SIGKILL, not from here: another process, or the kernel when memory ran out"]
    if number is not None:
        return FAILED, [f"ended by {_name(number)}"]
    return FAILED, []


def ended_by(reported: Reported) -> int | None:
    """The signal that ended the task, if one did.

    A shell tells a signal as 128 and its number (POSIX, Shell Command Language, 2.8.2).
    """
    number = reported.status - 128
    return number if reported.by_signal and number in signal.valid_signals() else None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
