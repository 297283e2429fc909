"""The fixtures of this folder: a test that takes `kind`, or what is made of it, runs for every tracker in `tracker_kinds`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_databases import Databases, databases
from property_examples import Examples
from support.postgres_server import PostgresServer
from tracker_kinds import DATABASES, KINDS, OpenAgain, TrackerKind

from daggyr_server.trackers.base import Opened, Tracker


@pytest.fixture(scope="session")
def postgres(postgres: PostgresServer) -> Iterator[Databases]:
    """Databases of the Postgres server that all folders share."""
    databases.append(Databases(postgres))
    yield databases[0]
    databases.clear()


@pytest.fixture
def address(postgres: Databases, tmp_path: Path) -> str:
    """The address of an empty Postgres database."""
    return postgres.address(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a sqlite tracker's file, which is not made yet."""
    return tmp_path / "state.db"


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> TrackerKind:
    found = request.param
    assert isinstance(found, TrackerKind)
    if found.name == "postgresql":
        request.getfixturevalue("postgres")
    return found


@pytest.fixture
async def open_again(kind: TrackerKind, tmp_path: Path) -> AsyncIterator[OpenAgain]:
    """A function that opens a tracker at the test's own address, as often as it is called. All are closed in the end.

    Its settings go to trackers that keep state in a database. Other trackers do not get them.
    """
    address = kind.address(tmp_path)
    trackers: list[Tracker] = []

    async def opened(**settings: Any) -> tuple[Tracker, Opened]:
        tracker = kind.make(address, **(settings if kind in DATABASES else {}))
        trackers.append(tracker)
        return tracker, await tracker.open()

    yield opened
    for tracker in trackers:
        await tracker.close()


@pytest.fixture
def examples(kind: TrackerKind, tmp_path: Path) -> Iterator[Examples]:
    """A tracker for the examples of a property."""
    with Examples(kind, tmp_path) as made:
        yield made


@pytest.fixture
async def tracker(open_again: OpenAgain) -> Tracker:
    """A new tracker that is open."""
    return (await open_again())[0]
