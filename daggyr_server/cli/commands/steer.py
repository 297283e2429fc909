"""The commands that change what a run does: `kill`, `retry` and `mark`. They never wait for the run to end."""

from __future__ import annotations

import click

from daggyr.client import Client
from daggyr.v1.run_pb2 import State
from daggyr_server.cli import shapes, stdout, tables
from daggyr_server.cli.connection import with_client
from daggyr_server.cli.errors import CommandError
from daggyr_server.cli.options import Settings, command, run_argument, settings_object

_MARKS = {"completed": State.STATE_COMPLETED, "queued": State.STATE_QUEUED}


@command("kill", example="daggyr kill last transform")
@run_argument
@click.argument("tasks", metavar="[TASK]...", nargs=-1)
@settings_object
def kill(settings: Settings, run_id: int, tasks: tuple[str, ...]) -> int:
    """Kill RUN, or only a TASK of it; of an expanded task, all its expansions.

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
@click.option("--downstream", is_flag=True, help="Also all that depends on the tasks named.")
@settings_object
def retry(settings: Settings, run_id: int, tasks: tuple[str, ...], downstream: bool) -> int:
    """Run again what did not complete in RUN, which must have ended, under the same id."""
    if downstream and not tasks:
        raise CommandError("--downstream goes with --task: without it, everything that did not complete runs again anyway")

    async def work(client: Client) -> int:
        run = await client.retry(run_id, tasks, downstream=downstream)
        stdout.document(shapes.run(run)) if settings.json else tables.show_run(run)
        return 0

    return with_client(settings, work)


@command("mark", example="daggyr mark last load completed")
@run_argument
@click.argument("task", metavar="TASK")
@click.argument("state", metavar="completed|queued", type=click.Choice(list(_MARKS), case_sensitive=False))
@settings_object
def mark(settings: Settings, run_id: int, task: str, state: str) -> int:
    """Say that TASK of RUN is COMPLETED, or QUEUED again, where you know better.

    Of an expanded task, all expansions are marked. If a task is marked completed, the tasks that wait for it go on. If it is
    marked queued, it runs again, and the tasks that depend on it stay as they are. A run that had ended goes on. A running task
    cannot be marked: kill it first.
    """

    async def work(client: Client) -> int:
        run = await client.mark(run_id, [task], _MARKS[state])
        stdout.document(shapes.run(run)) if settings.json else tables.show_run(run)
        return 0

    return with_client(settings, work)
