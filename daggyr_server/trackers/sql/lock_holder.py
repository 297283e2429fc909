"""Who holds a durable tracker: the coordinator that it names when it refuses a second one. Stored in the database."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime

WAIT = 10.0  # seconds that a coordinator waits for another one to let go: one that is being replaced is about to


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
