"""The command `logs`, which prints what tasks wrote to one of their streams or to both.

`outputs` reads the output of attempts that have ended, and `follow_output` that of running ones. Nothing here changes a byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import aclosing

import click
import grpc

from daggyr.client import Client, ServerError
from daggyr.v1.run_pb2 import TaskType
from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputStream
from daggyr_server.cli.connection import with_client
from daggyr_server.cli.errors import CommandError
from daggyr_server.cli.follow_output import OutputFollower
from daggyr_server.cli.options import Settings, command, run_argument, settings_object
from daggyr_server.cli.outputs import Unshown, show, size_of
from daggyr_server.cli.readers import while_read
from daggyr_server.cli.stdout import notice


@command("logs", example="daggyr logs last transform -f")
@run_argument
@click.argument("task_id", metavar="[TASK]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the task, or without TASK the run, has ended.")
@click.option("--stderr", is_flag=True, help="Standard error instead of standard output.")
@click.option("--both", is_flag=True, help="Both: standard output on standard output, standard error on standard error.")
@click.option("--attempt", metavar="N", type=click.IntRange(1, 2**32 - 1), help="That attempt of TASK instead of the last one.")
@settings_object
def logs(
    settings: Settings, run_id: int, task_id: str | None, follow: bool, stderr: bool, both: bool, attempt: int | None
) -> int:
    """Print what a TASK of RUN wrote to its standard output, byte for byte; without TASK, what all tasks wrote there.

    With --stderr it is their standard error. With --both, standard output goes to standard output and standard error to standard
    error; without --follow, one comes after the other. A line on standard error tells if tasks wrote to the stream that is not
    shown. With several tasks (all, or the expansions of TASK), each line begins with `task_id | `. The last attempt's output is
    printed, and with -f also that of attempts that begin meanwhile. If output was too long to be kept, a line says how much is
    missing. `--output` changes nothing here.
    """
    if attempt is not None and (follow or task_id is None):
        raise CommandError("--attempt is for one TASK, and not for --follow, which goes from attempt to attempt")
    if stderr and both:
        raise CommandError("--stderr shows standard error only, and --both shows both: leave one of them out")
    shown: list[tuple[OutputStream, int]] = [(STDERR if stderr else STDOUT, 1), *([(STDERR, 2)] if both else [])]

    async def work(client: Client) -> int:
        run = await client.run(run_id)
        numbers = None if task_id is None else await _numbers(client, run.run_id, task_id)
        unshown = None if both else Unshown(client, run.run_id, shown[0][0])
        if follow:
            followers = [
                OutputFollower(client, run.run_id, stream, numbers, to=to, unshown=unshown).until_ended() for stream, to in shown
            ]
            await while_read(_all(followers))
        elif task_id is not None and numbers is not None and len(numbers) == 1:
            for stream, to in shown:
                found = await show(client, run.run_id, task_id, attempt or 0, stream, prefixed=False, to=to)
                if unshown is not None:
                    await unshown.look(task_id, attempt or 0, found=found)
        elif attempt is not None:
            raise CommandError(f"--attempt is for one TASK: task {task_id} is expanded; `daggyr tasks` lists its expansions")
        else:
            await _show_all(client, run.run_id, shown, numbers, unshown)
        if unshown is not None and (said := unshown.said()):
            notice(f"daggyr: {said}")
        return 0

    return with_client(settings, work)


async def _all(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Do all `works` at the same time. The first that fails ends the others, and its error is raised unchanged."""
    jobs = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*jobs)
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


async def _numbers(client: Client, run_id: int, task_id: str) -> range:
    """The numbers of the tasks that `task_id` means: its own, or those of its expansions, which are between head and tail."""
    task = await client.task(run_id, task_id)
    number = task.summary.task_number
    if task.summary.task_type != TaskType.TASK_TYPE_STRUCTURAL:
        return range(number, number + 1)
    try:
        tail = await client.task(run_id, f"{task_id}.tail")
    except ServerError as error:
        if error.code is grpc.StatusCode.NOT_FOUND:
            raise CommandError(f"task {task_id} runs nothing: it is where an expanded task ends") from None
        raise
    return range(number + 1, tail.summary.task_number)


async def _show_all(
    client: Client, run_id: int, shown: Sequence[tuple[OutputStream, int]], numbers: range | None, unshown: Unshown | None
) -> None:
    # Tasks that wrote nothing are not asked for, because each call costs more than all that a list tells of a task.
    async with aclosing(client.tasks(run_id, output_sizes=True)) as pages:
        async for page in pages:
            for task in page:
                if numbers is not None and task.task_number >= numbers.stop:
                    return
                if task.attempt_count and (numbers is None or task.task_number in numbers):
                    for stream, to in shown:
                        silent = size_of(task, stream) == 0
                        found = not silent and await show(client, run_id, task.task_id, 0, stream, prefixed=True, to=to)
                        if unshown is not None:
                            await unshown.look(task.task_id, 0, found=found, size=size_of(task, unshown.stream))
