"""The trackers that the conformance suite runs against, and what each can do. A new tracker adds one entry to KINDS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from postgres_databases import databases
from support import readme_examples
from support.waiting import DEADLINE

from daggyr_server.trackers.base import Opened, Tracker
from daggyr_server.trackers.loader import make_tracker
from daggyr_server.trackers.sql.postgres.tracker import PostgresTracker
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

OpenAgain = Callable[..., Awaitable[tuple[Tracker, Opened]]]  # the fixture `open_again`


@dataclass(frozen=True, kw_only=True)
class TrackerKind:
    """One kind of tracker. `address` makes an address from an empty folder that belongs to the test alone."""

    name: str
    address: Callable[[Path], str]
    durable: bool  # state outlives the process
    examples: int = 80  # examples of a property; fewer where each has to wait for a disk
    bad_addresses: tuple[str, ...] = ()  # these are malformed
    make: Callable[..., Tracker] = make_tracker  # trackers that keep state in a database take their settings, too


def _journal(address: str) -> Tracker:
    """The tracker of the README's example."""
    tracker = readme_examples.module(readme_examples.TRACKERS, "daggyr_journal").JournalTracker(address)
    assert isinstance(tracker, Tracker)
    return tracker


# Seconds to wait for a lock. A server may take its time to notice that the connection that had it is gone.
WAIT = DEADLINE
# Seconds to wait for a coordinator that is to be refused, because another one holds the lock all the time.
IN_VAIN = 0.05

KINDS = (
    TrackerKind(name="memory", address=lambda folder: "memory", durable=False, bad_addresses=("memory:", "memory:x")),
    TrackerKind(
        name="journal",
        address=lambda folder: f"journal:{folder}/journal",
        durable=True,
        bad_addresses=("journal", "journal:"),
        make=_journal,
    ),
    TrackerKind(
        name="sqlite",
        address=lambda folder: f"sqlite:{folder}/state.db",
        durable=True,
        examples=25,
        bad_addresses=("sqlite", "sqlite:", "sqlite::memory:", "sqlite:a\0b"),
        make=lambda address, **settings: SqliteTracker(address, **{"wait": WAIT, **settings}),
    ),
    TrackerKind(
        name="postgresql",
        address=lambda folder: databases[0].address(folder),
        durable=True,
        examples=10,
        bad_addresses=(
            *("postgresql", "postgresql:", "postgresql:x", "postgresql://host/database?what=x"),
            *("postgresql://user:pass@word@host/database", "postgresql://user:pass/word@host", "postgresql://user:12/34@host"),
        ),
        make=lambda address, **settings: PostgresTracker(address, **{"wait": WAIT, **settings}),
    ),
)
DATABASES = [kind for kind in KINDS if kind.name in ("sqlite", "postgresql")]
