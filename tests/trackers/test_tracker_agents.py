"""The digests of agents' keys: kept in the order in which the agents came, changed, forgotten, and there after a restart."""

from __future__ import annotations

import hashlib

from tracker_kinds import OpenAgain, TrackerKind

from daggyr_server.core.records import AgentForgotten, AgentPinned
from daggyr_server.trackers.base import Tracker


def pinned(agent_id: str, name: str = "one") -> AgentPinned:
    return AgentPinned(agent_id, name, hashlib.sha256(f"{agent_id} {name}".encode()).digest())


async def test_pins_come_back_in_the_order_in_which_they_came(tracker: Tracker) -> None:
    assert await tracker.pins() == []
    pins = [pinned(f"id-{number}") for number in (3, 1, 2)]
    await tracker.commit([pins[0]])
    await tracker.commit(pins[1:])
    assert await tracker.pins() == pins


async def test_the_last_pin_of_an_agent_counts_in_its_place(tracker: Tracker) -> None:
    await tracker.commit([pinned("a"), pinned("b")])
    again = pinned("a", "another name")
    await tracker.commit([again])
    assert await tracker.pins() == [again, pinned("b")]


async def test_what_is_forgotten_is_gone_and_unknown_agents_can_be_forgotten(tracker: Tracker) -> None:
    await tracker.commit([pinned("a"), pinned("b"), AgentForgotten("a"), AgentForgotten("nobody")])
    assert await tracker.pins() == [pinned("b")]
    await tracker.commit([pinned("a")])
    assert await tracker.pins() == [pinned("b"), pinned("a")]


async def test_pins_outlive_a_coordinator_where_anything_does(kind: TrackerKind, open_again: OpenAgain) -> None:
    tracker, _ = await open_again()
    await tracker.commit([pinned("a"), pinned("b"), AgentForgotten("a")])
    await tracker.close()
    tracker, _ = await open_again()
    assert await tracker.pins() == ([pinned("b")] if kind.durable else [])
