"""Slurm by its commands on the coordinator's host: sbatch, squeue, scancel and scontrol, of 22.05 and later.

This is one of the two clients (client.py). Each call is one process without a shell; a job's script goes in on standard input, so
that nothing of it shows in `ps`. The commands are asked for formats by name, and what they print for people is never parsed.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping, Sequence

from daggyr_server.descriptors import as_given
from daggyr_server.executors.base import ExecutorError
from daggyr_server.executors.slurm.client import (
    Job,
    JobStatus,
    SlurmError,
    SlurmLimits,
    SlurmRefused,
    SlurmUnavailable,
)
from daggyr_server.executors.slurm.settings import SlurmSettings

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")
COMMAND_SECONDS = 60.0  # for one command; by default they give up themselves after 10 s (MessageTimeout in slurm.conf(5))
MAX_TARGETS = 200  # tasks in one scancel
_MAX_WORDS = 500  # characters of an error
_HELD = ("JobHeldUser", "JobHeldAdmin", "held")
# Settings of these commands in the environment (sbatch(1), INPUT ENVIRONMENT VARIABLES, and so on) would change what they do.
_INPUT_VARIABLES = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SCONTROL_")

# Words of slurm_strerror(3) for requests that will never be granted.
_REFUSALS = (
    "Access/permission denied",
    "can not be satisfied",
    "Invalid account",
    "Invalid feature specification",
    "Invalid generic resource",
    "Invalid job array specification",
    "Invalid license",
    "Invalid node name",
    "Invalid numeric value",
    "Invalid partition name",
    "Invalid qos",
    "Invalid reservation",
    "invalid option",
    "Memory required by task is not available",
    "More processors requested than permitted",
    "Requested node configuration is not available",
    "Requested reservation is invalid",
    "Requested time limit is invalid",
    "Unrecognized option",
    "unrecognized option",
    "not permitted to use this partition",
)
# Words for requests that may be granted later, or of which nobody can know.
_TROUBLES = (
    "accounting/QOS policy",
    "backup controller",
    "Communication",
    "Connection refused",
    "Connection timed out",
    "Invalid authentication credential",
    "Protocol authentication error",
    "Resource temporarily unavailable",
    "Socket timed out",
    "Unable to contact",
    "Zero Bytes",
    "not responding",
    "temporarily",
)


class SlurmCommands:
    """The client of one pool."""

    def __init__(self, settings: SlurmSettings, environment: Mapping[str, str]) -> None:
        """`environment` is for the commands; jobs get theirs from `Job`. Raises ExecutorError if a command is missing."""
        missing = [command for command in COMMANDS if shutil.which(command, path=environment.get("PATH", os.defpath)) is None]
        if missing:
            raise ExecutorError(
                f"{', '.join(missing)}: no such command on this host; install Slurm's client commands here, or give the pool the "
                "`base_url` of a slurmrestd"
            )
        self._settings = settings
        self._environment = without_inputs(environment)

    async def limits(self) -> SlurmLimits:
        text = await self._run("scontrol", "show", "config")
        found = dict(re.findall(r"^(\w+)\s*= (.*)$", text, re.MULTILINE))
        largest = int(found.get("MaxArraySize", "0")) if found.get("MaxArraySize", "0").isdecimal() else 0
        gres = found.get("GresTypes", "").strip()
        return SlurmLimits(max_array=max(1, largest), gres=() if gres in ("", "(null)") else tuple(gres.split(",")))

    async def submit(self, job: Job) -> str:
        settings, needs = self._settings, job.needs
        options = {
            "job-name": job.name,
            "chdir": str(job.directory),
            "output": str(job.output),
            "nodes": "1",
            "ntasks": "1",
            "cpus-per-task": str(needs.cores),
            "array": f"0-{job.size - 1}" if job.size > 1 else None,
            "mem": f"{needs.memory_mb}M" if needs.memory_mb else None,
            "gres": needs.gres_text,
            "licenses": needs.licenses_text,
            "time": str(needs.minutes) if needs.minutes is not None else None,
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
        }
        words = [f"--{name}={value}" for name, value in options.items() if value]
        printed = await self._run(
            "sbatch",
            *("--parsable", "--hold", "--no-requeue", "--export=ALL"),
            *words,
            *settings.options,
            stdin=job.script,
            environment=without_inputs(job.environment),
        )
        job_id = printed.strip().splitlines()[-1].partition(";")[0] if printed.strip() else ""
        if not job_id.isdecimal():
            raise SlurmUnavailable(f"sbatch printed no job id but {printed[:_MAX_WORDS]!r}")
        return job_id

    async def release(self, job_id: str) -> None:
        await self._run("scontrol", "release", job_id)

    async def jobs(self, prefix: str) -> list[JobStatus]:
        text = await self._run(
            "squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%F|%K|%T|%r|%j"
        )
        found = []
        for line in text.splitlines():
            job_id, index, state, reason, name = (line.split("|", 4) + [""] * 5)[:5]
            if name.startswith(prefix):
                found.append(
                    JobStatus(job_id, int(index) if index.isdecimal() else 0, name, state, held=reason.startswith(_HELD))
                )
        return found

    async def cancel(self, tasks: Sequence[str]) -> None:
        await self._scancel((), tasks)

    async def terminate(self, tasks: Sequence[str]) -> None:
        await self._scancel(("--batch", "--signal=TERM"), tasks)

    async def _scancel(self, options: Sequence[str], tasks: Sequence[str]) -> None:
        for first in range(0, len(tasks), MAX_TARGETS):
            try:
                await self._run("scancel", "--quiet", *options, *tasks[first : first + MAX_TARGETS])
            except SlurmUnavailable:
                raise
            except SlurmError:
                continue  # some of the tasks have ended meanwhile

    async def _run(
        self, command: str, *arguments: str, stdin: str | None = None, environment: Mapping[str, str] | None = None
    ) -> str:
        """Return the standard output of a command that succeeded. The command has ended whenever this ends, however it does."""
        try:
            process = await asyncio.create_subprocess_exec(
                *as_given((command, *arguments)),
                stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._environment if environment is None else environment,
            )
        except OSError as error:
            raise SlurmUnavailable(f"{command} cannot be started: {error.strerror}") from None
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                out, err = await process.communicate(None if stdin is None else stdin.encode())
        except TimeoutError:
            raise SlurmUnavailable(f"{command} gave no answer within {COMMAND_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return out.decode(errors="replace")
        words = " ".join(err.decode(errors="replace").split())[:_MAX_WORDS] or f"exit code {process.returncode}"
        raise fault(words)


def fault(words: str) -> SlurmError:
    """Return the kind of an error, by Slurm's own words for it."""
    if any(phrase in words for phrase in _TROUBLES):
        return SlurmUnavailable(words)
    if any(phrase in words for phrase in _REFUSALS):
        return SlurmRefused(words)
    return SlurmError(words)


def without_inputs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables by which Slurm's commands take options."""
    return {name: value for name, value in environment.items() if not name.startswith(_INPUT_VARIABLES)}
