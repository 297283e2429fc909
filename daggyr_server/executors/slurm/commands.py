"""Slurm by its commands on the coordinator's host: sbatch, squeue, scancel and scontrol, of 22.05 and later.

This is one of the two clients (client.py). Each call is one process without a shell; a job's script goes in on standard input, so
that nothing of it shows in `ps`. The commands are asked for formats by name, and what they print for people is never parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence

from daggyr.environment import is_of_a_job
from daggyr_server.descriptors import as_given
from daggyr_server.executors.base import ExecutorError
from daggyr_server.executors.slurm.client import (
    Job,
    JobStatus,
    SlurmError,
    SlurmGone,
    SlurmLimits,
    SlurmUnavailable,
)
from daggyr_server.executors.slurm.settings import SlurmSettings
from daggyr_server.executors.slurm.words import error_of

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")
COMMAND_SECONDS = 60.0  # for one command; by default they give up themselves after 10 s (MessageTimeout in slurm.conf(5))
MAX_TARGETS = 200  # tasks in one scancel
_MAX_WORDS = 500  # characters of an error
_MAX_HEARD = 16 * 1024  # bytes of what a command says of errors
_ASKS_AGAIN = b"sleeping and retrying"
# Settings of these commands in the environment (sbatch(1), INPUT ENVIRONMENT VARIABLES, and so on) would change what they do.
_INPUT_VARIABLES = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SCONTROL_")
# Slurm sets these for a job that has such devices, and the next job has others.
_DEVICES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


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
            "gpus": str(needs.gpus) if needs.gpus else None,
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
        # The reason comes last, because a site may put any character into it. The names of others are not looked at.
        text = await self._run(
            "squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%F|%K|%T|%N|%j|%r"
        )
        found = []
        for line in text.splitlines():
            job_id, index, state, node, name, reason = (line.split("|", 5) + [""] * 6)[:6]
            if name.startswith(prefix):
                number = int(index) if index.isdecimal() else 0
                reason = "" if reason == "None" else reason
                found.append(JobStatus(job_id, number, name, state, reason, "" if node == "(null)" else node))
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
        heard = bytearray()
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                out = await _talk(process, None if stdin is None else stdin.encode(), heard)
        except TimeoutError:
            out = None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        words = " ".join(heard.decode(errors="replace").split())[:_MAX_WORDS]
        if out is None:
            raise error_of(f"{command} gave no answer within {COMMAND_SECONDS:g} s" + (f", but said: {words}" if words else ""))
        if process.returncode == 0:
            return out.decode(errors="replace")
        if not words and command == "scancel":
            raise SlurmGone("the jobs are not there any more")  # `--quiet` keeps it from saying that
        raise error_of(words or f"{command} ended with {process.returncode} and said nothing")


async def _talk(process: asyncio.subprocess.Process, given: bytes | None, heard: bytearray) -> bytes:
    """Give a command its standard input and return its standard output once it has ended. What it says of errors goes to `heard`.

    sbatch asks again by itself, for minutes, where the controller has no room for the job. It is ended then, because the
    submitter can ask for less.
    """
    assert process.stdout is not None and process.stderr is not None

    async def give() -> None:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(given or b"")
                await process.stdin.drain()
            process.stdin.close()

    async def hear(stream: asyncio.StreamReader) -> None:
        while said := await stream.read(4096):
            heard.extend(said[: _MAX_HEARD - len(heard)])
            if _ASKS_AGAIN in heard and process.returncode is None:
                process.kill()

    _, out, _ = await asyncio.gather(give(), process.stdout.read(), hear(process.stderr))
    await process.wait()
    return out


def without_inputs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables by which Slurm's commands take options, and without those of a job.

    A server may run in a job itself. What Slurm made for that job would reach each job that is submitted from there.
    """
    strange = _DEVICES if "SLURM_JOB_ID" in environment else ()
    return {
        name: value
        for name, value in environment.items()
        if not (name.startswith(_INPUT_VARIABLES) or is_of_a_job(name) or name in strange)
    }
