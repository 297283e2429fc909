"""Asks Slurm about a pool's jobs, with one status query for all of them, and has those ended that are to stop.

The executor of job mode runs one `SlurmCalls`. It writes what Slurm says into the attempts' `state`, from which the watch makes
results. Jobs of this pool that nobody waits for are cancelled, however they came to be there. It submits nothing, and reads no
folder.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable

from daggyr.attempts.outcome import without_process
from daggyr.backoff import Backoff
from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_PAUSED, LOST
from daggyr_server.executors.slurm.client import ALL_OTHERS, ENDED_STATES, JobStatus, SlurmError, SlurmUnavailable
from daggyr_server.executors.slurm.jobs.known_jobs import LONGEST_PAUSE, KnownJobs, Submission
from daggyr_server.executors.slurm.jobs.outcomes import GONE

log = logging.getLogger(__name__)

STOP_PATIENCE = 3.0  # seconds beyond the grace period before Slurm is told again to end a job


class SlurmCalls:
    """One of the executor's three tasks; `run` is called once."""

    def __init__(self, known: KnownJobs) -> None:
        self.known = known
        self.pool = known.pool
        self._next_query = 0.0  # monotonic
        self._answers = True  # Slurm, as far as is known
        self._backoff = Backoff(self.pool.settings.poll_interval, LONGEST_PAUSE)

    async def run(self) -> None:
        while True:
            try:
                await self._end_jobs()
                awaited = self.known.submissions or self.known.away or time.monotonic() < self.known.strays_until
                # Before it is known what an earlier coordinator has submitted, its jobs would look as if nobody waited for them.
                if awaited and self.known.placed is None and time.monotonic() >= self._next_query:
                    await self._query()
            except OSError as error:
                log.error("pool %s: its directory cannot be used for now: %s", self.pool.pool, error)
            await self.known.rest(self.known.calls_wake)

    async def _end_jobs(self) -> None:
        """Have jobs ended: those of attempts that are to stop, and those of attempts that were taken back."""
        cancel, self.known.to_cancel = self.known.to_cancel, []
        now = time.monotonic()
        terminate = [
            each
            for each in self.known.attempts.values()
            if each.requested == "stop" and each.runs and each.reported is None and now >= each.ask_again_at and each.submission
        ]
        terminate = [each for each in terminate if each.submission and each.submission.folder.manifest.job_id]
        if not (terminate or cancel):
            return
        # The first signal may have come before the script could take it, so there is a second. Then Slurm itself ends the job.
        first = [each for each in terminate if each.asked_slurm < 2]
        cancel += [each.submission.task(each.index) for each in terminate if each.asked_slurm >= 2 and each.submission]
        pause = self.known.look_seconds
        try:
            if first:
                await self.pool.client.terminate([each.submission.task(each.index) for each in first if each.submission])
            if cancel:
                await self.pool.client.cancel(cancel)
            pause = self.pool.context.grace + STOP_PATIENCE
            for attempt in terminate:
                attempt.asked_slurm += 1
        except SlurmError as error:
            log.warning("pool %s: jobs cannot be ended for now: %s", self.pool.pool, error)
            if isinstance(error, SlurmUnavailable):
                self.known.offer(HOST_PAUSED)
            pause = self.pool.settings.poll_interval
        for attempt in terminate:
            attempt.ask_again_at = time.monotonic() + pause

    async def _query(self) -> None:
        asked_at = time.monotonic()
        try:
            statuses = await self.pool.client.jobs(self.pool.prefix)
        except SlurmError as error:
            self._next_query = time.monotonic() + self._backoff.next()
            if self._answers:
                log.warning("pool %s: Slurm does not answer, its jobs go on meanwhile: %s", self.pool.pool, error)
            self._answers = False
            self.known.offer(HOST_PAUSED)
            return
        self._answers = True
        self._backoff.reset()
        self._next_query = time.monotonic() + self.pool.settings.poll_interval
        if self.known.limits is not None:
            self.known.offer(HOST_AVAILABLE)
        found = {(status.name, status.index): status for status in statuses}
        states = {submission.name: submission for submission in self.known.submissions.values()}
        for name, submission in states.items():
            if submission.made is None or submission.made >= asked_at:
                continue  # it was submitted after the question
            own = [status for status in statuses if status.name == name]
            if not submission.folder.manifest.job_id and not await self._find(submission, own):
                continue
            if any(status.held and status.state == "PENDING" for status in own):
                await self.known.release(submission)
            for index, attempt in submission.attempts.items():
                status = found.get((name, index)) or found.get((name, ALL_OTHERS))
                attempt.state = status.state if status is not None else GONE
                over = attempt.state == GONE or attempt.state in ENDED_STATES
                attempt.over_since = (attempt.over_since or asked_at) if over else None
        self.known.watch_wake.set()
        await self._cancel_strays(statuses)

    async def _find(self, submission: Submission, own: list[JobStatus]) -> bool:
        """Look for the job of a submission whose id an earlier coordinator did not write down. Returns whether there is one."""
        folder = submission.folder
        if own:
            await asyncio.to_thread(folder.submitted, own[0].job_id)
            return True
        if await asyncio.to_thread(folder.void):
            del self.known.submissions[folder.name]
            self.known.in_slurm -= len(submission.attempts)
            for attempt in submission.attempts.values():
                self.known.tell(attempt, without_process(LOST, "its job was not in Slurm when the coordinator came back"))
        else:
            for attempt in submission.attempts.values():
                attempt.state, attempt.over_since = GONE, attempt.over_since or time.monotonic()
        return False

    async def _cancel_strays(self, statuses: Iterable[JobStatus]) -> None:
        """Cancel jobs of this pool that nobody waits for.

        They were submitted late, or their attempts were taken back, or their run is gone.
        """
        strays: Counter[str] = Counter()
        for status in statuses:
            submission = self.known.submissions.get(status.name)
            if status.state in ENDED_STATES or status.state == "COMPLETING":
                continue
            if submission is not None:
                wanted = submission.made is None or status.index in submission.attempts or status.index == ALL_OTHERS
                wanted = wanted or (status.state != "PENDING" and status.index not in submission.nobodys)
                task = submission.task(status.index)
            else:
                wanted = status.name in self.known.finished and status.state != "PENDING"
                task = status.job_id
            if not wanted:
                strays[task] += 1
        if strays:
            log.info("pool %s: jobs that nobody waits for are cancelled: %s", self.pool.pool, ", ".join(list(strays)[:20]))
            try:
                await self.pool.client.cancel(list(strays))
            except SlurmError as error:
                log.warning("pool %s: they are not cancelled yet: %s", self.pool.pool, error)
