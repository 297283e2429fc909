"""Which agent an id belongs to: an agent is admitted once its pin is durable, pins are bounded, and no caller waits for ever."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from support.waiting import DEADLINE

from daggyr_server.executors.agents import pins as agent_pins
from daggyr_server.executors.agents.pins import AgentPins, PinsClosed

OURS, ANOTHER = b"k" * 32, b"o" * 32


def nobody(_: str) -> bool:
    return False


class Kept:
    """A store of pins that makes them durable once the test says so."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, bytes | None]] = []
        self.durable = asyncio.Event()
        self.closed = False

    async def keep(self, agent_id: str, name: str, digest: bytes | None) -> None:
        self.told.append((agent_id, name, digest))
        await self.durable.wait()
        if self.closed:
            raise PinsClosed("going away")


async def test_nobody_is_admitted_before_it_is_durable() -> None:
    kept, pins = Kept(), AgentPins()
    pins.open([], kept.keep)
    first = asyncio.create_task(pins.admit("id", "one", OURS, nobody))
    again = asyncio.create_task(pins.admit("id", "one", OURS, nobody))
    other = asyncio.create_task(pins.admit("id", "one", ANOTHER, nobody))
    while not kept.told:
        await asyncio.sleep(0)
    first.cancel()  # the pin stays though the caller goes away
    await asyncio.gather(first, return_exceptions=True)
    assert not again.done() and not other.done()
    kept.durable.set()
    async with asyncio.timeout(DEADLINE):
        assert (await again, await other) == (True, False)
    assert kept.told == [("id", "one", hashlib.sha256(OURS).digest())]


async def test_a_known_agent_needs_nothing_to_be_durable() -> None:
    kept, pins = Kept(), AgentPins()
    pins.open([("id", "one", hashlib.sha256(OURS).digest())], kept.keep)
    assert await pins.admit("id", "one", OURS, nobody)
    assert not await pins.admit("id", "two", ANOTHER, nobody)
    assert not await pins.admit("id", "one", b"", nobody)
    assert await pins.admit("id", "two", OURS, nobody)  # it may still be refused for something else
    assert kept.told == []
    assert (pins.named("two"), pins.named("one"), pins.named("id")) == (set(), {"id"}, {"id"})


async def test_a_new_name_is_kept_of_an_agent_that_was_taken_in() -> None:
    kept, pins = Kept(), AgentPins()
    pins.open([("id", "one", hashlib.sha256(OURS).digest())], kept.keep)
    pins.called("id", "one")
    pins.called("nobody", "two")
    pins.called("id", "two")
    kept.durable.set()
    async with asyncio.timeout(DEADLINE):
        assert await pins.admit("id", "two", OURS, nobody)  # waits for the pin that is under way
    assert kept.told == [("id", "two", hashlib.sha256(OURS).digest())]
    assert (pins.named("two"), pins.named("one"), pins.named("id")) == ({"id"}, set(), {"id"})


async def test_an_agent_without_a_key_is_admitted_until_one_is_known() -> None:
    pins = AgentPins()
    assert await pins.admit("id", "one", b"", nobody)
    assert await pins.admit("id", "one", OURS, nobody)
    assert not await pins.admit("id", "one", b"", nobody)
    await pins.forget("id")
    assert await pins.admit("id", "one", ANOTHER, nobody)


async def test_what_is_kept_is_bounded_and_who_is_in_use_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_pins, "MAX_PINS", 3)
    pins = AgentPins()
    for number in range(6):
        assert await pins.admit(f"id-{number}", "all", OURS, lambda agent_id: agent_id == "id-1")
        await asyncio.sleep(0)
    assert pins.named("all") == {"id-1", "id-4", "id-5"}


async def test_a_coordinator_that_goes_away_says_so() -> None:
    kept, pins = Kept(), AgentPins()
    pins.open([("known", "known", hashlib.sha256(OURS).digest())], kept.keep)
    kept.closed = True
    kept.durable.set()
    with pytest.raises(PinsClosed):
        await pins.admit("id", "one", OURS, nobody)
    with pytest.raises(PinsClosed):
        await pins.forget("known")
    pins.drop("known")  # no caller waits for that
    await asyncio.sleep(0)
    assert pins.named("one") == set()
