"""The commands that take runs away for good: `delete` and `prune`. They never ask whether the user is sure."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from daggyr.client import Client
from daggyr_server.cli import stdout, words
from daggyr_server.cli.connection import with_client
from daggyr_server.cli.options import EXPLICIT_RUN, WHEN, Settings, command, settings_object

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp


@command("delete", example="daggyr delete 12")
@click.argument("run_id", metavar="RUN", type=EXPLICIT_RUN)
@settings_object
def delete(settings: Settings, run_id: int) -> int:
    """Take RUN away, with its history and output, without asking.

    The run must have ended. RUN must be a number, because another run may become the last one while you type. The number is never
    used again.
    """

    async def work(client: Client) -> int:
        await client.delete(run_id)
        stdout.document({"run_id": run_id}) if settings.json else stdout.line(f"run {run_id} is deleted")
        return 0

    return with_client(settings, work)


@command("prune", example="daggyr prune --older-than 30d")
@click.option(
    "--older-than", "before", metavar="T", type=WHEN, required=True, help="Ended longer ago: 30d, 12h; or before a time or date."
)
@settings_object
def prune(settings: Settings, before: Timestamp) -> int:
    """Take all runs away that ended long enough ago, with their history and output, without asking.

    A duration is written 90s, 30m, 12h, 30d or 4w. Runs that have not ended stay, however old they are.
    """

    async def work(client: Client) -> int:
        runs = 0
        async with aclosing(client.pruned(before)) as answers:
            async for answer in answers:
                runs += answer.runs
                if answer.next_page_token:
                    stdout.notice(f"{words.plural(runs, 'run')} deleted so far")
        stdout.document({"runs": runs}) if settings.json else stdout.line(f"{words.plural(runs, 'run')} deleted")
        return 0

    return with_client(settings, work)
