"""Slurm in pilot mode: jobs that each run a `daggyr-agent`, which joins the pool and carries out attempts one after another.

Slurm takes a second or so to start a job, and an agent starts thousands of tasks a second. The attempts are those of an agent
pool in every way (agents/executor.py). This file only sees to it that there are agents: as many as the attempts that could run
now have use for (`missing_pilots` in pilot_jobs.py), at most `max_pilots`, and none when there has been nothing to do for
`idle_seconds`. Tasks that wait for others do not count, and neither do tasks that no pilot could hold.

Before any pilot is added, Slurm is asked how many there are, by the name of their jobs. So pilots are counted too that an earlier
coordinator has submitted, and those of a request of which no answer came. A pilot whose agent does not come, or came and is given
up, is no capacity: it is cancelled, and the next one waits for a while, because it may fare no better.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from daggyr.address import AddressError, check_address, is_loopback
from daggyr.backoff import Backoff
from daggyr.v1.agents_pb2 import Hello
from daggyr_server.executors.agents.executor import AgentExecutor
from daggyr_server.executors.agents.known_agent import KnownAgent
from daggyr_server.executors.agents.session import AgentSession
from daggyr_server.executors.base import Reports, SettingsError
from daggyr_server.executors.context import ExecutorContext, PoolAccess
from daggyr_server.executors.slurm.client import ENDED_STATES, Job, SlurmError, needs_of
from daggyr_server.executors.slurm.pilot_files import PilotFiles
from daggyr_server.executors.slurm.pilot_jobs import Pilot, PilotJobs, Place, misfits, missing_pilots
from daggyr_server.executors.slurm.pool import SlurmPool
from daggyr_server.executors.slurm.settings import minutes

log = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0  # seconds, of a backoff
JOIN_SECONDS = 120.0  # for the agent of a job that has begun to come
END_SECONDS = 6.0  # for pilots to be cancelled when the coordinator ends for good
_START_AND_END = 30.0  # seconds of a pilot's time limit that no task has: its agent starts, and ends in time (pilot.sh)


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
        self._jobs = PilotJobs()
        self._files = PilotFiles(self.tracker_folder / f"pilots-{self.mark}", self.settings)
        self._address = ""  # where pilots find this coordinator
        self._trouble = ""  # why Slurm is not asked for now
        self._unreleased: set[str] = set()  # jobs that this pool holds
        self._looked = False
        whole = minutes(self.settings.time_limit) if self.settings.time_limit is not None else None
        # For how long a new pilot is there; None while nobody knows of a limit.
        self._lasts = None if whole is None else max(1.0, 60.0 * whole - _START_AND_END)
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
        if self.context.parting and scaling is not None:
            with contextlib.suppress(SlurmError, OSError, TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    jobs = await self.client.jobs(self._pilots)
                    await self.client.cancel(sorted({job.job_id for job in jobs if job.state not in ENDED_STATES}))
            await asyncio.to_thread(self._files.remove)
            with contextlib.suppress(OSError):
                self.leave_directory()

    def notes(self) -> Sequence[str]:
        return [
            *([self._trouble] if self._trouble else []),
            *misfits(self.reports.wanted(), self._resources, self._lasts),
            *self._jobs.notes(self._names()),
        ]

    def welcome(self, hello: Hello, session: AgentSession) -> KnownAgent:
        agent = super().welcome(hello, session)
        if agent.ends is not None and self.settings.time_limit is None:
            # The partition's own limit shows when a pilot comes.
            self._lasts = max(self._lasts or 0.0, agent.ends - time.monotonic())
        return agent

    def expected(self) -> Iterator[KnownAgent]:
        names = self._names()
        for pilot in self._jobs.there.values():
            if pilot.name not in names and not pilot.joined:
                yield KnownAgent("", pilot.name, "", resources=dict(self._resources), coming=pilot.doing)

    @property
    def _pilots(self) -> str:
        """What the names of the pilots' jobs begin with."""
        return f"{self.prefix}pilots-"

    def _names(self) -> set[str]:
        """The agents that the pool knows. One that is out of reach counts until its lease is over."""
        return {agent.name for agent in self.agents.values()}

    # -- as many as there is work for ---------------------------------------------------------------------------------

    async def _scale(self) -> None:
        access = await self.context.access.opened()
        self._address = self._reached_at(access.address)
        token = await self._tell_pilots(access)
        pilots = True  # an earlier coordinator may have left some
        while True:
            if access.token != token:  # it was replaced; pilots read the file for each session
                token = await self._tell_pilots(access)
            pause = self.settings.poll_interval
            if pilots or self._ready or self.agents:
                try:
                    pilots = await self._look()
                    self._backoff.reset()
                    self._trouble = ""
                except (SlurmError, OSError) as error:
                    pause = self._backoff.next()
                    self._trouble = f"Slurm is asked again in {pause:.3g} s: {error}"
                    log.warning("pool %s: %s", self.pool, self._trouble)
                await asyncio.sleep(pause)
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _tell_pilots(self, access: PoolAccess) -> str | None:
        """Write down for pilots where this coordinator is, and try until that works. Returns the token that they find."""
        backoff = Backoff(1.0, LONGEST_PAUSE)
        while True:
            token = access.token
            try:
                await asyncio.to_thread(
                    self._files.write,
                    self._address,
                    access,
                    joined_as=self.joined_as,
                    resources=self._resources,
                    pass_environment=self.pass_environment,
                )
                return token
            except OSError as error:
                self._trouble = f"cannot write into {self.settings.directory}: {error.strerror}"
                log.error("pool %s: %s", self.pool, self._trouble)
                await asyncio.sleep(backoff.next())

    async def _look(self) -> bool:
        """Look how many pilots there are, and submit or cancel some. Returns whether there are any."""
        statuses = await self.client.jobs(self._pilots)
        now = time.monotonic()
        self._jobs.update(statuses, self._names(), now)
        await self._release({job.job_id for job in statuses if job.held and job.state == "PENDING"})
        self._dismiss(now)
        await self._end_in_vain(now)
        there = self._jobs.there
        waiting = sorted(job_id for job_id, pilot in there.items() if pilot.state == "PENDING")
        self._unwanted = None if self._ready or not waiting else self._unwanted or now
        if self._unwanted is not None and now >= self._unwanted + self.settings.idle_seconds:
            await self.client.cancel(waiting)
        missing = 0
        if self._ready and now >= self._jobs.not_before:
            most = self.settings.max_pilots - len(there)
            missing = missing_pilots(self.reports.wanted(), self._resources, self._lasts, self._places(now), most)
            if missing > 0:
                await self._submit(missing)
        return bool(there) or missing > 0

    async def _release(self, held: set[str]) -> None:
        """Let those start that this pool holds. What somebody holds later, by `scontrol hold`, stays held."""
        if not self._looked:
            self._looked = True
            self._unreleased |= held  # An earlier coordinator may have ended between the two requests.
        self._unreleased &= held
        for job_id in sorted(self._unreleased):
            await self.client.release(job_id)
            self._unreleased.discard(job_id)

    async def _end_in_vain(self, now: float) -> None:
        """Cancel pilots whose agents do not come, and have the next one wait if some ended without having come."""
        vain = self._jobs.in_vain(min(JOIN_SECONDS, self.settings.orphan_seconds), self._names(), now)
        if vain:
            await self.client.cancel([pilot.job_id for pilot in vain])
        failed, self._jobs.never_joined = [*self._jobs.never_joined, *(pilot for pilot in vain if not pilot.joined)], []
        if failed:
            why = await asyncio.to_thread(self._why_not_joined, failed[-1])
            pause = self._jobs.failed(why, now)
            log.warning("pool %s: %s; no other is submitted for %.3g s", self.pool, why, pause)

    def _why_not_joined(self, pilot: Pilot) -> str:
        words = self._files.last_words(pilot.job_id)
        said = f"; the last that it said: {words}" if words else f"; see {str(self._files.log).replace('%j', pilot.job_id)}"
        here = ""
        if self.settings.coordinator is None and is_loopback(self._address):
            here = ", which no other host reaches: let it listen elsewhere, or write `coordinator` into the pool"
        return f"{pilot.name} did not reach this server at {self._address}{here}{said}"

    def _places(self, now: float) -> list[Place]:
        """What is free on pilots that are there or will be. A pilot that is leaving takes nothing new."""
        places = []
        agents = {agent.name: agent for agent in self.agents.values()}
        for pilot in self._jobs.there.values():
            agent = agents.pop(pilot.name, None)
            if agent is None and not pilot.joined and pilot.state != "COMPLETING":
                places.append(Place(dict(self._resources), self._lasts))
            elif agent is not None:
                places += self._free(agent, now)
        for agent in agents.values():
            places += self._free(agent, now)
        return places

    def _free(self, agent: KnownAgent, now: float) -> Iterator[Place]:
        if agent.draining or agent.leaving or agent.session is None:
            return
        free = dict(agent.resources)
        for batch, assignment in agent.held.values():
            if batch.templates:
                for name, units in batch.templates[assignment.template].spec.resources.items():
                    free[name] = free.get(name, 0) - units
        yield Place(free, None if agent.ends is None else agent.ends - now)

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
        name = f"{self._pilots}{secrets.token_hex(4)}"
        await asyncio.to_thread(self._files.clear_logs, list(self._jobs.there))
        # They are submitted one at a time: they are few, and nobody needs to know how large an array may be.
        for _ in range(count):
            job = Job(
                name=name,
                script=self._files.script(),
                size=1,
                needs=self._needs,
                directory=settings.directory,
                output=self._files.log,
                environment=self.job_environment,
            )
            job_id = await self.client.submit(job)
            self._unreleased.add(job_id)
            await self.client.release(job_id)
            self._unreleased.discard(job_id)
        log.info("pool %s: pilots submitted: %d, for %d tasks that could run", self.pool, count, self._ready)

    def _reached_at(self, listening: str) -> str:
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
