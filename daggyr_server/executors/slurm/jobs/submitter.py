"""Submits the attempts that wait on a Slurm pool: those of equal needs together, as one job array, up to `max_jobs` in Slurm.

The executor of job mode runs one `Submitter`. `submission_folder.py` says in which order things become durable, and why no
attempt is submitted twice. A submission that Slurm does not take is made void, and what becomes of its attempts depends on why:

 - It never will be taken: they are REJECTED, in Slurm's words.
 - It is too much for now, for a limit: half of it is submitted, then half of that. Where even one is too much, some of its kind
   wait here to be tried again, the others go back, and those of other kinds are submitted meanwhile. The core is told of the
   kind, so that it does not fill the pool with more of it. What is held back is tried one attempt after another, at least
   `look_seconds` apart unless one was taken, so that Slurm is not asked all the time, however many kinds there are.
 - Slurm, or the way there, does not work: they are RETURNED, and the pool pauses. The next try comes by the clock, always.

Nothing here follows a job once it is submitted.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from daggyr.attempts.outcome import without_process
from daggyr.backoff import Backoff
from daggyr.v1.task_pb2 import REJECTED
from daggyr_server.executors.slurm.client import Job, SlurmError, SlurmLimited, SlurmLimits, SlurmRefused
from daggyr_server.executors.slurm.jobs.held_back import Alike, HeldBack, JobKind
from daggyr_server.executors.slurm.jobs.known_jobs import LONGEST_PAUSE, STRAY_SECONDS, JobAttempt, KnownJobs, Submission
from daggyr_server.executors.slurm.jobs.script import job_script
from daggyr_server.executors.slurm.jobs.submission_folder import Manifest, SubmissionFolder

log = logging.getLogger(__name__)

MAX_SUBMISSION_BYTES = 4 * 1024 * 1024  # of the tasks of one submission
SUBMITTER = "submitter"  # the finder of what `KnownJobs.trouble` is told from here
_MAX_LABEL = 60  # characters of a task's id in the name of its job


class Submitter:
    """One of the executor's three tasks; `run` is called once."""

    def __init__(self, known: KnownJobs) -> None:
        self.known = known
        self.pool = known.pool
        self._backoff = Backoff(self.pool.settings.poll_interval, LONGEST_PAUSE)
        self._next_try = 0.0  # before then, nothing that is held back is tried, monotonic

    async def run(self) -> None:
        self.known.limits = await self._limits()
        self.known.fine(SUBMITTER)
        self.known.offer()
        while True:
            group = await self._next_group()
            try:
                await self._submit(group)
                self._backoff.reset()
            except (SlurmError, OSError) as error:
                why = str(error) if isinstance(error, SlurmError) else self.known.directory_words(error)
                reason = f"nothing can be submitted to Slurm: {why}"
                pause = self._backoff.next()
                self.known.trouble(SUBMITTER, reason, pause)
                for attempt in group:
                    self.known.give_back(attempt, reason)
                await asyncio.sleep(pause)
                self.known.fine(SUBMITTER)

    async def _limits(self) -> SlurmLimits:
        """Return what the cluster says of itself, as soon as Slurm answers."""
        while True:
            try:
                found = await self.pool.client.limits()
            except SlurmError as error:
                pause = self._backoff.next()
                self.known.trouble(SUBMITTER, f"Slurm does not answer: {error}", pause)
                await asyncio.sleep(pause)
            else:
                self._backoff.reset()
                return found

    async def _next_group(self) -> list[JobAttempt]:
        """Wait until some attempts can be submitted, and return them: the first that may be, and others of equal needs."""
        known = self.known
        while True:
            known.submit_wake.clear()
            now = time.monotonic()
            if known.refused.forget(known.kinds_held_back(), LONGEST_PAUSE):
                known.offer()
            dues = [
                due
                for refused in known.refused.by_kind.values()
                if refused.due and (due := max(refused.due, self._next_try)) > now
            ]
            room = self.pool.settings.max_jobs - known.in_slurm
            if room > 0 and (group := self._group(room, now)):
                return group
            try:
                async with asyncio.timeout(min(dues) - now if room > 0 and dues else None):
                    await known.submit_wake.wait()
            except TimeoutError:
                continue

    def _next(self, now: float) -> Alike | None:
        """What is submitted next: the first that is not held back, else what is held back and due for longest."""
        found, since = None, now
        for attempt in self.known.waiting.values():
            if attempt.alike is None:
                continue
            refused = self.known.refused.by_kind.get(attempt.alike.kind)
            if refused is None or not refused.due:
                return attempt.alike
            if refused.due <= since:
                found, since = attempt.alike, refused.due
        return found if now >= self._next_try else None

    def _group(self, room: int, now: float) -> list[JobAttempt]:
        alike = self._next(now)
        if alike is None:
            return []
        refused = self.known.refused.by_kind.get(alike.kind)
        most = min(room, self._largest(), refused.most if refused is not None else room)
        group: list[JobAttempt] = []
        size = 0
        for attempt in self.known.waiting.values():
            if attempt.alike == alike and attempt.spec is not None:
                size += attempt.spec.ByteSize()
                if group and (len(group) >= most or size > MAX_SUBMISSION_BYTES):
                    break
                group.append(attempt)
        return group

    def _largest(self) -> int:
        return self.known.limits.max_array if self.known.limits is not None else 1

    async def _submit(self, group: list[JobAttempt]) -> None:
        """Submit these attempts.

        Raises SlurmError or OSError if Slurm, or the way there, does not work; then nothing of this submission will ever start,
        and nothing was told of its attempts.
        """
        alike = group[0].alike
        assert alike is not None
        (needs, timeout, _), whole_stdout_bytes = alike
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
            name=f"{name}.{_label(group)}",
            script=job_script(
                folder.path,
                home,
                grace=self.pool.context.grace,
                timeout=timeout,
                whole_stdout_bytes=whole_stdout_bytes,
                size=len(group),
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
            # The job is held. If its id cannot be written down, nobody would know it after a restart, so that it is taken back.
            await asyncio.to_thread(folder.submitted, job_id)
        except (SlurmError, OSError) as error:
            await self._undo(submission)
            if isinstance(error, SlurmRefused):
                for attempt in group:
                    self.known.tell(attempt, without_process(REJECTED, f"Slurm did not take its job: {error}"))
                self.known.offer()  # There may be room for others of its kind.
            elif isinstance(error, SlurmLimited):
                self._halve(alike.kind, group, str(error))
            else:
                raise
            return
        self._taken(alike.kind, len(group))
        for attempt in group:
            attempt.assignment = attempt.spec = None
        await self.known.release(submission)
        submission.made = time.monotonic()
        self.known.watch_wake.set()
        self.known.calls_wake.set()

    async def _undo(self, submission: Submission) -> None:
        """Make sure that nothing of a submission that has failed ever starts."""
        del self.known.submissions[submission.name]
        self.known.in_slurm -= len(submission.attempts)
        self.known.strays_until = time.monotonic() + STRAY_SECONDS
        for attempt in submission.attempts.values():
            attempt.submission = None
        try:
            await asyncio.to_thread(submission.folder.void)
        except OSError as fault:
            log.debug("the folder of %s: %s", submission.name, fault)

    def _halve(self, kind: JobKind, group: list[JobAttempt], reason: str) -> None:
        """A limit does not let this many in: half of them are tried next, at once; if it was one, later."""
        now = time.monotonic()
        refused = self.known.refused.by_kind.get(kind)
        if refused is None:
            refused = self.known.refused.by_kind[kind] = HeldBack(Backoff(self.pool.settings.poll_interval, LONGEST_PAUSE))
        refused.most, refused.taken, refused.tried = max(1, len(group) // 2), 0, now
        if len(group) == 1:
            pause = refused.backoff.next()
            refused.due = now + pause
            self._next_try = now + self.known.look_seconds
            if refused.reason != reason:
                log.warning("pool %s: %s waits, it is tried again in %g s: %s", self.pool.pool, _label(group), pause, reason)
            refused.reason = reason
        self.known.waiting = {**{attempt.ident: attempt for attempt in group}, **self.known.waiting}
        self.known.offer()
        if len(group) == 1:
            self.known.shrink(reason)

    def _taken(self, kind: JobKind, count: int) -> None:
        refused = self.known.refused.by_kind.get(kind)
        if refused is None:
            return
        self._next_try = 0.0
        refused.taken += 1
        refused.tried = time.monotonic()
        refused.due = 0.0
        refused.reason = ""
        refused.backoff.reset()
        if refused.taken > 1:
            refused.most = 2 * max(count, refused.most)
        if refused.most >= self._largest():
            del self.known.refused.by_kind[kind]
        self.known.offer()


def _label(group: list[JobAttempt]) -> str:
    """What leads from a job's name back to its tasks, for people: the first task's run and id, and how many others there are.

    Slurm takes any character in a name, but who reads it in a shell does not.
    """
    first = group[0]
    task_id = first.assignment.task_id if first.assignment is not None else ""
    shown = re.sub(r"[^A-Za-z0-9_.:=+-]", "_", task_id)[:_MAX_LABEL]
    more = f"+{len(group) - 1}" if len(group) > 1 else ""
    return f"run{first.ident[0]}.{shown}{more}"
