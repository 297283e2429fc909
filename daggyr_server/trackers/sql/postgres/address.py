"""Where a postgres tracker's database is, and how to speak of it: the address taken apart, connections made, errors in words.

No password ever leaves this file but towards the database: addresses are shown without theirs, and errors are searched for it.
Used by postgres.py only. psycopg may be missing: then the first thing that is asked for says what to install.
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

# A network that goes away without a word is noticed within half a minute, by the server too: it lets the lock go then.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # milliseconds
    "fallback_application_name": "daggyr",
}
# All is asked for by key. A plan that reads a whole table, which the server likes as long as it believes a table to be small,
# would be kept while the table grows.
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
    """A database; `host` and `database` are empty where the address leaves them to libpq. `str` of it shows no secret."""

    def __init__(self, address: str) -> None:
        """Raises TrackerError if psycopg is missing, and for what is no address; libpq's form, see its manual, 34.1.1.2."""
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
        except psycopg.Error:  # its words may hold what is secret
            raise malformed from None
        # Part of a password that was not written so would pass for a host, a port or a database, and be shown.
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
    def in_words(self) -> Iterator[None]:
        """Turns psycopg's errors into TrackerError."""
        try:
            yield
        except psycopg.Error as error:
            raise self.error(error) from None

    def error(self, error: Exception) -> TrackerError:
        """What went wrong, in words for a person."""
        words = " ".join(str(error).split())
        for secret in self._secrets:
            words = words.replace(secret, "***")
        advice = ""
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            advice = "; the user needs the right to create a schema there (GRANT CREATE ON DATABASE ... TO ...)"
        elif isinstance(error, psycopg.errors.DiskFull):
            advice = "; make room, it goes on by itself then"
        return TrackerError(f"the tracker {self} cannot be used: {words}{advice}")
