"""Refused agents in the log: one line a host a minute, with a count of what came in between.

`agent_session` adds each refusal. A service manager that starts a refused agent again and again fills no disk by that.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

log = logging.getLogger(__name__)

SECONDS = 60.0
MAX_HOSTS = 1_000  # that are told apart; the one that was told of longest ago is forgotten first


@dataclass(slots=True)
class _Told:
    since: float  # seconds, monotonic
    unsaid: int = 0


class RefusalLog:
    """For one listener."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}  # by host, in the order in which they were told of

    def add(self, peer: str, words: str) -> None:
        """An agent at `peer`, in gRPC's words, was refused."""
        host = peer.rpartition(":")[0] if peer.startswith("ipv") else peer
        now = time.monotonic()
        told = self._told.get(host)
        if told is not None and now < told.since + SECONDS:
            told.unsaid += 1
            return
        more = f" (and {told.unsaid} times since the last line)" if told is not None and told.unsaid else ""
        self._told.pop(host, None)
        self._told[host] = _Told(now)
        if len(self._told) > MAX_HOSTS:
            del self._told[next(iter(self._told))]
        log.warning("an agent at %s was refused: %s%s", peer, words, more)
