"""A postgres tracker behind a real pgbouncer: a pooler that keeps sessions is taken, any other is refused at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from postgres_databases import Databases
from postgres_trackers import opened, run_ids
from support.pgbouncer import PORT, pgbouncer
from tracker_records import run_added

from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.sql.postgres.address import PostgresAddress


def behind(folder: Path, address: str) -> str:
    """The address of the same database, by way of the pooler."""
    return f"postgresql://any@/{PostgresAddress(address).database}?host={folder}&port={PORT}&connect_timeout=60"


@pytest.mark.parametrize(("mode", "size"), [("transaction", 20), ("transaction", 1), ("statement", 20)])
async def test_a_pooler_that_keeps_no_session_is_refused_with_advice(
    postgres: Databases, address: str, mode: str, size: int
) -> None:
    with pgbouncer(postgres.server, mode, size, user="tester") as folder:
        with pytest.raises(TrackerError, match=r"is behind a pooler .* name the database itself, or set pool_mode = session"):
            async with opened(behind(folder, address)):
                pass
        # Nothing of the try is left: the next server, which goes there itself, takes the lock.
        async with opened(address) as tracker:
            await tracker.commit([run_added(1)])


async def test_a_pooler_that_keeps_sessions_is_taken(postgres: Databases, address: str) -> None:
    with pgbouncer(postgres.server, "session", user="tester") as folder:
        async with opened(behind(folder, address)) as tracker:
            await tracker.commit([run_added(1)])
            with pytest.raises(TrackerError, match="another coordinator uses"):
                async with opened(address, wait=0.1):
                    pass
        async with opened(behind(folder, address)) as tracker:
            assert await run_ids(tracker) == [1]
