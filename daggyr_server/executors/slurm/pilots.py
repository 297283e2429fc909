"""Slurm in pilot mode: jobs that each run a `daggyr-agent`, which joins the pool and carries out attempts one after another.

Slurm takes a second or so to start a job, and an agent starts thousands of tasks a second. The attempts are those of an agent
pool in every way (agents/executor.py). This file only sees to it that there are agents: as many as the attempts that could run
now have use for, at most `max_pilots`, and none when there has been nothing to do for `idle_seconds`. Tasks that wait for
others do not count.

Address and token reach an agent by files of mode 0600 in the pool's directory; neither shows in `scontrol show job`, in `ps`,
or in the job's script. Before any pilot is added, Slurm is asked how many there are, by the name of their jobs. So pilots are
counted too that an earlier coordinator has submitted, and those of a request of which no answer came.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from daggyr.backoff import Backoff
from daggyr.channel import AddressError, check_address, is_loopback
from daggyr.whole_file import write_whole
from daggyr_server.executors.agents.executor import AgentExecutor
from daggyr_server.executors.base import Reports, SettingsError
from daggyr_server.executors.context import ExecutorContext, PoolAccess
from daggyr_server.executors.slurm.client import ENDED_STATES, Job, SlurmError, needs_of
from daggyr_server.executors.slurm.pool import SlurmPool

log = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0  # seconds, of a backoff
_GIVEN_BY_SLURM = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "SLURM_*",
)  # Slurm sets these for a pilot's job, and they hold for its tasks too


class PilotExecutor(SlurmPool, AgentExecutor):
    """One pool of pilots."""

    sized_by: ClassVar[str] = "pilot_resources"
    fleeting: ClassVar[bool] = True
    # An interpreter may need these to find its libraries; tasks get them only if `pass_environment` names them.
    jobs_need: ClassVar[tuple[str, ...]] = (
        "SLURM_CONF",
        "LD_LIBRARY_PATH",
        "PYTHONHOME",
        "PYTHONPATH",
        "SSL_CERT_*",
        "VIRTUAL_ENV",
    )

    def __init__(self, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> None:
        super().__init__(pool, settings, reports, context)
        self._resources = {"cores": 1, **self.settings.pilot_resources}
        try:
            self._needs = needs_of(self._resources, 0, self.settings)
            if self.settings.coordinator is not None:
                check_address(self.settings.coordinator)
        except AddressError as error:
            raise SettingsError(f"`coordinator`: {error}") from None
        except ValueError as error:
            raise SettingsError(f"`pilot_resources`: {error}") from None
        self._ready = 0
        self._idle: dict[str, float] = {}  # since when each agent has nothing to do, monotonic; by its id
        self._unwanted: float | None = None  # since when no attempt waits, monotonic
        self._backoff = Backoff(self.settings.poll_interval, LONGEST_PAUSE)
        self._wake = asyncio.Event()
        self._scaling: asyncio.Task[None] | None = None

    @property
    def joined_as(self) -> str:
        return f"slurm-{self.mark}"  # a pool's name may have spaces and slashes, and an agent's pool may not

    def largest(self) -> Mapping[str, int]:
        return self._resources

    def demand(self, ready: int) -> None:
        self._ready = ready
        self._wake.set()

    async def open(self) -> None:
        await SlurmPool.open(self)
        await AgentExecutor.open(self)
        self._scaling = asyncio.create_task(self._scale(), name=f"pilots of {self.pool}")

    async def close(self) -> None:
        scaling, self._scaling = self._scaling, None
        if scaling is not None:
            scaling.cancel()
            await asyncio.gather(scaling, return_exceptions=True)
        await AgentExecutor.close(self)

    # -- as many as there is work for ---------------------------------------------------------------------------------

    async def _scale(self) -> None:
        access = await self.context.access.opened()
        address = self._address(access.address)
        token = await self._tell_pilots(address, access)
        pilots = True  # an earlier coordinator may have left some
        while True:
            if access.token != token:  # it was replaced; pilots read the file for each session
                token = await self._tell_pilots(address, access)
            pause = self.settings.poll_interval
            if pilots or self._ready or self.agents:
                try:
                    pilots = await self._look()
                    self._backoff.reset()
                except (SlurmError, OSError) as error:
                    pause = self._backoff.next()
                    log.warning("pool %s: pilots are looked after again in %g s: %s", self.pool, pause, error)
                # Pilots have to see a sign of life in time, even if Slurm does not answer.
                await asyncio.sleep(min(pause, self.settings.orphan_seconds / 3))
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _tell_pilots(self, address: str, access: PoolAccess) -> str | None:
        """Write down for pilots where this coordinator is, and try until that works. Returns the token that they find."""
        backoff = Backoff(1.0, LONGEST_PAUSE)
        while True:
            token = access.token
            try:
                await asyncio.to_thread(self._write_files, address, token, access)
                return token
            except OSError as error:
                log.error("pool %s: cannot write into %s: %s", self.pool, self.settings.directory, error.strerror)
                await asyncio.sleep(backoff.next())

    async def _look(self) -> bool:
        """Look how many pilots there are, and submit or cancel some. Returns whether there are any."""
        await asyncio.to_thread((self._files / "alive").touch)
        jobs = [job for job in await self.client.jobs(self.prefix) if job.state not in ENDED_STATES]
        for held in {job.job_id for job in jobs if job.held and job.state == "PENDING"}:
            await self.client.release(held)
        now = time.monotonic()
        self._dismiss(now)
        waiting = [job for job in jobs if job.state == "PENDING"]
        self._unwanted = None if self._ready or not waiting else self._unwanted or now
        if self._unwanted is not None and now >= self._unwanted + self.settings.idle_seconds:
            await self.client.cancel(sorted({job.job_id for job in waiting}))
        leaving = sum(agent.draining for agent in self.agents.values())
        given = sum(len(agent.held) for agent in self.agents.values())
        wanted = min(self.settings.max_pilots, -(-(self._ready + given) // self._resources["cores"]))
        missing = min(wanted - (len(jobs) - leaving), self.settings.max_pilots - len(jobs))
        if self._ready and missing > 0:
            await self._submit(missing)
        return bool(jobs) or missing > 0

    def _dismiss(self, now: float) -> None:
        """Let pilots end that have had nothing to do for `idle_seconds`."""
        idle = [agent for agent in self.agents.values() if not agent.held and not agent.draining and agent.session is not None]
        self._idle = {agent.agent_id: self._idle.get(agent.agent_id, now) for agent in idle}
        for agent in idle:
            if now >= self._idle[agent.agent_id] + self.settings.idle_seconds:
                log.info("pool %s: %s has nothing to do and is ended", self.pool, agent.name)
                self.drain(agent.name)

    async def _submit(self, count: int) -> None:
        settings = self.settings
        name = f"{self.prefix}pilots-{secrets.token_hex(4)}"
        # They are submitted one at a time: they are few, and nobody needs to know how large an array may be.
        for _ in range(count):
            job = Job(
                name=name,
                script=self._script(),
                size=1,
                needs=self._needs,
                directory=settings.directory,
                output=self._files / "log",
                environment=self.job_environment,
            )
            await self.client.release(await self.client.submit(job))
        log.info("pool %s: pilots submitted: %d, for %d tasks that could run", self.pool, count, self._ready)

    # -- what a pilot finds -------------------------------------------------------------------------------------------

    @property
    def _files(self) -> Path:
        return self.tracker_folder / f"pilots-{self.mark}"

    def _script(self) -> str:
        settings = self.settings
        command = settings.agent_command or [sys.executable, "-P", "-m", "daggyr_agent"]
        return (
            f"#!/bin/sh\nfolder={shlex.quote(str(self._files))}\n"
            f"orphan={max(1, int(settings.orphan_seconds))}\nlook={max(0.1, min(10.0, settings.orphan_seconds / 4)):g}\n"
            f"set -- {shlex.join(command)}\n{_program()}"
        )

    def _write_files(self, address: str, token: str | None, access: PoolAccess) -> None:
        files = self._files
        files.mkdir(mode=0o700, exist_ok=True)
        lines = {"coordinator": address, "pool": self.joined_as, "log_level": self.context.log_level}
        if token is not None:
            lines["token_file"] = str(files / "token")
            write_whole(files / "token", f"{token}\n".encode())
        if self.settings.coordinator_ca is not None:
            lines["tls_ca"] = str(files / "ca.pem")
            write_whole(files / "ca.pem", self.settings.coordinator_ca.read_bytes())
        # Agents offer what the job was given and no more. Without `memory_mb`, no task that names memory comes here.
        resources = {"memory_mb": 0, **self._resources}
        text = "".join(f"{name} = {_toml(value)}\n" for name, value in lines.items())
        text += "tls = true\n" if access.tls else ""
        text += "insecure = true\n" if access.insecure else ""
        text += f"pass_environment = [{', '.join(map(_toml, (*self.pass_environment, *_GIVEN_BY_SLURM)))}]\n"
        text += "[resource]\n" + "".join(f"{_toml(name)} = {units}\n" for name, units in resources.items())
        write_whole(files / "agent.toml", text.encode())
        (files / "alive").touch()

    def _address(self, listening: str) -> str:
        """Return where pilots find this coordinator."""
        address = self.settings.coordinator
        if address is not None:
            return address
        host, _, port = listening.rpartition(":")
        if host in ("0.0.0.0", "[::]"):
            return f"{socket.getfqdn()}:{port}"
        if is_loopback(listening):
            log.warning(
                "pool %s: pilots on other hosts cannot reach this server at %s: let it listen elsewhere, or write "
                "`coordinator` into the pool",
                self.pool,
                listening.partition(":")[0] if listening.startswith("unix:") else listening,
            )
        return listening


@cache
def _program() -> str:
    return Path(__file__).with_name("pilot.sh").read_text(encoding="utf-8")


def _toml(text: str) -> str:
    """A TOML basic string. https://toml.io/en/v1.0.0#string"""
    return '"' + "".join(f"\\u{ord(c):04X}" if c in '"\\' or not c.isprintable() else c for c in text) + '"'
