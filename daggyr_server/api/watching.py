"""The call that tells a run's changes as they come, until it has ended.

Changes of one moment go together, and a watcher that comes late begins with the run as it is. A watcher that is too slow is told
to read the run again; nobody waits for it. Part of `RunsService` (runs.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from daggyr.bounds import bounded_notes
from daggyr.v1.runs_pb2 import RunChange, TaskChange, WatchRunRequest
from daggyr_server.api import views
from daggyr_server.api.servicer import MAX_PAGE_BYTES, Context, Servicer
from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import Phase

MAX_CHANGED_TASKS = 2_000  # in one RunChange
WATCH_SECONDS = 0.1  # between two messages of a watch; changes in between go together
_TOLD = (Phase.ERRORED, Phase.KILLED)  # a change to these carries how the last attempt ended


class Watching(Servicer):
    """See runs.proto."""

    async def WatchRun(self, request: WatchRunRequest, context: Context) -> AsyncIterator[RunChange]:
        run = await self.run(request.run_id, context)
        changes = self.changes
        seq = request.change_seq
        await self.reader.settled(run.run_id, patient=True)
        if not seq:
            seq = changes.seq(run.run_id)
            yield RunChange(run=self.summary_now(run))
        while True:
            await self.reader.settled(run.run_id, patient=True)
            ended = run.has_ended
            newest = changes.seq(run.run_id)
            numbers = changes.after(run.run_id, seq)
            if numbers is None:
                message = f"changes of run {run.run_id} since {seq} are no longer kept: read the run again and watch from 0"
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, message)
            if newest > seq or (ended and seq == request.change_seq):
                told = numbers if request.tasks else []
                summary = self.summary_now(run)
                changed: list[TaskChange] = []
                size = 0
                for number in told:
                    if number < run.graph.live:
                        continue  # A task that an edit took away has no state to tell.
                    change = await self._task_change(run, number, context)
                    more = change.ByteSize()
                    if changed and (len(changed) >= MAX_CHANGED_TASKS or size + more > MAX_PAGE_BYTES):
                        # Only with the last part has the watcher seen all up to the newest change.
                        summary.change_seq = seq
                        yield RunChange(run=summary, tasks=changed)
                        changed, size = [], 0
                    changed.append(change)
                    size += more
                summary.change_seq = newest
                yield RunChange(run=summary, tasks=changed)
                seq = newest
            if ended and changes.seq(run.run_id) == seq:
                return
            await changes.wait(run.run_id, seq)
            if not run.has_ended:
                await asyncio.sleep(WATCH_SECONDS)

    async def _task_change(self, run: Run, number: int, context: Context) -> TaskChange:
        change = TaskChange(
            task_id=run.graph.task_id(number),
            task_number=number,
            state=int(views.state_of(run, number)),  # type: ignore[arg-type]
            attempt=run.attempts[number],
        )
        if run.phases[number] in _TOLD or run.failures.get(number):
            stored = await self.last_attempt(run, number, context)
            if stored is not None and stored.attempt == change.attempt:
                result = stored.result
                change.outcome = result.outcome
                change.notes.extend(bounded_notes(result.notes))
                if result.HasField("exit_code"):
                    change.exit_code = result.exit_code
                if result.HasField("signal"):
                    change.signal = result.signal
        return change
