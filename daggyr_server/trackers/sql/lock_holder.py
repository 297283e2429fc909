"""Which coordinator holds a durable tracker. Each stores this about itself in the database; one that is refused is told it.

Nothing here takes a lock: how that is done is the matter of each database.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from daggyr_server.trackers.base import TrackerError


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A coordinator."""

    host: str
    pid: int
    since: float  # seconds since the epoch

    @classmethod
    def this_process(cls) -> LockHolder:
        return cls(socket.gethostname(), os.getpid(), time.time())

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC)
        return f"process {self.pid} on host {self.host}, since {since:%Y-%m-%d %H:%M:%S} UTC"


def in_use(where: object, holder: object, another: str) -> TrackerError:
    """The error that refuses a second coordinator; `another` is what to name instead, a file or a database."""
    return TrackerError(f"another coordinator uses the tracker {where}: {holder}; stop it, or name another {another}")
