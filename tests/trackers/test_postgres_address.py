"""Addresses of Postgres databases: which are refused, what is shown of them, and that no password is ever told."""

from __future__ import annotations

import logging
import subprocess
import sys

import psycopg
import pytest
from postgres_databases import Databases

from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.loader import make_tracker
from daggyr_server.trackers.sql.postgres.address import PostgresAddress
from daggyr_server.trackers.sql.postgres.tracker import PostgresTracker

PASSWORD = "hunter2/secret"
QUOTED = "hunter2%2Fsecret"


def test_a_full_disk_goes_on_by_itself_only_where_the_server_works() -> None:
    address, full = PostgresAddress("postgresql://user@127.0.0.1:1/state"), psycopg.errors.DiskFull("could not extend file")
    assert str(address.error(full)).endswith("could not extend file; make room, it goes on by itself then")
    assert str(address.error(full, opening=True)).endswith("could not extend file; make room, and try again")


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://user:{QUOTED}@127.0.0.1:1/state",
        f"postgresql://user@127.0.0.1:1/state?password={QUOTED}",
        f"postgresql://user:{QUOTED}@/state?host=/nowhere",
        f"postgresql://user:{QUOTED}@127.0.0.1:1/state?sslmode=nonsense",
        f"postgresql://user:{QUOTED}@127.0.0.1:x/state",
        f"postgresql://user:{QUOTED}@[127.0.0.1/state",
        f"postgresql://user:{PASSWORD}@127.0.0.1/state",
        f"postgresql://user:@{PASSWORD}@127.0.0.1/state",
        f"postgres:{PASSWORD}",
    ],
)
async def test_no_password_is_ever_told(address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(TrackerError) as raised:
        tracker = make_tracker(address)
        assert "hunter2" not in tracker.address
        await tracker.open()
    shown = f"{raised.value} {raised.value!r} {raised.value.__cause__} {caplog.text}"
    assert "hunter2" not in shown
    assert "secret" not in shown


async def test_a_wrong_password_is_not_told_either(postgres: Databases, address: str) -> None:
    """The password is taken out of what the server says."""
    where = PostgresAddress(address.replace("tester@", f"tester:{QUOTED}@"))
    error = where.error(psycopg.OperationalError(f"no: password={PASSWORD}"))
    assert str(error) == f"the tracker {where} cannot be used: no: password=***"


def test_what_an_address_shows() -> None:
    shown = {
        "postgresql://user:pass@db.example:5433/state?sslmode=require": "postgresql://user@db.example:5433/state",
        "postgres://a,b:5433/state": "postgresql://a,b:,5433/state",
        "postgresql:///state?host=/run/postgresql&user=u": "postgresql://u@/run/postgresql/state",
        "postgresql://": "postgresql:///",
    }
    assert {address: str(PostgresAddress(address)) for address in shown} == shown
    for kind in ("postgres", "postgresql"):
        assert isinstance(make_tracker(f"{kind}://host/state"), PostgresTracker)


def test_psycopg_missing_is_told_with_what_to_install() -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from daggyr_server.trackers.base import TrackerError\n"
        "from daggyr_server.trackers.loader import make_tracker\n"
        "try: make_tracker('postgresql://host/state')\n"
        "except TrackerError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "needs psycopg" in done.stdout
    assert "pip install 'daggyr[postgres]'" in done.stdout
