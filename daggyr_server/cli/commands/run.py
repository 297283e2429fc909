"""`daggyr run`: a run from its specification to its exit code, with a server of its own."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import click
import grpc

from daggyr.v1.run_pb2 import RunSummary
from daggyr_server.cli import shapes, words
from daggyr_server.cli.connection import client_of
from daggyr_server.cli.document import json_document, spec_argument, submit
from daggyr_server.cli.faults import INTERRUPTED, Fault
from daggyr_server.cli.follow import exit_code, follow
from daggyr_server.cli.options import Settings, command, one_value_a_tag, pool_option, settings_object, tag_option
from daggyr_server.cli.own_server import OwnServer
from daggyr_server.cli.stdout import Closed, document, notice
from daggyr_server.cli.tables import show_run
from daggyr_server.client import Client, ServerError

_MAX_TASKS = 10_000  # in the JSON document


@command("run", example="daggyr run --workers 4 --tag env=test flights.yaml")
@spec_argument
@click.option(
    "--config",
    envvar="DAGGYR_CONFIG",
    show_envvar=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The server's configuration, for its pools.",
)
@click.option("--tracker", metavar="T", help="Where state is kept: memory (the default), sqlite:PATH, ...")
@click.option("--workers", metavar="N", type=click.IntRange(1), help="How many cores the local pool has.")
@tag_option
@pool_option
@settings_object
def run(
    settings: Settings,
    spec: str,
    config: Path | None,
    tracker: str | None,
    workers: int | None,
    tags: tuple[tuple[str, str], ...],
    pool: str,
) -> int:
    """Run SPEC here and now, and exit with 0 if it completed.

    No server is needed: one is started for the run, on a private socket, and ended with it. SPEC is a file of JSON or YAML,
    or `-` for standard input. Tasks start in the folder where this command was started. Ctrl-C kills the run and waits for
    its processes; a second Ctrl-C ends everything at once.
    """
    if settings.server_on_command_line:
        raise Fault("run starts a server of its own; for a run on the server at --server: daggyr submit --watch SPEC")
    options = [
        *(["--config", str(config)] if config is not None else []),
        *(["--tracker", tracker] if tracker is not None else []),
        *(["--workers", str(workers)] if workers is not None else []),
    ]
    header = one_value_a_tag(tags)
    with json_document(spec) as document:
        return asyncio.run(_Run(settings, spec, document, header, pool).to_its_end(options))


class _Run:
    """One run, from the start of its server to the server's end, and what Ctrl-C does meanwhile."""

    def __init__(self, settings: Settings, spec: str, document: BinaryIO, tags: dict[str, str], pool: str) -> None:
        self._settings = settings
        self._spec = spec
        self._document = document
        self._tags = tags
        self._pool = pool
        self._client: Client | None = None
        self._run_id = 0
        self._interrupted = False
        self._killing: asyncio.Task[None] | None = None

    async def to_its_end(self, options: list[str]) -> int:
        """The exit code. Raises Fault."""
        job = asyncio.create_task(self._with_server(options))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt, job)
        try:
            return await job
        except asyncio.CancelledError:
            return INTERRUPTED
        except Fault:
            if self._interrupted:
                return INTERRUPTED
            raise

    def _interrupt(self, job: asyncio.Task[int]) -> None:
        """The first time, a run that was accepted is killed and waited for. Otherwise everything ends at once."""
        if self._interrupted or not self._run_id or self._client is None:
            job.cancel()
        else:
            notice(f"daggyr: killing run {self._run_id}, waiting for its processes; Ctrl-C again ends everything at once")
            self._killing = asyncio.create_task(self._kill(self._client, job))
        self._interrupted = True

    async def _kill(self, client: Client, job: asyncio.Task[int]) -> None:
        try:
            await client.kill(self._run_id)
        except ServerError as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:  # it ended meanwhile
                job.cancel()

    async def _with_server(self, options: list[str]) -> int:
        async with OwnServer(options) as server, client_of(server.address) as client:
            self._client = client
            try:
                return await server.attend(self._work(client))
            finally:
                if self._killing is not None:
                    self._killing.cancel()
                    await asyncio.gather(self._killing, return_exceptions=True)

    async def _work(self, client: Client) -> int:
        self._run_id = await submit(client, self._spec, self._document, self._tags, self._pool)
        run = await follow(client, self._run_id, accepted=True)
        with suppress(Closed):
            if self._settings.json:
                document({**shapes.run(run), "tasks": await self._tasks(client, run)})
            else:
                show_run(run)
        return INTERRUPTED if self._interrupted else exit_code(run)

    async def _tasks(self, client: Client, run: RunSummary) -> list[shapes.Shape]:
        if words.total(run) > _MAX_TASKS:
            notice(f"daggyr: {words.total(run):,} tasks, of which the document holds the first {_MAX_TASKS:,}")
        tasks = await client.first_tasks(run.run_id, _MAX_TASKS)
        return [shapes.task_summary(task) for task in tasks]
