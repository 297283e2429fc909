"""What is asked of Slurm, by its commands (`commands.py`) or by slurmrestd (`rest.py`), and what a task's resources mean there.

The executors of both modes are given a `SlurmClient`. A client keeps no state between calls and never tries again, because the
executor knows when that makes sense.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daggyr_server.executors.slurm.settings import SlurmSettings, minutes

# In these states a job has ended for good; in all others it is there. https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES
ENDED_STATES = frozenset(
    (
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    )
)
ALL_OTHERS = -1  # the index of a status that stands for the waiting tasks of its array that are not listed
LIMIT_MARGIN = 60.0  # seconds by which a job's time limit is above the task's timeout and grace, which the job itself keeps
_GRES = re.compile(r"[A-Za-z0-9_.-]+(?::[A-Za-z0-9_.-]+)?")


class SlurmError(Exception):
    """Slurm did not do what was asked. Nobody knows whether the request has had an effect."""


class SlurmRefused(SlurmError):
    """Slurm will never do this, and the request has had no effect. The message is Slurm's own, for the task's user."""


class SlurmLimited(SlurmError):
    """Slurm does not take this now, because it is too much: for a limit, or for what is free. It has had no effect."""


class SlurmGone(SlurmError):
    """The job is not there any more, or in a state in which this cannot be done to it."""


class SlurmUnavailable(SlurmError):
    """Slurm, or the way there, does not work now; it may later. The request may have had an effect all the same."""


RESOURCES = "on a Slurm pool, resources are cores, memory_mb, gpus, gres/NAME and license/NAME"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job asks Slurm for. Tasks of equal needs can share a job array."""

    cores: int = 1
    memory_mb: int = 0  # 0 means the partition's default
    gres: tuple[tuple[str, int], ...] = ()  # name, or name:type, and count
    gpus: int = 0
    licenses: tuple[tuple[str, int], ...] = ()
    minutes: int | None = None  # of wall time; None means the partition's default

    @property
    def gres_text(self) -> str:
        return ",".join(f"{name}:{units}" for name, units in self.gres)

    @property
    def licenses_text(self) -> str:
        return ",".join(f"{name}:{units}" for name, units in self.licenses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job array to submit, held. Its tasks have the indexes 0 to `size` - 1; a single one is no array and counts as 0."""

    name: str
    script: str
    size: int
    needs: Needs
    directory: Path  # where it starts
    output: Path  # of the script itself; for arrays, `%a` in it stands for the index
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One task of an array, or one job."""

    job_id: str  # of the array
    index: int
    name: str
    state: str  # in the words of squeue(1), in capitals
    reason: str = ""  # why it waits, or why it ended, as squeue(1) has it; empty if there is none
    node: str = ""  # empty while it has none

    @property
    def held(self) -> bool:
        """Whether it waits for a release: ours, or that of whoever has held it."""
        return self.state == "PENDING" and self.reason.startswith(("JobHeld", "held"))

    @property
    def submission(self) -> str:
        """The name of the submission that it belongs to; what follows in its own name is for people."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class SlurmLimits:
    """What the cluster says of itself."""

    max_array: int  # tasks in one array; with 1, there are no arrays
    gres: tuple[str, ...] | None = None  # names that are configured; None if that is not known


class SlurmClient(Protocol):
    """All methods raise SlurmError or one of its kinds."""

    async def limits(self) -> SlurmLimits:
        """Return what the cluster says of itself. An executor asks once."""

    async def submit(self, job: Job) -> str:
        """Submit a job, held, which Slurm must never queue again. Returns its id once Slurm has it."""

    async def release(self, job_id: str) -> None:
        """Let a held job or array start."""

    async def jobs(self, prefix: str) -> list[JobStatus]:
        """Return this user's jobs whose name begins with `prefix`, ended ones too, and each task of an array by itself."""

    async def cancel(self, tasks: Sequence[str]) -> None:
        """End tasks (`ID` or `ID_INDEX`), waiting ones too. Those that have ended are passed over."""

    async def terminate(self, tasks: Sequence[str]) -> None:
        """Send SIGTERM to the scripts of the tasks that run. Others are passed over."""


def needs_of(resources: Mapping[str, int], seconds: float, settings: SlurmSettings) -> Needs:
    """What a task's resources, and the seconds that it may take at most, mean in Slurm. 0 seconds mean no limit.

    Raises ValueError for a resource that Slurm does not have.

    `cores` are CPUs of one task on one node, `memory_mb` is memory of the node, `gres/NAME` and `gres/NAME:TYPE` are generic
    resources, `license/NAME` are licenses, `gpus` are GPUs of any type.
    """
    gres: list[tuple[str, int]] = []
    licenses: list[tuple[str, int]] = []
    strange: list[str] = []
    for name, units in sorted(resources.items()):
        kind, _, rest = name.partition("/")
        if name in ("cores", "memory_mb", "gpus") or not units:
            continue
        if kind in ("gres", "license") and _GRES.fullmatch(rest):
            (gres if kind == "gres" else licenses).append((rest, units))
        else:
            strange.append(f"{units} of {name}")
    if strange:
        raise ValueError(f"it needs {', '.join(strange)}: {RESOURCES}")
    limits = []
    if seconds:
        limits.append(-(-int(seconds + LIMIT_MARGIN + 1) // 60))
    if settings.time_limit is not None and (own := minutes(settings.time_limit)) is not None:
        limits.append(own)
    return Needs(
        cores=max(1, resources.get("cores", 1)),
        memory_mb=resources.get("memory_mb", 0),
        gres=tuple(gres),
        gpus=resources.get("gpus", 0),
        licenses=tuple(licenses),
        minutes=min(limits, default=None),
    )


def indexes(text: str) -> list[int]:
    """Return the indexes in `0-3,7%2`, as Slurm writes those of an array's waiting tasks, up to where a text was cut off."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None:
            break
        first, last, step = match.groups()
        found.extend(range(int(first), int(last or first) + 1, int(step or 1)))
    return found
