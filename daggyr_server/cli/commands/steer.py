"""The commands that change what a run does: `kill`, `retry` and `mark`. They never wait for the run to end."""

from __future__ import annotations

import click

from daggyr.client import Client
from daggyr.v1.run_pb2 import State
from daggyr_server.cli import shapes, stdout, tables
from daggyr_server.cli.connection import with_client
from daggyr_server.cli.errors import CommandError
from daggyr_server.cli.options import Settings, command, run_argument, settings_object

_all_option = click.option(
    "--all", "everything", is_flag=True, help="Also what a kill of RUN left behind, which stays QUEUED otherwise."
)
_MARKS = {"completed": State.STATE_COMPLETED, "queued": State.STATE_QUEUED}


@command("kill", example="daggyr kill last transform")
@run_argument
@click.argument("tasks", metavar="[TASK]...", nargs=-1)
@settings_object
def kill(settings: Settings, run_id: int, tasks: tuple[str, ...]) -> int:
    """Kill RUN, or only a TASK of it; of an expanded task, all its expansions.

    Of a RUN, what runs is KILLED, what is QUEUED stays so, and the run is KILLED. A TASK is KILLED whether it runs or is QUEUED,
    what depends on it stays QUEUED, and the rest goes on; in the end the run is KILLED, because a person killed something.
    Processes get SIGTERM, and SIGKILL after the `kill_grace` of their pool, which is 10 seconds unless it is set. This returns
    once the order is durable, while processes may still run: `daggyr watch RUN` waits for their end.
    """

    async def work(client: Client) -> int:
        run = await client.kill(run_id, tasks)
        stdout.document(shapes.run(run)) if settings.json else tables.show_run(run)
        return 0

    return with_client(settings, work)


@command("retry", example="daggyr retry last --task load --downstream")
@run_argument
@click.option("--task", "tasks", metavar="T", multiple=True, help="Only this task, COMPLETED or not; may be repeated.")
@click.option("--downstream", is_flag=True, help="Also all that depends on the tasks named, without what generators made there.")
@_all_option
@settings_object
def retry(settings: Settings, run_id: int, tasks: tuple[str, ...], downstream: bool, everything: bool) -> int:
    """Run again what did not complete in RUN, which must have ended, under the same id.

    With --task, that task is QUEUED, runs once all its parents have COMPLETED, and then what it lets go on; RUN need not have
    ended. A task that waits for the delay of a retry runs at once. If RUN was killed, other tasks that the kill left QUEUED stay
    so, and are told; --all asks for them as well. With --downstream, a generator among the tasks runs again, and the tasks that
    it had made are taken away first. What runs again has all its retries, and the numbers of its attempts go on.
    """
    if downstream and not tasks:
        raise CommandError("--downstream goes with --task: without it, everything that did not complete runs again anyway")

    async def work(client: Client) -> int:
        run = await client.retry(run_id, tasks, downstream=downstream, all=everything)
        stdout.document(shapes.run(run)) if settings.json else tables.show_run(run)
        return 0

    return with_client(settings, work)


@command("mark", example="daggyr mark last load completed")
@run_argument
@click.argument("task", metavar="TASK")
@click.argument("state", metavar="completed|queued", type=click.Choice(list(_MARKS), case_sensitive=False))
@_all_option
@settings_object
def mark(settings: Settings, run_id: int, task: str, state: str, everything: bool) -> int:
    """Say that TASK of RUN is COMPLETED, or QUEUED again, where you know better.

    Of an expanded task, all expansions are marked. If a task is marked completed, the tasks that wait for it go on. If it is
    marked queued, it runs again, and the tasks that depend on it stay as they are; if it waits for the delay of a retry, it
    runs at once. A run that had ended goes on; if it was killed, other tasks that the kill left QUEUED stay so, and are told,
    and --all asks for them as well. A running task cannot be marked: kill it first. A generator whose tasks are part of RUN
    cannot be marked queued: `daggyr retry RUN --task TASK --downstream` takes them away and runs it again.
    """

    async def work(client: Client) -> int:
        run = await client.mark(run_id, [task], _MARKS[state], all=everything)
        stdout.document(shapes.run(run)) if settings.json else tables.show_run(run)
        return 0

    return with_client(settings, work)
