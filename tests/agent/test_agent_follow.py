"""Following: a coordinator reads what a running attempt has written so far."""

from __future__ import annotations

import os

from agent_program import AgentProcess, Turnstile, eventually
from scripted_coordinator import Coordinator, key
from support.task_specs import spec

from daggyr.v1.agents_pb2 import Follow
from daggyr.v1.task_pb2 import STDERR, STDOUT


async def test_follow_shows_what_a_running_attempt_writes(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    coordinator.acknowledging = False  # what was acknowledged cannot be followed to its end
    script = "echo one; until [ -e go ]; do sleep 0.01; done; echo two; until [ -e end ]; do sleep 0.01; done; echo three >&2"
    await session.assign((key(), spec("sh", "-c", script)))
    await session.follow(1, key())
    await session.follow(2, key(), stream=STDERR)
    await session.follow(3, key(), offset=2)
    await coordinator.until(lambda: coordinator.followed_bytes(1) == b"one\n" and coordinator.followed_bytes(3) == b"e\n")
    (agent.home / "go").touch()
    await coordinator.until(lambda: coordinator.followed_bytes(1) == b"one\ntwo\n")
    assert not coordinator.of(key()).results
    (agent.home / "end").touch()
    for number in (1, 2, 3):
        await coordinator.end_of_follow(number)
    assert [coordinator.followed_bytes(n) for n in (1, 2, 3)] == [b"one\ntwo\n", b"three\n", b"e\ntwo\n"]


async def test_follow_of_what_is_not_acknowledged_and_of_what_is_not_here(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    coordinator.acknowledging = False
    await session.assign((key(), spec("sh", "-c", "head -c 3000000 /dev/zero; echo the end")))
    await coordinator.result(key())
    await session.follow(1, key())
    await session.follow(2, key(99))
    await session.send(follow=Follow(follow_id=3, key=key()))
    for number in (1, 2, 3):
        await coordinator.end_of_follow(number)
    assert coordinator.followed_bytes(1) == coordinator.of(key()).output(STDOUT)
    assert [message.chunk.offset for message in coordinator.followed[1][:-1]] == [
        0, 1 << 18, 3_000_008 - (1 << 19), 3_000_008 - (1 << 18)
    ]  # fmt: skip
    assert [len(coordinator.followed[n]) for n in (2, 3)] == [1, 1]


async def test_follow_of_a_fast_writer_passes_over_what_is_cut_and_stops_when_told(
    agent: AgentProcess, coordinator: Coordinator
) -> None:
    """Here it is the connection that stands still, while more is written than any buffer on the way can hold."""
    turnstile = Turnstile(agent.home)
    first, more = 1_000_000, 64 << 20
    script = f"yes | head -c {first}; {turnstile.wait}; yes | head -c {more}; sleep 600"
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", script)))
    await session.follow(1, key())
    await coordinator.until(lambda: len(coordinator.followed_bytes(1)) == first)
    coordinator.reading.clear()
    turnstile.let()
    output = agent.state / "output"
    await eventually(lambda: sum(entry.stat().st_size for entry in os.scandir(output)) == first + more, "all is written")
    coordinator.reading.set()

    def ends() -> list[int]:
        return [message.chunk.offset + len(message.chunk.data) for message in coordinator.followed[1]]

    await coordinator.until(lambda: ends()[-1] == first + more)
    turnstile.close()
    chunks = [message.chunk for message in coordinator.followed[1]]
    assert all(set(chunk.data) <= set(b"y\n") for chunk in chunks)
    assert all(chunk.offset >= end for chunk, end in zip(chunks[1:], ends(), strict=False))
    assert any(chunk.offset > end for chunk, end in zip(chunks[1:], ends(), strict=False))
    await session.send(follow=Follow(follow_id=1, stop=True))
    await session.cancel(key())
    await coordinator.result(key())
    assert not coordinator.followed[1][-1].end


async def test_follow_of_an_attempt_that_waits_begins_when_it_starts(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign(
        (key(0), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done", resources={"cores": 2})),
        (key(1), spec("sh", "-c", "echo begun; until [ -e end ]; do sleep 0.01; done")),
    )
    await session.follow(1, key(1))
    await coordinator.start_of(key(0))
    (agent.home / "go").touch()
    await coordinator.until(lambda: coordinator.followed_bytes(1) == b"begun\n")
    (agent.home / "end").touch()
    await coordinator.result(key(1))
