"""Submits what waits on a Slurm pool: attempts of equal needs together, as one job array, as many as the pool may have in Slurm.

The executor of job mode runs one `Submitter`. `submission.py` says in which order things become durable, and why that is
enough for none to be submitted twice. If Slurm does not take a submission for now, it is made void, and the attempts wait again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from daggyr.attempts.outcome import without_process
from daggyr.backoff import Backoff
from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_PAUSED, LOST, REJECTED
from daggyr_server.executors.slurm.client import Job, Limits, SlurmError, SlurmRefused, SlurmUnavailable
from daggyr_server.executors.slurm.jobs.in_flight import LONGEST_PAUSE, STRAY_SECONDS, Attempt, Flight, Flights
from daggyr_server.executors.slurm.jobs.script import job_script
from daggyr_server.executors.slurm.jobs.submission import Manifest, Submission

log = logging.getLogger(__name__)

MAX_SUBMISSION_BYTES = 4 * 1024 * 1024  # of the tasks of one submission


class Submitter:
    """To be run once."""

    def __init__(self, flights: Flights) -> None:
        self.flights = flights
        self.pool = flights.pool

    async def run(self) -> None:
        self.flights.limits = await self._limits()
        self.flights.offer(HOST_AVAILABLE)
        backoff = Backoff(self.pool.settings.poll_interval, LONGEST_PAUSE)
        while True:
            while not self.flights.waiting:
                self.flights.submit_wake.clear()
                await self.flights.submit_wake.wait()
            room = self.pool.settings.max_jobs - self.flights.in_slurm
            if room <= 0:
                self.flights.room.clear()
                await self.flights.room.wait()
                continue
            group = self._group(min(room, self.flights.limits.max_array))
            try:
                await self._submit(group)
                backoff.reset()
            except (SlurmUnavailable, OSError) as error:
                pause = backoff.next()
                log.warning("pool %s: nothing can be submitted, it is tried again in %g s: %s", self.pool.pool, pause, error)
                self.flights.offer(HOST_PAUSED)
                await asyncio.sleep(pause)

    async def _limits(self) -> Limits:
        """As soon as Slurm answers at all."""
        backoff = Backoff(self.pool.settings.poll_interval, LONGEST_PAUSE)
        while True:
            try:
                return await self.pool.client.limits()
            except SlurmError as error:
                log.warning("pool %s waits for Slurm: %s", self.pool.pool, error)
            await asyncio.sleep(backoff.next())

    def _group(self, most: int) -> list[Attempt]:
        """The first that waits, and others of equal needs."""
        first = next(iter(self.flights.waiting.values()))
        group: list[Attempt] = []
        size = 0
        for attempt in self.flights.waiting.values():
            if attempt.alike == first.alike and attempt.spec is not None:
                size += attempt.spec.ByteSize()
                if group and (len(group) >= most or size > MAX_SUBMISSION_BYTES):
                    break
                group.append(attempt)
        return group

    async def _submit(self, group: list[Attempt]) -> None:
        """Submit these, or raise SlurmUnavailable or OSError with all of them waiting again, and none of them ever to start."""
        alike = group[0].alike
        assert alike is not None
        needs, timeout, whole_stdout_bytes = alike
        name = self.pool.prefix + secrets.token_hex(6)
        manifest = Manifest(name, [attempt.ident for attempt in group], timeout, whole_stdout_bytes)
        submission = Submission(self.pool.tracker_folder / name, manifest)
        flight = self.flights.flying[name] = Flight(submission, dict(enumerate(group)))
        for index, attempt in flight.attempts.items():
            attempt.flight, attempt.index = flight, index
            del self.flights.waiting[attempt.ident]
        self.flights.in_slurm += len(group)
        home = self.pool.settings.directory
        job = Job(
            name=name,
            script=job_script(
                submission.folder,
                home,
                grace=self.pool.surroundings.grace,
                timeout=timeout,
                whole_stdout_bytes=whole_stdout_bytes,
            ),
            size=len(group),
            needs=needs,
            directory=home,
            output=submission.folder / ("%a.slurm" if len(group) > 1 else "0.slurm"),
            environment=self.pool.job_environment,
        )
        tasks = [(index, each.assignment, each.spec) for index, each in flight.attempts.items() if each.assignment and each.spec]
        try:
            await asyncio.to_thread(submission.write, tasks)
            job_id = await self.pool.client.submit(job)
        except (SlurmError, OSError) as error:
            await self._not_submitted(flight, error)
            if isinstance(error, SlurmUnavailable | OSError):
                raise
            return
        try:
            await asyncio.to_thread(submission.submitted, job_id)
        except OSError as error:
            # Held, with an id that is known to nobody after a restart: it is taken back.
            await self._not_submitted(flight, error)
            raise
        for attempt in group:
            attempt.assignment = attempt.spec = None
        await self.flights.release(flight)
        flight.made = time.monotonic()
        self.flights.watch_wake.set()
        self.flights.talk_wake.set()

    async def _not_submitted(self, flight: Flight, error: Exception) -> None:
        """A submission has failed: whatever Slurm has of it never starts."""
        del self.flights.flying[flight.submission.name]
        self.flights.in_slurm -= len(flight.attempts)
        self.flights.strays_until = time.monotonic() + STRAY_SECONDS
        try:
            await asyncio.to_thread(flight.submission.void)
        except OSError as fault:
            log.debug("the folder of %s: %s", flight.submission.name, fault)
        if isinstance(error, SlurmUnavailable | OSError):
            again = {attempt.ident: attempt for attempt in flight.attempts.values()}
            for attempt in again.values():
                attempt.flight = None
            self.flights.waiting = {**again, **self.flights.waiting}
            return
        outcome = REJECTED if isinstance(error, SlurmRefused) else LOST
        for attempt in flight.attempts.values():
            self.flights.tell(attempt, without_process(outcome, f"Slurm did not take its job: {error}"))
