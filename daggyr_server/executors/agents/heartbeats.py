"""Ends sessions whose agent says nothing any more, though the connection still stands.

The agent executor runs `watch_heartbeats` as long as its pool is open. It decides nothing about attempts: a session that it ends
is one that broke.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import grpc

from daggyr_server.executors.agents.known_agent import KnownAgent

MISSED_HEARTBEATS = 4  # after so many, a session that says nothing is given up


async def watch_heartbeats(agents: Mapping[str, KnownAgent], interval: float) -> None:
    """Look after the sessions of `agents` for ever. Their agents send a heartbeat every `interval` seconds.

    While this process itself stood still, it heard nobody; so that time does not count. Nor does silence count while the session
    is full, because nothing is read from it then.
    """
    now = time.monotonic()
    while True:
        before = now
        await asyncio.sleep(interval)
        now = time.monotonic()
        stood_still = max(0.0, now - before - interval)
        for agent in agents.values():
            if agent.session is None:
                continue
            agent.heard = now if agent.session.is_full else min(now, agent.heard + stood_still)
            if agent.heard < now - MISSED_HEARTBEATS * interval:
                agent.session.end(grpc.StatusCode.UNAVAILABLE, "no heartbeat came")
