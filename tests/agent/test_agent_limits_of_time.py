"""An agent whose host has a time limit, one that no coordinator answers, and one whose coordinator moves."""

from __future__ import annotations

from pathlib import Path

from agent_program import StartAgent
from scripted_coordinator import Coordinator, key
from support.task_specs import spec

from daggyr.v1.task_pb2 import LOST


async def test_it_tells_when_it_ends_and_does(coordinator: Coordinator, address: str, start_agent: StartAgent) -> None:
    agent = start_agent(address, "--ends-in", "3")
    session = await coordinator.session()
    assert 0 < session.hello.ends_in.ToNanoseconds() <= 3 * 10**9
    await session.assign((key(), spec("sleep", "1000")))
    result = await coordinator.result(key())
    assert result.outcome == LOST
    assert "the time that its host had was over" in result.notes[0]
    assert await agent.exit_code() == 0


async def test_one_without_a_limit_says_so(coordinator: Coordinator, address: str, start_agent: StartAgent) -> None:
    start_agent(address)
    assert not (await coordinator.session()).hello.HasField("ends_in")


async def test_it_ends_where_nobody_answers(folder: Path, start_agent: StartAgent) -> None:
    agent = start_agent(f"unix:{folder}/nobody.sock", "--orphan-seconds", "0.5")
    assert await agent.exit_code() == 0
    assert "no coordinator answered for 0.5 s" in agent.log


async def test_it_finds_a_coordinator_that_moved(coordinator: Coordinator, folder: Path, start_agent: StartAgent) -> None:
    where = folder / "coordinator"
    where.write_text(f"unix:{folder}/one.sock\n")
    await coordinator.start(f"unix:{folder}/one.sock")
    start_agent("", "--coordinator-file", str(where))
    await coordinator.session()
    await coordinator.stop()
    await coordinator.start(f"unix:{folder}/two.sock")
    where.write_text(f"unix:{folder}/two.sock\n")
    await coordinator.session(2)
