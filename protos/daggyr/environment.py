"""Which variables of a daemon's environment its tasks get: a short list, and what settings name.

The agent asks for the tasks that it starts, and the coordinator for the jobs that it gives to Slurm. A daemon's environment may
hold secrets, such as a database's password, that tasks must not see. DaggyR's own variables (DAGGYR_*) are never passed, and what
Slurm made for the job that a daemon runs in is not passed either, unless a setting names it: it describes that job (its array
index, its memory, its step's connections), and programs would take it for the task's. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

# What programs need to find others, their files and their language.
ALWAYS = ("PATH", "HOME", "LANG", "LC_*", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL")

# What Slurm, and its launcher for MPI, set for a job (sbatch(1) and srun(1), OUTPUT ENVIRONMENT VARIABLES).
_OF_A_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "PMI_", "PMI2_", "PMIX_")
# These have such a name and are a person's or a site's: where Slurm is, how its commands print, and who asks.
_OF_NO_JOB = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_TIME_FORMAT")


def passes(name: str, patterns: Iterable[str]) -> bool:
    """Whether tasks get the variable `name`, because ALWAYS or `patterns` has it.

    A pattern is a name, or the beginning of names with a `*` behind it. `*` alone has all but what Slurm made for a job.
    """
    if name.startswith("DAGGYR_"):
        return False
    if is_of_a_job(name):
        patterns = [each for each in patterns if each != "*"]
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in (*ALWAYS, *patterns))


def is_of_a_job(name: str) -> bool:
    """Whether Slurm makes this variable for the job in which a program runs. Another job must not have it."""
    return name.startswith(_OF_A_JOB) and name not in _OF_NO_JOB


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a pattern in the settings, in words; None if nothing is wrong."""
    if not pattern or "=" in pattern or "*" in pattern[:-1] or not pattern.isprintable():
        return f"{pattern!r} names no variable: write NAME, PREFIX_* or *"
    return None
