"""A copy of a postgres tracker, by pg_dump, which copies one moment of a database that is in use.

`daggyr-server backup` calls this. A password goes to pg_dump by its environment, never by an argument. Nothing here reads or
writes a table; `pg_restore` brings a copy back, and `daggyr-server restore` makes that another life.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from psycopg import pq

from daggyr.whole_file import sync_folder
from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.sql.drafts import draft_beside
from daggyr_server.trackers.sql.postgres.address import PostgresAddress

_OPTIONS = ("--format=custom", "--schema=daggyr", "--no-owner", "--no-privileges")


def back_up(address: PostgresAddress, destination: Path) -> int:
    """Copy a tracker to a new file; returns its size in bytes. Raises TrackerError."""
    if os.path.lexists(destination):
        raise TrackerError(f"{destination} exists, and a copy overwrites nothing: name another file")
    program = shutil.which("pg_dump")
    if program is None:
        raise TrackerError(
            "pg_dump is not here: install Postgres' client programs, of the server's version or newer; or, on any host that "
            f"has them and reaches the database: pg_dump {' '.join(_OPTIONS)} --file {destination} {address}"
        )
    try:
        with draft_beside(destination) as draft:
            _dump(program, address, draft)
            destination.hardlink_to(draft)
            sync_folder(destination.parent)
            return destination.stat().st_size
    except FileExistsError:
        raise TrackerError(f"{destination} exists, and a copy overwrites nothing: name another file") from None
    except OSError as error:
        raise TrackerError(f"cannot write {destination}: {error.strerror}") from None


def _dump(program: str, address: PostgresAddress, draft: Path) -> None:
    """Have pg_dump fill the draft, durably. Raises TrackerError, OSError."""
    dumped = subprocess.run(
        [program, *_OPTIONS, "--no-password", f"--file={draft}"],
        env={**os.environ, **_variables(address)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if dumped.returncode != 0:
        raise address.error(Exception(dumped.stderr.strip() or f"pg_dump ended with {dumped.returncode}"))
    descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _variables(address: PostgresAddress) -> dict[str, str]:
    """The environment that has libpq connect as the address says (section 34.15 of the Postgres manual)."""
    names = {option.keyword.decode(): option.envvar for option in pq.Conninfo.get_defaults()}
    found = {}
    for keyword, value in address.given.items():
        name = names.get(keyword)
        if name is not None and value is not None:
            found[name.decode()] = str(value)
    return found
