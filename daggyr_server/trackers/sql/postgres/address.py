"""The address of a postgres tracker's database: how it is read, shown and connected to, and the database's errors in words.

`PostgresTracker` and `PostgresReaders` use it. A password leaves this file towards the database only: addresses are shown without
it, and it is taken out of errors. psycopg may be missing; then making an address says what to install.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from daggyr_server.trackers.base import TrackerError

try:
    import psycopg
    from psycopg import conninfo
except ImportError as error:
    MISSING: str | None = str(error)
else:
    MISSING = None

# A network that goes away silently is noticed within half a minute, also by the server, which then lets the lock go.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # milliseconds
    "fallback_application_name": "daggyr",
}
# All statements ask by key. While the server believes that a table is small, it prefers plans that read all of it, and would keep
# such a plan while the table grows.
_SESSION = """
SET synchronous_commit = on;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET jit = off;
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 3;
SET idle_in_transaction_session_timeout = '60s';
SET lock_timeout = '10s';
"""
_SECRET = ("password", "sslpassword")


class PostgresAddress:
    """A database. `host` and `database` are empty where the address leaves them to libpq. Its `str` shows no secret."""

    def __init__(self, address: str) -> None:
        """Raises TrackerError if psycopg is missing, and for an address that is malformed. Its form is that of libpq's URIs
        (section 34.1.1.2 of the Postgres manual)."""
        if MISSING is not None:
            raise TrackerError(
                f"the postgresql tracker needs psycopg, which cannot be imported ({MISSING}): pip install 'daggyr[postgres]'"
            )
        malformed = TrackerError(
            "this is no address for the postgresql tracker: write postgresql://USER@HOST/DATABASE (in a password, @ / : % are "
            "written %40 %2F %3A %25)"
        )
        scheme, _, rest = address.partition("://")
        if scheme not in ("postgresql", "postgres"):
            raise malformed
        try:
            given = conninfo.conninfo_to_dict(address)
        except psycopg.Error:  # its message may have the password in it
            raise malformed from None
        # A password with such characters would be split, and a part of it be shown as a host, a port or a database.
        ports = str(given.get("port", "")).replace(",", "")
        if rest.partition("?")[0].count("@") > 1 or "@" in str(given.get("dbname", "")) or not (ports.isdecimal() or not ports):
            raise malformed
        self._secrets = [str(given[name]) for name in _SECRET if given.get(name)]
        self._conninfo = conninfo.make_conninfo(**{**_DEFAULTS, **given})
        self.host = str(given.get("host") or "")
        self.database = str(given.get("dbname") or "")
        user = f"{given['user']}@" if given.get("user") else ""
        port = f":{given['port']}" if given.get("port") else ""
        self._shown = f"postgresql://{user}{self.host}{port}/{self.database}"

    def __str__(self) -> str:
        return self._shown

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """A new connection in autocommit mode whose commits are durable. Raises TrackerError."""
        with self.in_words():
            connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            try:
                await connection.execute(_SESSION)
            except BaseException:
                await connection.close()
                raise
        return connection

    @contextlib.contextmanager
    def in_words(self, *, opening: bool = False) -> Iterator[None]:
        """Turns psycopg's errors into TrackerError."""
        try:
            yield
        except psycopg.Error as error:
            raise self.error(error, opening=opening) from None

    def error(self, error: Exception, *, opening: bool = False) -> TrackerError:
        """What went wrong, in words for a person. A tracker that works goes on by itself; at its `opening` the server ends."""
        words = " ".join(str(error).split())
        for secret in self._secrets:
            words = words.replace(secret, "***")
        advice = ""
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            advice = "; the user needs the right to create a schema there (GRANT CREATE ON DATABASE ... TO ...)"
        elif isinstance(error, psycopg.errors.DiskFull):
            advice = f"; make room, {'and try again' if opening else 'it goes on by itself then'}"
        return TrackerError(f"the tracker {self} cannot be used: {words}{advice}")
