"""What a job told of its end, and what Slurm says of it, translated into what the ladder of outcomes takes.

The watch of job mode calls this once an attempt is over. Nothing here decides an outcome: daggyr.attempts.outcome does.
"""

from __future__ import annotations

from daggyr.attempts.outcome import Cause, Scheduler, Seen, signal_in
from daggyr_server.executors.slurm.jobs.submission_folder import JobReport

FULL = "nothing could be written into the pool's `directory` (is its disk full?)"
GONE = "GONE"  # beside Slurm's own states: it knows no such job, any more or at all

_STATES: dict[str, tuple[Scheduler, str]] = {
    "TIMEOUT": (Scheduler.TIME_LIMIT, "the time limit of its job had passed (`time_limit` of the pool, or the partition's)"),
    "DEADLINE": (Scheduler.TIME_LIMIT, "the time limit of its job had passed (`time_limit` of the pool, or the partition's)"),
    "OUT_OF_MEMORY": (
        Scheduler.OUT_OF_MEMORY,
        "it used more memory than its job was given (`memory_mb` of its resources, or the partition's default)",
    ),
    "PREEMPTED": (Scheduler.TAKEN_AWAY, "Slurm preempted its job"),
    "NODE_FAIL": (Scheduler.TAKEN_AWAY, "the node of its job failed"),
    "BOOT_FAIL": (Scheduler.TAKEN_AWAY, "the node of its job did not boot"),
    "LAUNCH_FAILED": (Scheduler.TAKEN_AWAY, "its job could not be launched on its node"),
    "REVOKED": (Scheduler.TAKEN_AWAY, "its job was revoked in Slurm"),
    "CANCELLED": (Scheduler.CANCELLED, "its job was cancelled in Slurm, not from here"),
}


def is_settled(reported: JobReport, *, asked: bool) -> bool:
    """Whether the job's own result says enough, so that nobody has to wait for what Slurm says.

    What was told to end, and not from here, may have exited with 0 all the same: what Slurm says decides then.
    """
    ended_well = reported.status == 0 and not reported.stopped
    return reported.rejected is not None or ended_well or asked or reported.timed_out


def seen_of(
    reported: JobReport | None,
    state: str | None,
    *,
    asked: bool,
    timeout: float,
    printed: str,
    unwritten: str | None = None,
    whole: bool = False,
) -> Seen:
    """What was seen of an attempt's end.

    `state` is the job's in squeue(1), GONE, or None if Slurm was not asked. `asked` says that a person wanted its end. `timeout`
    is the task's, in seconds. `printed` is what the job itself printed, for the notes of an end that nobody explains. `unwritten`
    says why the job could not write its result, if that is so; `whole` that its standard output has to be there whole.
    """
    cause = Cause.KILL if asked else None
    scheduler, words = _STATES.get(state or "", (None, ""))
    if reported is None:
        return Seen(
            cause=cause, scheduler=scheduler, scheduler_words=words, host_fault=unwritten, vanished=_unexplained(state, printed)
        )
    if reported.timed_out and not (asked and reported.stopped):
        cause = Cause.TIMEOUT
    if reported.stopped and scheduler is None:
        scheduler, words = Scheduler.UNEXPLAINED, "Slurm ended its job, and does not know any more why"
    if reported.status == 0 and (asked or not reported.stopped):
        scheduler = None  # the task was done before Slurm ended what was left of its job
    number = signal_in(reported.status) if reported.by_signal else None
    return Seen(
        exit_code=reported.status if number is None else None,
        signal=number,
        rejected=reported.rejected,
        unkept=FULL if reported.full and whole and reported.status == 0 else None,
        cause=cause,
        timeout=timeout,
        scheduler=scheduler,
        scheduler_words=words,
    )


def _unexplained(state: str | None, printed: str) -> str:
    known = "Slurm does not know its job any more" if state in (GONE, None) else f"Slurm calls its job {state}"
    note = f"{known}, and the job left no result: does its node have the pool's `directory`?"
    return f"{note} The job printed: {printed[:500]}" if printed else note
