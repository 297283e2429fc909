"""Whose an agent's id is: the SHA-256 of the first key that came with it, kept by the tracker.

The servicer asks `admit` for each hello, before it does or tells anything that the hello asks for; the API forgets agents by
name. What is kept is bounded: beyond MAX_PINS, the oldest pin is forgotten whose agent is not known otherwise. A local pool has
pins of its own that go with it, as the folder of its agent does. Nothing here ever holds a key, or logs one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable

log = logging.getLogger(__name__)

MAX_PINS = 10_000
KEY_BYTES = 32

# Makes a pin durable: id, name and digest; without a digest, it makes durable that the id has no pin.
Keep = Callable[[str, str, bytes | None], Awaitable[None]]


class PinsClosed(Exception):
    """Nothing can be made durable any more, because the coordinator is going away."""


class AgentPins:
    """The pins. All methods belong to one event loop. Until `open`, pins live as long as this object."""

    def __init__(self) -> None:
        self._pins: dict[str, tuple[str, bytes]] = {}  # agent id -> name and digest, in the order in which they came
        self._keep: Keep = _kept_here
        self._under_way: dict[str, asyncio.Task[None]] = {}  # agent id -> the task that makes its pin durable

    def open(self, pins: Iterable[tuple[str, str, bytes]], keep: Keep) -> None:
        """Begin with the durable pins: id, name and digest of each agent. `keep` raises PinsClosed once it is too late."""
        self._pins = {agent_id: (name, digest) for agent_id, name, digest in pins}
        self._keep = keep

    def named(self, name: str) -> set[str]:
        """The ids of the agents that have this name, or id."""
        return {agent_id for agent_id, (known, _) in self._pins.items() if name in (known, agent_id)}

    async def admit(self, agent_id: str, name: str, key: bytes, in_use: Callable[[str], bool]) -> bool:
        """Return whether `key` is the agent's. The first key of an id is, and its pin is durable when this returns True.

        An agent without a key is admitted as long as its id has no pin. `in_use` tells whether an agent must not be forgotten.
        Raises PinsClosed.
        """
        digest = hashlib.sha256(key).digest()
        while (under_way := self._under_way.get(agent_id)) is not None:
            await asyncio.shield(under_way)  # others wait for the same task, so that it goes on if this one is cancelled
        known = self._pins.get(agent_id)
        if known is None and not key:
            return True
        if known is not None and not hmac.compare_digest(digest, known[1]):
            return False
        if known is None:
            self._make_room(agent_id, in_use)
            await asyncio.shield(self._write(agent_id, name, digest))
            # Meanwhile somebody may have forgotten it, or shown another key.
            return hmac.compare_digest(digest, self._pins.get(agent_id, ("", b""))[1])
        return True

    def called(self, agent_id: str, name: str) -> None:
        """Record that an agent which was taken in has this name now. That becomes durable some time.

        Not a part of `admit`, because one that shows the right key may be refused all the same: a copy of the state folder,
        which is started under a name of its own, must not take the agent's name away.
        """
        known = self._pins.get(agent_id)
        if known is not None and known[0] != name and agent_id not in self._under_way:
            self._write(agent_id, name, known[1])

    async def forget(self, agent_id: str) -> None:
        """Forget an agent's pin, durably. Raises PinsClosed."""
        while (under_way := self._under_way.get(agent_id)) is not None:
            await asyncio.shield(under_way)
        if agent_id in self._pins:
            await asyncio.shield(self._write(agent_id, "", None))

    def drop(self, agent_id: str) -> None:
        """Forget the pin of an agent that will never come back. That becomes durable some time."""
        if agent_id in self._pins and agent_id not in self._under_way:
            self._write(agent_id, "", None)

    def _make_room(self, agent_id: str, in_use: Callable[[str], bool]) -> None:
        if agent_id in self._pins or len(self._pins) < MAX_PINS:
            return
        oldest = next((known for known in self._pins if known not in self._under_way and not in_use(known)), None)
        if oldest is not None:
            log.info("the key of agent %s is forgotten: %d others came after it", self._pins[oldest][0], len(self._pins) - 1)
            self._write(oldest, "", None)

    def _write(self, agent_id: str, name: str, digest: bytes | None) -> asyncio.Task[None]:
        task = asyncio.create_task(self._written(agent_id, name, digest), name=f"pin of agent {agent_id}")
        self._under_way[agent_id] = task
        task.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # marks an error as seen, because nobody may wait any more
        return task

    async def _written(self, agent_id: str, name: str, digest: bytes | None) -> None:
        try:
            await self._keep(agent_id, name, digest)
            if digest is None:
                self._pins.pop(agent_id, None)
            else:
                self._pins[agent_id] = (name, digest)
        finally:
            del self._under_way[agent_id]


async def _kept_here(agent_id: str, name: str, digest: bytes | None) -> None:
    """Keep a pin only as long as this process lives, which takes nothing more."""
