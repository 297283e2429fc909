"""The command `edit`, which gives a run another specification, or with `--plan` tells what that would do.

The server makes the plan; nothing here compares specifications.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import BinaryIO

import click
import grpc

from daggyr.client import Client, ServerError
from daggyr.v1.runs_pb2 import EditRunResponse, EditTotals
from daggyr_server.cli import document, shapes, stdout, tables, words
from daggyr_server.cli.connection import with_client
from daggyr_server.cli.errors import SpecRefused
from daggyr_server.cli.options import Settings, command, run_argument, settings_object
from daggyr_server.cli.parameters import Given, param_option


@command("edit", example="daggyr edit last nightly.yaml --plan")
@run_argument
@document.spec_argument
@param_option
@click.option("--plan", is_flag=True, help="Only print each task that would change, and why.")
@click.option(
    "--downstream", is_flag=True, help="Also queue what depends on completed tasks that are changed, ending what of it runs."
)
@click.option("--remove", is_flag=True, help="Also where tasks that ran or run are not in SPEC and would be taken away.")
@click.option("--all", "everything", is_flag=True, help="Also what a kill of RUN left behind, which stays QUEUED otherwise.")
@click.option(
    "--revision", metavar="N", type=click.IntRange(1, 2**63 - 1), help="Only if the run has this revision; `show` tells it."
)
@settings_object
def edit(
    settings: Settings,
    run_id: int,
    spec: str,
    params: Given,
    plan: bool,
    downstream: bool,
    remove: bool,
    everything: bool,
    revision: int | None,
) -> int:
    """Give RUN, running or ended, the specification SPEC, under the same id.

    A task is the same as before if its name is, an expansion if its values are as well. It is changed if its command,
    environment, working directory or standard input is. Unchanged tasks keep their state. Changed and new tasks are queued; an
    attempt that still runs is ended first. Tasks that SPEC does not have are ended and taken away, which needs --remove if they
    ran or run. Other fields, such as retries and resources, hold from the next attempt on (--plan calls such tasks adjusted).
    Which task waits for which changes at once, and --plan does not list it. SPEC's tags are added to the run's. All of this
    happens together, and nothing of it if SPEC is wrong.

    What a generator made stays while the generator is unchanged, and is expanded again with the parameters of SPEC. A generator
    that is changed runs again, without what it had made. If RUN was killed, unchanged tasks that the kill left QUEUED stay so,
    and are told; --all lets them go on. A task that was taken away and comes again goes on with the numbers of its attempts.
    """
    with document.json_document(spec, params) as source:

        async def work(client: Client) -> int:
            try:
                if plan:
                    await _show_plan(settings, client, run_id, source, downstream, revision or 0)
                else:
                    edited = client.edit(
                        run_id, source, downstream=downstream, revision=revision or 0, remove=remove, all=everything
                    )
                    await _edit(settings, edited)
            except ServerError as error:
                if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                    raise SpecRefused(document.name_of(spec), str(error)) from None
                raise
            return 0

        return with_client(settings, work)


async def _edit(settings: Settings, edited: AsyncGenerator[EditRunResponse, None]) -> None:
    async with aclosing(edited) as answers:
        async for answer in answers:
            if settings.json:
                stdout.document({**shapes.run(answer.run), "edited": shapes.edit_totals(answer.totals)})
            else:
                stdout.line(words.edit_totals(answer.totals))
                tables.show_run(answer.run)


async def _show_plan(settings: Settings, client: Client, run_id: int, source: BinaryIO, downstream: bool, revision: int) -> None:
    items, columns, totals = stdout.JsonList(), tables.edit_columns(), EditTotals()
    async with aclosing(client.edit(run_id, source, downstream=downstream, revision=revision, plan=True)) as answers:
        async for answer in answers:
            totals.MergeFrom(answer.totals)
            if settings.json:
                items.page(map(shapes.task_edit, answer.tasks))
            else:
                columns.page(map(tables.edit_row, answer.tasks))
    if settings.json:
        items.end()
        stdout.notice(words.edit_totals(totals))
    else:
        stdout.line(words.edit_totals(totals))
