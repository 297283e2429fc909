"""Databases of the tests' Postgres server, each as a new tracker would leave it. tests/trackers/conftest.py makes them.

Making a tracker's tables takes the server longer than a small test does. So the rows that a test before left are deleted, and the
tables stay; only if that test changed the tables, or filled them, they are dropped and the next tracker makes them from nothing.
"""

from __future__ import annotations

import itertools
import secrets
from pathlib import Path

import psycopg
from support.postgres_server import PostgresServer
from support.waiting import until

from daggyr_server.trackers.sql.statements import migrations, statements

# A row for each connection to the database but the one that asks.
CONNECTIONS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'daggyr'"
BYTES = f"SELECT coalesce(sum(pg_total_relation_size(('daggyr.' || tablename)::regclass)), 0)::bigint FROM ({TABLES}) AS made"
LARGE = 2 * 1024 * 1024  # bytes; tables without a row take a tenth of that
WAITING = "SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database WHERE NOT granted"


class Databases:
    """A few databases, taken in turn. Their owner has no other rights."""

    COUNT = 4

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._of: dict[Path, str] = {}
        self._in_turn = itertools.cycle([f"test_{i}" for i in range(self.COUNT)])
        server.execute("CREATE ROLE tester LOGIN", *(f"CREATE DATABASE test_{i} OWNER tester" for i in range(self.COUNT)))

    def address(self, folder: Path) -> str:
        """The address that belongs to a folder. A new folder gets a database without rows, to which nobody is connected."""
        if folder not in self._of:
            self._of[folder] = until(self._emptied, "a database that nobody is connected to")
        return self.server.url(self._of[folder], user="tester")

    def waiting(self, name: str) -> bool:
        """Whether a connection to that database waits for a lock."""
        return bool(self.server.execute(f"{WAITING} AND datname = '{name}'"))

    def _emptied(self) -> str | None:
        for name in itertools.islice(self._in_turn, self.COUNT):
            with psycopg.connect(self.server.url(name), autocommit=True) as connection:
                if connection.execute(CONNECTIONS.encode()).fetchone() is None:
                    _empty(connection)
                    return name
        return None


def _empty(connection: psycopg.Connection) -> None:
    tables = [name for (name,) in connection.execute(TABLES.encode())]
    newest = len(migrations("postgres"))
    sql = {name: text.encode() for name, text in statements("postgres").items()}
    versions = connection.execute(sql["version"]).fetchall() if "tracker" in tables else []
    (size,) = connection.execute(BYTES.encode()).fetchone() or (0,)
    if versions != [(newest,)] or size > LARGE:
        connection.execute("DROP SCHEMA IF EXISTS daggyr CASCADE")
        return
    with connection.pipeline(), connection.transaction():
        for table in tables:
            connection.execute(f"DELETE FROM daggyr.{table}".encode())
        connection.execute(sql["add_tracker"], (secrets.token_hex(16),))
        connection.execute(sql["set_version"], (newest,))


databases: list[Databases] = []  # one, once the fixture `postgres` has been asked for
