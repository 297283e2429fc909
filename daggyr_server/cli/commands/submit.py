"""The commands `submit` and `watch`, which hand a run to a server and follow it. A run goes on when they are interrupted."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import click

from daggyr.client import Client
from daggyr.v1.run_pb2 import RunSummary
from daggyr_server.cli import document, shapes
from daggyr_server.cli.connection import with_client
from daggyr_server.cli.follow import exit_code, follow
from daggyr_server.cli.options import (
    Settings,
    command,
    one_value_a_tag,
    pool_option,
    run_argument,
    settings_object,
    tag_option,
)
from daggyr_server.cli.parameters import Given, param_option
from daggyr_server.cli.readers import while_read
from daggyr_server.cli.stdout import Closed, json_line, line, notice
from daggyr_server.cli.stdout import document as print_document
from daggyr_server.cli.submission import submit as send
from daggyr_server.cli.tables import show_run


@command("submit", example="daggyr submit --tag day=2026-01-31 nightly.json")
@document.spec_argument
@tag_option
@param_option
@pool_option
@click.option("--watch", is_flag=True, help="Follow the run, and exit with 0 if it completed.")
@settings_object
def submit(settings: Settings, spec: str, tags: tuple[tuple[str, str], ...], params: Given, pool: str, watch: bool) -> int:
    """Submit SPEC to the server and print the run's id.

    SPEC is a file of JSON or YAML, or `-` for standard input. The run is durable once its id is printed. Tags and pool replace
    the specification's. If the server cannot be reached, submitting is repeated, and it never makes a second run.
    """
    header = one_value_a_tag(tags)
    with document.json_document(spec, params) as source:

        async def work(client: Client) -> int:
            run_id = await send(client, spec, source, header, pool)
            if not watch:
                print_document({"run_id": run_id}) if settings.json else line(str(run_id))
                return 0
            if not settings.json:
                line(str(run_id))
            run = await _until_ended(client, run_id, accepted=True)
            with suppress(Closed):
                print_document(shapes.run(run)) if settings.json else show_run(run)
            return exit_code(run)

        return with_client(settings, work)


@command("watch", example="daggyr watch last")
@run_argument
@settings_object
def watch(settings: Settings, run_id: int) -> int:
    """Follow RUN until it has ended, and exit with 0 if it completed.

    If the connection is lost, it is tried again for a minute. With `--output json`, there is a line for each change, with the run
    and the tasks that changed.
    """

    async def work(client: Client) -> int:
        if settings.json:
            return exit_code(await while_read(_json_lines(client, run_id)))
        run = await _until_ended(client, run_id, accepted=False)
        with suppress(Closed):
            show_run(run)
        return exit_code(run)

    return with_client(settings, work)


async def _until_ended(client: Client, run_id: int, *, accepted: bool) -> RunSummary:
    try:
        return await follow(client, run_id, accepted=accepted)
    except asyncio.CancelledError:
        notice("daggyr: the run goes on; `daggyr kill` would end it")
        raise


async def _json_lines(client: Client, run_id: int) -> RunSummary:
    run = RunSummary()
    async with aclosing(client.watch(run_id, tasks=True)) as changes:
        async for change in changes:
            run = change.run
            json_line(shapes.change(run, change.tasks))
    return run
