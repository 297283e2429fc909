"""Sees the run of `daggyr run` from the start of its server to the server's end, and decides what Ctrl-C does meanwhile.

`commands/run` starts the server's process and then imports this file, because loading gRPC takes about as long as the server
needs to start. A run is a new one (`Submitted`), or one that its tracker kept (`Resumed`). Nothing here checks options or
arguments.
"""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import BinaryIO

import grpc

from daggyr.client import ENDED, Client, ServerError
from daggyr.v1.run_pb2 import RunSummary, State
from daggyr_server.cli import names, shapes
from daggyr_server.cli.connection import client_of
from daggyr_server.cli.errors import INTERRUPTED, CommandError
from daggyr_server.cli.follow import exit_code, follow
from daggyr_server.cli.interruption import end_at_once
from daggyr_server.cli.options import Settings
from daggyr_server.cli.own_server import OwnServer
from daggyr_server.cli.server_process import ServerProcess
from daggyr_server.cli.stdout import Closed, document, notice
from daggyr_server.cli.submission import submit
from daggyr_server.cli.tables import show_run

_MAX_TASKS = 10_000  # the JSON document has no more tasks


def to_its_end(run: OwnRun, process: ServerProcess) -> int:
    """Wait until the run and the server `process` have ended. Returns the exit code. Raises CommandError."""
    try:
        return asyncio.run(run.to_its_end(process))
    finally:
        end_at_once()  # because the loop has taken its signal handlers away


class OwnRun(ABC):
    """One run on a server of its own. A subclass says how the run begins."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._killing: asyncio.Task[None] | None = None
        self.interrupted = False
        self.run_id = 0  # the run that Ctrl-C kills, or 0 before it has begun

    @abstractmethod
    async def followed(self, client: Client) -> RunSummary:
        """Begin the run and follow it. Returns the run as it ended. Raises CommandError and ServerError."""

    async def to_its_end(self, process: ServerProcess) -> int:
        """See the run and its server to their end. Returns the exit code. Raises CommandError."""
        job = asyncio.create_task(self._with_server(process))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1) and a shell's `&` in a script ignore signals on purpose
                loop.add_signal_handler(number, self._interrupt, job)
        try:
            return await job
        except asyncio.CancelledError:
            return INTERRUPTED
        except CommandError:
            if self.interrupted:
                return INTERRUPTED
            raise

    def _interrupt(self, job: asyncio.Task[int]) -> None:
        """Take a signal. The first one kills a run that has begun, and waits for its end. Any other ends everything at once."""
        if self.interrupted or not self.run_id or self._client is None:
            job.cancel()
        else:
            notice(f"daggyr: killing run {self.run_id}, waiting for its processes; Ctrl-C again ends everything at once")
            self._killing = asyncio.create_task(self._kill(self._client, job))
        self.interrupted = True

    async def _kill(self, client: Client, job: asyncio.Task[int]) -> None:
        try:
            await client.kill(self.run_id)
        except ServerError as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:  # the run has ended meanwhile
                job.cancel()

    async def _with_server(self, process: ServerProcess) -> int:
        async with OwnServer(process) as server, client_of(server.address) as client:
            self._client = client
            try:
                return await server.attend(self._work(client))
            finally:
                if self._killing is not None:
                    self._killing.cancel()
                    await asyncio.gather(self._killing, return_exceptions=True)

    async def _work(self, client: Client) -> int:
        run = await self.followed(client)
        with suppress(Closed):
            if self._settings.json:
                document({**shapes.run(run), "tasks": await self._tasks(client, run)})
            else:
                show_run(run)
        return INTERRUPTED if self.interrupted else exit_code(run)

    async def _tasks(self, client: Client, run: RunSummary) -> list[shapes.Shape]:
        count = sum(run.task_states.values())
        if count > _MAX_TASKS:
            notice(f"daggyr: {count:,} tasks with structural ones, of which the document holds the first {_MAX_TASKS:,}")
        tasks = await client.first_tasks(run.run_id, _MAX_TASKS)
        return [shapes.task_summary(task) for task in tasks]


class Submitted(OwnRun):
    """A new run."""

    def __init__(self, settings: Settings, spec: str, document: BinaryIO, tags: dict[str, str], pool: str) -> None:
        super().__init__(settings)
        self._spec = spec
        self._document = document
        self._tags = tags
        self._pool = pool

    async def followed(self, client: Client) -> RunSummary:
        self.run_id = await submit(client, self._spec, self._document, self._tags, self._pool)
        return await follow(client, self.run_id, accepted=True)


class Resumed(OwnRun):
    """A run that its tracker kept. If it had not ended, the server goes on with it by itself."""

    def __init__(self, settings: Settings, wanted: int) -> None:
        """`wanted` is the run's id, or 0 for the newest run."""
        super().__init__(settings)
        self._wanted = wanted

    async def followed(self, client: Client) -> RunSummary:
        run = await self._found(client)
        if run.state not in ENDED:
            self.run_id = run.run_id
            run = await follow(client, run.run_id, accepted=False)
            # This command did not kill the run, so an earlier one did, and was ended before the run was.
            if run.state != State.STATE_KILLED or self.interrupted:
                return run
        if run.state == State.STATE_COMPLETED:
            notice(f"run {run.run_id} is COMPLETED already: nothing of it is left to do")
            return run
        self.run_id = 0  # before the run goes on, there is nothing to kill
        notice(f"run {run.run_id} was {names.state(run.state)}: what did not complete runs again")
        await client.retry(run.run_id)
        self.run_id = run.run_id
        return await follow(client, run.run_id, accepted=False)

    async def _found(self, client: Client) -> RunSummary:
        try:
            return await client.run(self._wanted)
        except ServerError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            what = f"no run {self._wanted}" if self._wanted else "no run yet"
            raise CommandError(f"there is {what} in this tracker: name the one that kept it with --tracker") from None
