"""Submits the attempts that wait on a Slurm pool: those of equal needs together, as one job array, up to `max_jobs` in Slurm.

The executor of job mode runs one `Submitter`. `submission_folder.py` says in which order things become durable, and why no
attempt is submitted twice. A submission that Slurm does not take for now is made void, and its attempts wait again. Nothing here
follows a job once it is submitted.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from daggyr.attempts.outcome import without_process
from daggyr.backoff import Backoff
from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_PAUSED, LOST, REJECTED
from daggyr_server.executors.slurm.client import Job, SlurmError, SlurmLimits, SlurmRefused, SlurmUnavailable
from daggyr_server.executors.slurm.jobs.known_jobs import LONGEST_PAUSE, STRAY_SECONDS, JobAttempt, KnownJobs, Submission
from daggyr_server.executors.slurm.jobs.script import job_script
from daggyr_server.executors.slurm.jobs.submission_folder import Manifest, SubmissionFolder

log = logging.getLogger(__name__)

MAX_SUBMISSION_BYTES = 4 * 1024 * 1024  # of the tasks of one submission


class Submitter:
    """One of the executor's three tasks; `run` is called once."""

    def __init__(self, known: KnownJobs) -> None:
        self.known = known
        self.pool = known.pool

    async def run(self) -> None:
        self.known.limits = await self._limits()
        self.known.offer(HOST_AVAILABLE)
        backoff = Backoff(self.pool.settings.poll_interval, LONGEST_PAUSE)
        while True:
            while not self.known.waiting:
                self.known.submit_wake.clear()
                await self.known.submit_wake.wait()
            room = self.pool.settings.max_jobs - self.known.in_slurm
            if room <= 0:
                self.known.room.clear()
                await self.known.room.wait()
                continue
            group = self._group(min(room, self.known.limits.max_array))
            try:
                await self._submit(group)
                backoff.reset()
            except (SlurmUnavailable, OSError) as error:
                pause = backoff.next()
                log.warning("pool %s: nothing can be submitted, it is tried again in %g s: %s", self.pool.pool, pause, error)
                self.known.offer(HOST_PAUSED)
                await asyncio.sleep(pause)

    async def _limits(self) -> SlurmLimits:
        """Return what the cluster says of itself, as soon as Slurm answers."""
        backoff = Backoff(self.pool.settings.poll_interval, LONGEST_PAUSE)
        while True:
            try:
                return await self.pool.client.limits()
            except SlurmError as error:
                log.warning("pool %s waits for Slurm: %s", self.pool.pool, error)
            await asyncio.sleep(backoff.next())

    def _group(self, most: int) -> list[JobAttempt]:
        """Return the first attempt that waits, and others of equal needs."""
        first = next(iter(self.known.waiting.values()))
        group: list[JobAttempt] = []
        size = 0
        for attempt in self.known.waiting.values():
            if attempt.alike == first.alike and attempt.spec is not None:
                size += attempt.spec.ByteSize()
                if group and (len(group) >= most or size > MAX_SUBMISSION_BYTES):
                    break
                group.append(attempt)
        return group

    async def _submit(self, group: list[JobAttempt]) -> None:
        """Submit these attempts.

        Raises SlurmUnavailable or OSError; then all of them wait again, and nothing of this submission will ever start.
        """
        alike = group[0].alike
        assert alike is not None
        needs, timeout, whole_stdout_bytes = alike
        name = self.pool.prefix + secrets.token_hex(6)
        manifest = Manifest(name, [attempt.ident for attempt in group], timeout, whole_stdout_bytes)
        folder = SubmissionFolder(self.pool.tracker_folder / name, manifest)
        submission = self.known.submissions[name] = Submission(folder, dict(enumerate(group)))
        for index, attempt in submission.attempts.items():
            attempt.submission, attempt.index = submission, index
            del self.known.waiting[attempt.ident]
        self.known.in_slurm += len(group)
        home = self.pool.settings.directory
        job = Job(
            name=name,
            script=job_script(
                folder.path, home, grace=self.pool.context.grace, timeout=timeout, whole_stdout_bytes=whole_stdout_bytes
            ),
            size=len(group),
            needs=needs,
            directory=home,
            output=folder.path / ("%a.slurm" if len(group) > 1 else "0.slurm"),
            environment=self.pool.job_environment,
        )
        tasks = [
            (index, each.assignment, each.spec) for index, each in submission.attempts.items() if each.assignment and each.spec
        ]
        try:
            await asyncio.to_thread(folder.write, tasks)
            job_id = await self.pool.client.submit(job)
        except (SlurmError, OSError) as error:
            await self._not_submitted(submission, error)
            if isinstance(error, SlurmUnavailable | OSError):
                raise
            return
        try:
            await asyncio.to_thread(folder.submitted, job_id)
        except OSError as error:
            # The job is held, and after a restart nobody would know its id, so it is taken back.
            await self._not_submitted(submission, error)
            raise
        for attempt in group:
            attempt.assignment = attempt.spec = None
        await self.known.release(submission)
        submission.made = time.monotonic()
        self.known.watch_wake.set()
        self.known.calls_wake.set()

    async def _not_submitted(self, submission: Submission, error: Exception) -> None:
        """Make sure that nothing of a submission that has failed ever starts, and let its attempts wait again or end."""
        del self.known.submissions[submission.name]
        self.known.in_slurm -= len(submission.attempts)
        self.known.strays_until = time.monotonic() + STRAY_SECONDS
        try:
            await asyncio.to_thread(submission.folder.void)
        except OSError as fault:
            log.debug("the folder of %s: %s", submission.name, fault)
        if isinstance(error, SlurmUnavailable | OSError):
            again = {attempt.ident: attempt for attempt in submission.attempts.values()}
            for attempt in again.values():
                attempt.submission = None
            self.known.waiting = {**again, **self.known.waiting}
            return
        outcome = REJECTED if isinstance(error, SlurmRefused) else LOST
        for attempt in submission.attempts.values():
            self.known.tell(attempt, without_process(outcome, f"Slurm did not take its job: {error}"))
