"""`daggyr-server backup` and `daggyr-server restore`: a tracker is copied while it is in use, and brought back as another life.

The main program (main.py) has them as its commands. They find the tracker as the server does, by --tracker or in the
configuration, say what they did on standard output, and end with 2 and one message if they cannot. How each kind of tracker is
copied is said in trackers/sql; what another life is, in driver/another_life.py. Neither starts a coordinator.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from daggyr.checked import ConfigurationError
from daggyr.standard_streams import say
from daggyr_server.chosen_path import ChosenPath
from daggyr_server.config import load
from daggyr_server.driver.another_life import IDS_A_SECOND, IDS_LEFT_OUT, AnotherLife, begin
from daggyr_server.driver.clocks import host_clocks
from daggyr_server.driver.spilled import SpilledTasks
from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.loader import make_tracker
from daggyr_server.trackers.sql.postgres.tracker import PostgresTracker
from daggyr_server.trackers.sql.sqlite import copies
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker
from daggyr_server.trackers.sql.tracker import SqlTracker

_CONFIG = click.option("--config", type=ChosenPath(), envvar="DAGGYR_CONFIG", help="The server's TOML or JSON file.")
_TRACKER = click.option(
    "--tracker",
    metavar="TRACKER",
    envvar="DAGGYR_TRACKER",
    help="The tracker, as the server is told it: sqlite:PATH or postgresql://...",
)
_LOCK_SECONDS = 0.5  # for which another coordinator may still hold a database that is to be restored


@click.command("backup", context_settings={"help_option_names": ["-h", "--help"]})
@_CONFIG
@_TRACKER
@click.argument("destination", metavar="DEST", type=ChosenPath())
def backup(config: Path | None, tracker: str | None, destination: Path) -> None:
    """Copy the tracker to the new file DEST, whether a server uses it or not.

    \b
        daggyr-server backup --config server.toml /backup/daggyr-$(date +%F).db

    A server goes on meanwhile; the copy is its state of one moment. `daggyr-server restore` brings it back.
    """
    _told(lambda: _back_up(_address(config, tracker), destination.absolute()))


@click.command("restore", context_settings={"help_option_names": ["-h", "--help"]})
@_CONFIG
@_TRACKER
@click.argument("copy", metavar="[COPY]", type=ChosenPath(), required=False)
def restore(config: Path | None, tracker: str | None, copy: Path | None) -> None:
    """Make the tracker out of COPY; without COPY, out of what is in its place.

    \b
        daggyr-server restore /backup/daggyr-2027-03-01.db --config server.toml

    It becomes another life: what agents and hosts still run of the former one is ended, its runs go on, and what was in flight
    runs again. A Postgres database is loaded with pg_restore first, and COPY is left out then. No server may use the tracker.
    """
    _told(lambda: asyncio.run(_restore(_address(config, tracker), copy.absolute() if copy is not None else None)))


def _told(work: Callable[[], list[str]]) -> None:
    """Do the work; a fault that a person can mend is one message and exit code 2."""
    try:
        for line in work():
            click.echo(line)
    except (ConfigurationError, TrackerError) as error:
        say(f"daggyr-server: {error}")
        sys.exit(2)
    except OSError as error:
        say(f"daggyr-server: {error.filename or 'the tracker'}: {error.strerror}")
        sys.exit(2)


def _address(config: Path | None, tracker: str | None) -> str:
    """The tracker's address; the options may stand before the command, too. Raises ConfigurationError."""
    parent = click.get_current_context().parent
    before = parent.params if parent is not None else {}
    return load(config or before.get("config"), tracker=tracker or before.get("tracker")).server.tracker


def _durable(address: str) -> SqliteTracker | PostgresTracker:
    kind = address.partition(":")[0]
    found = make_tracker(address)
    if not isinstance(found, SqliteTracker | PostgresTracker):
        keeps = "keeps nothing on disk" if kind == "memory" else "has its own way to be copied"
        raise TrackerError(f"the tracker {kind!r} {keeps}: name the one that is meant with --tracker or --config")
    return found


def _back_up(address: str, destination: Path) -> list[str]:
    tracker = _durable(address)
    if isinstance(tracker, SqliteTracker):
        copied = copies.back_up(tracker.path, destination)
        return [
            f"copied {tracker.path} to {destination}: {copied.size:,} bytes, {_count(copied.runs, 'run')}, of which "
            f"{copied.unfinished:,} had not ended; tracker {copied.tracker_id}",
            f"to bring it back: daggyr-server restore {destination} --tracker sqlite:PATH",
        ]
    size = tracker.back_up(destination)
    return [
        f"copied {tracker} to {destination}: {size:,} bytes, by pg_dump",
        f"to bring it back: pg_restore --dbname DATABASE {destination}; then daggyr-server restore --tracker postgresql://...",
    ]


async def _restore(address: str, copy: Path | None) -> list[str]:
    tracker = _durable(address)
    if isinstance(tracker, SqliteTracker):
        copy = copy if copy is not None else tracker.path
        return await _restore_sqlite(tracker.path if _same(copy, tracker.path) else copy, tracker.path)
    if copy is not None:
        raise TrackerError(
            "a Postgres database is loaded by Postgres' own program, and then this command takes no copy: "
            f"pg_restore --dbname DATABASE {copy}"
        )
    return await _restore_database(PostgresTracker(address, wait=_LOCK_SECONDS))


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


async def _restore_sqlite(copy: Path, target: Path) -> list[str]:
    restoring = copies.CopyOnItsWay(copy, target)
    await restoring.begin()
    try:
        life = await _another_life(SqliteTracker(f"sqlite:{restoring.draft}"))
        restoring.put()
    finally:
        restoring.end()
    lines = [f"restored {copy} as {target}", *_described(life)]
    if restoring.dropped_log:
        lines.append(f"the log beside {copy.name} was not taken: it is {restoring.dropped_log}")
    if restoring.aside is not None:
        lines.append(f"what was there before is {restoring.aside} now; remove it once all is well")
    return lines


async def _restore_database(tracker: PostgresTracker) -> list[str]:
    if not await tracker.exists():
        raise TrackerError(f"{tracker} holds no tracker: load a copy first: pg_restore --dbname DATABASE COPY")
    return [f"restored {tracker}", *_described(await _another_life(tracker))]


async def _another_life(tracker: SqlTracker) -> AnotherLife:
    opened = await tracker.open()
    try:
        return await begin(tracker, opened, partial(SpilledTasks, tracker.folder), host_clocks())
    finally:
        await tracker.close()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _age(seconds: float | None) -> str:
    return "nothing tells how long ago it was" if seconds is None else f"{seconds:,.0f} seconds ago"


def _described(life: AnotherLife) -> list[str]:
    lines = [
        f"it is another life of tracker {life.former_id}, and is tracker {life.tracker_id} from now on",
        f"run ids go on at {life.next_run_id:,}: {IDS_LEFT_OUT:,} are left out, and {IDS_A_SECOND} more for each second since "
        f"the last sign of the former life ({_age(life.seconds)})",
        f"{_count(life.runs, 'run')} had not ended: what was in flight of them is LOST, {_count(life.lost, 'attempt')}, and is "
        "queued again"
        if life.runs
        else "every run in it had ended",
        "agents and hosts end what they still run of the former life when they meet the server",
    ]
    return lines + [f"run {run_id} was left alone: {why}" for run_id, why in life.damaged.items()]
