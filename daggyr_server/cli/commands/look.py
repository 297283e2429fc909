"""The commands that look at runs and tasks: `runs`, `show`, `tasks`, `task`, `why`. They never change anything."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from daggyr.client import Client
from daggyr.v1.run_pb2 import Attempt, Task
from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputStream
from daggyr_server.cli import names, shapes, stdout, tables, words
from daggyr_server.cli.connection import with_client
from daggyr_server.cli.options import (
    WHEN,
    Settings,
    command,
    one_value_a_tag,
    run_argument,
    settings_object,
    state_option,
    tag_option,
)
from daggyr_server.cli.outputs import last_lines, whole

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from daggyr.v1.run_pb2 import State

_TAIL_LINES = 20

Item = TypeVar("Item")
Pages = AsyncGenerator[Sequence[Item], None]


@command("runs", example="daggyr runs --state errored --since 2d --tag env=test")
@tag_option
@state_option
@click.option("--since", metavar="T", type=WHEN, help="Submitted then or later: a time, a date, or 2h, 3d ago.")
@click.option("--until", metavar="T", type=WHEN, help="Submitted before then.")
@settings_object
def runs(
    settings: Settings,
    tags: tuple[tuple[str, str], ...],
    states: tuple[State, ...],
    since: Timestamp | None,
    until: Timestamp | None,
) -> int:
    """List runs, the newest first.

    A time is RFC 3339 (2026-01-31T09:00:00Z), a date (midnight, local time) or a duration ago: 90s, 30m, 2h, 3d, 1w.
    """
    wanted = one_value_a_tag(tags)

    async def work(client: Client) -> int:
        pages = client.runs(tags=wanted, states=states, since=since, until=until)
        if settings.json:
            await _json_list(shapes.run, pages)
        else:
            if not await _table(tables.run_columns(), tables.run_row, pages):
                stdout.notice("there are no such runs" if wanted or states or since or until else "there are no runs yet")
        return 0

    return with_client(settings, work)


@command("show", example="daggyr show last")
@run_argument
@settings_object
def show(settings: Settings, run_id: int) -> int:
    """Show RUN: its state, its tasks by state, what it waits for, and what became of it when."""

    async def work(client: Client) -> int:
        run = await client.run(run_id)
        if settings.json:
            stdout.document({**shapes.run(run), "history": shapes.history(run.history)})
        else:
            tables.show_run(run)
            tables.show_history(run.history)
        return 0

    return with_client(settings, work)


@command("tasks", example="daggyr tasks last --state errored")
@run_argument
@state_option
@settings_object
def tasks(settings: Settings, run_id: int, states: tuple[State, ...]) -> int:
    """List the tasks of RUN by their numbers: in the order of the specification, those that were expanded behind the others."""

    async def work(client: Client) -> int:
        pages = client.tasks(run_id, states=states, output_sizes=settings.json)
        if settings.json:
            await _json_list(shapes.listed_task, pages)
        else:
            if not await _table(tables.task_columns(), tables.task_row, pages):
                stdout.notice("the run has no such tasks")
        return 0

    return with_client(settings, work)


@command("task", example="daggyr task last 'transform.{{MONTH}}:1'")
@run_argument
@click.argument("task_id", metavar="TASK")
@settings_object
def task(settings: Settings, run_id: int, task_id: str) -> int:
    """Show a TASK of RUN: its command, its attempts, and what they wrote.

    The table ends with the last lines of the last attempt; `daggyr logs RUN TASK` has all of it, and `--output json` that of
    every attempt.
    """

    async def work(client: Client) -> int:
        found = await client.task(run_id, task_id)
        if settings.json:
            outputs = {}
            for attempt in found.attempts:
                read = [
                    b"" if wrote_nothing(attempt, stream) else await whole(client, run_id, task_id, attempt.attempt, stream)
                    for stream in (STDOUT, STDERR)
                ]
                outputs[attempt.attempt] = (read[0], read[1])
            stdout.document(shapes.task(found, outputs))
        else:
            tables.show_task(found, await _tails(client, run_id, found))
        return 0

    return with_client(settings, work)


def wrote_nothing(attempt: Attempt, stream: OutputStream) -> bool:
    """Whether the result says that the attempt wrote nothing. Then no call is needed, and there may be thousands of attempts."""
    name: Literal["stdout", "stderr"] = "stdout" if stream == STDOUT else "stderr"
    return attempt.HasField("result") and attempt.result.HasField(name) and not getattr(attempt.result, name).size_bytes


async def _tails(client: Client, run_id: int, task: Task) -> list[tuple[str, list[str], bool]]:
    if not task.attempts:
        return []
    tails = []
    streams: list[tuple[str, OutputStream]] = [("Standard output", STDOUT), ("Standard error", STDERR)]
    for name, stream in streams:
        lines = await last_lines(client, run_id, task.summary.task_id, task.attempts[-1], stream, _TAIL_LINES + 1)
        tails.append((name, lines[-_TAIL_LINES:], len(lines) > _TAIL_LINES))
    return tails


@command("why", example="daggyr why last load")
@run_argument
@click.argument("task_id", metavar="TASK")
@settings_object
def why(settings: Settings, run_id: int, task_id: str) -> int:
    """Say why a TASK of RUN is in the state it is in: what it waits for, or how it ended."""

    async def work(client: Client) -> int:
        answer = await client.explain(run_id, task_id)
        state = names.state(answer.state)
        if settings.json:
            reasons = list(answer.reasons)
            stdout.document({"run_id": answer.run_id, "task_id": task_id, "state": state, "reasons": reasons})
            return 0
        stdout.line(f"Task {words.printable(task_id)} of run {answer.run_id} ({stdout.paint(state, state)}):")
        for reason in answer.reasons:
            stdout.line(words.said(reason))
        return 0

    return with_client(settings, work)


async def _table(columns: stdout.Columns, row: Callable[[Item], stdout.Row], pages: Pages[Item]) -> bool:
    """Show pages of items in a table. Returns whether there was any item."""
    found = False
    async with aclosing(pages):
        async for page in pages:
            columns.page(map(row, page))
            found |= bool(page)
    return found


async def _json_list(shape: Callable[[Item], shapes.Shape], pages: Pages[Item]) -> None:
    listing = stdout.JsonList()
    async with aclosing(pages):
        async for page in pages:
            listing.page(map(shape, page))
    listing.end()
