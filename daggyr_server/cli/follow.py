"""Follows a run to its end: shows its progress, tells of tasks that fail, and returns how it ended.

`run`, `submit --watch` and `watch` call this. It writes to standard error only, because the commands print their results
themselves.
"""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import aclosing, suppress
from itertools import islice

from daggyr.client import Client, ServerError, Unreachable
from daggyr.v1.run_pb2 import RunSummary, State
from daggyr.v1.runs_pb2 import TaskChange
from daggyr_server.cli import failed_tasks, names, words
from daggyr_server.cli.errors import RUN_FAILED
from daggyr_server.cli.progress import TICK, PlainView, View, closing
from daggyr_server.cli.stdout import is_plain, notice

# A watch of a larger run leaves its tasks out, because to name each of a million tasks twice would cost the server too much.
_TOLD_TASKS = 50_000
_FAILURE_LINES = 100
_RUNNING_NAMES = 20
WAITING_SECONDS = 4.0  # in which nothing runs, before it is said why
_UNTIL = re.compile(r" until [^,;]*")  # when a host is looked at again, which is another time after each look


async def follow(client: Client, run_id: int, *, accepted: bool) -> RunSummary:
    """Show the run on standard error until it has ended, and then a report on what failed. Returns the run as it ended.

    `accepted` says that the caller has just submitted it. Raises ServerError.
    """
    run = await client.run(run_id)
    with open_view() as view:
        word = "accepted" if accepted else names.state(run.state)
        view.say(f"run {run.run_id} {word}: {words.plural(words.total(run), 'task')}")
        follower = _Follower(client, view)
        run = await follower.until_ended(run)
    for line in await failed_tasks.report(client, run, told=follower.told):
        notice(line)
    notice(closing(run))
    return run


def open_view() -> View:
    """The view for standard error: a bar on a terminal, and lines on a terminal that cannot move its cursor and elsewhere."""
    if is_plain(sys.stderr):
        return PlainView()
    from daggyr_server.cli.live import LiveView

    return LiveView()


def exit_code(run: RunSummary) -> int:
    """The exit code for a run that has ended: 0 if it completed, otherwise 1."""
    return 0 if run.state == State.STATE_COMPLETED else RUN_FAILED


class _Follower:
    """Learns from a watch which tasks run and which failed, and passes that on to a view."""

    def __init__(self, client: Client, view: View) -> None:
        self._client = client
        self._view = view
        self._run: RunSummary | None = None
        self._running: dict[int, str] = {}
        self._failed: set[int] = set()
        self.told: set[int] = set()  # the numbers of failed tasks on which there was a line

    async def until_ended(self, run: RunSummary) -> RunSummary:
        told = words.total(run) <= _TOLD_TASKS
        self._run = run
        ticking = asyncio.gather(self._tick(), self._tell_of_waiting())
        try:
            async with aclosing(self._client.watch(run.run_id, tasks=told, heard=True)) as changes:
                async for change in changes:
                    run = self._run = change.run
                    if change.missed and told:
                        with suppress(Unreachable):  # the watch goes on by itself when the server is back
                            await self._read_again(run.run_id)
                    for task in change.tasks:
                        self._take(task)
                    self._view.update(run, list(islice(reversed(self._running.values()), _RUNNING_NAMES)))
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
        return run

    async def _tick(self) -> None:
        while True:
            self._view.tick()
            await asyncio.sleep(TICK)

    async def _tell_of_waiting(self) -> None:
        """Say what the run waits for, if nothing of it runs. A watch does not tell, because what hosts do changes no run."""
        said: list[str] = []
        while True:
            await asyncio.sleep(WAITING_SECONDS)
            if self._run is None or words.command_states(self._run).get("RUNNING"):
                continue
            with suppress(ServerError):
                notes = list((await self._client.run(self._run.run_id)).notes)
                what = [_UNTIL.sub("", note) for note in notes]
                if notes and what != said:
                    self._view.say(f"run {self._run.run_id}: {'; '.join(map(words.said, notes))}")
                said = what

    async def _read_again(self, run_id: int) -> None:
        tasks = await self._client.first_tasks(run_id, _RUNNING_NAMES, states=[State.STATE_RUNNING])
        self._running = {task.task_number: task.task_id for task in tasks}
        for summary in await self._client.first_tasks(run_id, _FAILURE_LINES, states=failed_tasks.STATES):
            if self._is_news(summary.task_number):
                self._view.say(failed_tasks.of_task(await self._client.task(run_id, summary.task_id)))
                self.told.add(summary.task_number)

    def _take(self, task: TaskChange) -> None:
        if task.state == State.STATE_RUNNING:
            self._running[task.task_number] = task.task_id
        else:
            self._running.pop(task.task_number, None)
        if task.state in failed_tasks.STATES and self._is_news(task.task_number):
            self._view.say(failed_tasks.of_change(task))
            self.told.add(task.task_number)

    def _is_news(self, number: int) -> bool:
        """Whether a line on a failed task is due. There is one for each, and a bounded number in all."""
        if number in self._failed or len(self._failed) > _FAILURE_LINES:
            return False
        self._failed.add(number)
        if len(self._failed) > _FAILURE_LINES:
            self._view.say("more tasks failed; they are not listed here")
            return False
        return True
