"""Refuses a pooler that gives the transactions of one connection to different sessions of the database.

The lock that keeps a second coordinator off belongs to a session. Behind such a pooler (pgbouncer with `pool_mode = transaction`)
it stays with a session that is nobody's: two coordinators may write at once, and after a crash nobody can. `PostgresTracker`
calls `check_session` before it takes the lock. Nothing here knows tables.
"""

from __future__ import annotations

import secrets

from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.sql.postgres.address import MISSING, PostgresAddress

if MISSING is None:
    import psycopg

    from daggyr_server.trackers.sql.postgres.watch import AnswerWatch, WatchedConnection


async def check_session(connection: WatchedConnection, watch: AnswerWatch, address: PostgresAddress) -> None:
    """Raise TrackerError if a session of the database does not stay with `connection`.

    Where the server itself answers, it is the process that it said it was at the beginning. Where another process does, something
    stands in between, and is tried: another connection holds a transaction meanwhile, so that it takes a session if it can.
    """
    if connection.info.backend_pid == await _one(connection, "SELECT pg_backend_pid()"):
        return
    word = secrets.token_hex(8)
    why = "a setting was gone that had just been made"
    try:
        await connection.execute(f"SET daggyr.session = '{word}'")
        other = await watch.connect()
        try:
            await other.execute("BEGIN")
            await other.execute("SELECT 1")
            kept = await _one(connection, "SELECT current_setting('daggyr.session', true)") == word
            taken = await _one(other, "SELECT current_setting('daggyr.session', true)") == word
        finally:
            await other.close()
        if kept and not taken:
            await connection.execute("RESET daggyr.session")
            return
    except (psycopg.Error, TrackerError) as error:
        why = " ".join(str(error).split())
    raise TrackerError(
        f"{address} is behind a pooler whose connections keep no session of the database ({why}), so that no lock would stay "
        "with this server: name the database itself, or set pool_mode = session for it (pgbouncer)"
    )


async def _one(connection: WatchedConnection, query: str) -> object:
    row = await (await connection.execute(query.encode())).fetchone()
    return row[0] if row is not None else None
