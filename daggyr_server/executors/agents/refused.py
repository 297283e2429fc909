"""Agents that are refused because this coordinator's tracker is behind what they have seen, and what people hear of them.

An agent keeps the tracker, the epoch and the life of its last welcome, and says them in its hello. A tracker that lacks that
start is an older copy, and what it takes for queued may be done already. The agent executor asks `behind` and notes whom it
refuses; the API shows them. What is kept is bounded, in time and in bytes (some 10 MB a pool). Nothing here ends a session.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from daggyr.v1.agents_pb2 import Hello
from daggyr_server.executors import seen_starts
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.seen_starts import SeenStart

log = logging.getLogger(__name__)

MOST = 1_000  # refused agents that are known
MOST_RESOURCES = 10  # of each of them, `cores` among them
KEPT_SECONDS = 120.0  # an agent tries again every few seconds; one that does not for so long has given up
_LOG_SECONDS = 60.0  # between two lines about one agent


@dataclass(slots=True)
class RefusedAgent:
    """An agent that was refused lately."""

    agent_id: str
    name: str
    address: str
    version: str
    resources: dict[str, int]
    reason: str  # a sentence for people
    last_seen: float  # seconds since the epoch
    heard: float  # seconds, monotonic
    told: float  # when the log had its last line; seconds, monotonic


class RefusedAgents:
    """Those of one pool."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._agents: dict[str, RefusedAgent] = {}  # by id; the one that was refused last comes last

    def note(self, hello: Hello, address: str, reason: str) -> None:
        """An agent was refused."""
        now = self._clock()
        before = self._agents.pop(hello.agent_id, None)
        told = before.told if before is not None and now < before.told + _LOG_SECONDS else now
        if told == now:
            log.error("agent %s at %s is refused: %s", hello.name, address, reason)
        self._forget_old(now)
        while len(self._agents) >= MOST:
            del self._agents[next(iter(self._agents))]
        resources = dict(islice(hello.resources.items(), MOST_RESOURCES - 1)) | {"cores": hello.resources["cores"]}
        self._agents[hello.agent_id] = RefusedAgent(
            hello.agent_id, hello.name, address, hello.version, resources, reason, time.time(), now, told
        )

    def forget(self, agent_id: str) -> None:
        """An agent was taken in."""
        self._agents.pop(agent_id, None)

    def __iter__(self) -> Iterator[RefusedAgent]:
        """Those that were refused lately."""
        self._forget_old(self._clock())
        return iter(list(self._agents.values()))

    def _forget_old(self, now: float) -> None:
        while self._agents and now >= next(iter(self._agents.values())).heard + KEPT_SECONDS:
            del self._agents[next(iter(self._agents))]


def behind(hello: Hello, context: ExecutorContext) -> str | None:
    """Why this coordinator's tracker is an older copy than the agent has seen; None if it is not."""
    if hello.tracker_id != context.tracker_id or not hello.epoch:
        return None
    # An agent of version 1 of the protocol tells no life.
    return seen_starts.behind(SeenStart(hello.tracker_id, hello.epoch, hello.life), context, f"agent {hello.name!r}")
