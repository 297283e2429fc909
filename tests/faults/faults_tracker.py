"""New durable trackers for the tests of this folder: a sqlite file, or a database of the Postgres server that is theirs."""

from __future__ import annotations

import itertools

import pytest
from support.postgres_server import PostgresServer

_numbers = itertools.count(1)


def new_tracker(kind: str, request: pytest.FixtureRequest) -> str:
    """Return the address of an empty tracker."""
    if kind == "sqlite":
        return f"sqlite:{request.getfixturevalue('tmp_path')}/state.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    name = f"faults_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    return server.url(name)
