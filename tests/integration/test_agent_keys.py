"""What proves who an agent is: its key and not its id, which every task knows; and what to do when the key is lost."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
from pathlib import Path

import grpc
import pytest
from support.deployment import Deployment, Program, shell, task, until
from support.waiting import Gate
from test_bad_agents import hello, refusal, session

from daggyr_agent.journal import Journal


def state_of(farm: Deployment, name: str = "one") -> Path:
    return farm.state / "daggyr" / "agents" / name


def holding(farm: Deployment) -> tuple[int, Gate, Program]:
    """Start a run whose task an agent holds. The task has told the agent's id."""
    gate = farm.gate()
    agent = farm.start_agent("one")
    run_id = farm.submit({"a": shell(f'echo "$DAGGYR_AGENT_ID" > stolen; {gate.hold}')})
    gate.reached()
    return run_id, gate, agent


@pytest.mark.parametrize("key", [b"", secrets.token_bytes(32)], ids=["no key", "another key"])
async def test_an_id_that_a_task_has_read_is_worth_nothing(farm: Deployment, key: bytes) -> None:
    """A stranger who has the id and the token is refused and sees no assignment. The log names the peer; the agent goes on."""
    run_id, gate, agent = await asyncio.to_thread(holding, farm)
    agent_id = farm.read("stolen").strip()
    assert agent_id == (state_of(farm) / "agent-id").read_text().strip()
    async with session(farm, hello(agent_id=agent_id, name="one", agent_key=key)) as call:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()  # the first message from the server
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "daggyr agent forget" in str(refused.value.details())
    # Another name or another incarnation does not help.
    async with session(farm, hello(agent_id=agent_id, name="other", incarnation="2", agent_key=key)) as call:
        assert (await refusal(call))[0] is grpc.StatusCode.PERMISSION_DENIED
    lines = [line for line in farm.logs().splitlines() if "PERMISSION_DENIED" in line]
    assert len(lines) == 1 and "127.0.0.1" in lines[0], "one line a host a minute, which names the peer"
    assert agent.process.poll() is None
    (seen,) = await asyncio.to_thread(farm.json, "agents")
    assert (seen["name"], seen["state"], seen["running"]) == ("one", "CONNECTED", 1)
    await asyncio.to_thread(gate.open)
    assert (await asyncio.to_thread(farm.watch, run_id))["state"] == "COMPLETED"
    assert await asyncio.to_thread(farm.attempts, run_id) == {"a": 1}


def test_the_key_is_in_a_file_of_its_own_and_nowhere_else(farm: Deployment) -> None:
    farm.start_agent("one")
    path = state_of(farm) / "agent-key"
    key = path.read_text().strip()
    assert (len(bytes.fromhex(key)), path.stat().st_mode & 0o777) == (32, 0o600)
    run_id = farm.submit({"a": task("env")})
    farm.watch(run_id)
    (attempt,) = farm.task(run_id, "a")["attempts"]
    assert "DAGGYR_AGENT_ID=" in attempt["stdout"]
    assert key not in attempt["stdout"] + farm.logs()


def test_a_key_that_others_may_read_is_refused(farm: Deployment) -> None:
    agent = farm.start_agent("one")
    agent.end()
    (state_of(farm) / "agent-key").chmod(0o644)
    again = farm.start_agent("one", wait=False)
    assert again.wait() == 2
    assert "chmod 600" in again.said()


def test_a_host_that_was_set_up_anew(farm: Deployment) -> None:
    """The agent has lost its key and is told what to do. Its attempts run again once it is forgotten, and not before."""
    run_id, gate, agent = holding(farm)
    refused = farm.daggyr("agent", "forget", "one")
    assert (refused.code, "is connected from" in refused.err) == (2, True), refused.err
    agent.end(signal.SIGKILL)
    until(lambda: farm.agents()[0]["state"] == "DISCONNECTED", "the end of its session")
    (state_of(farm) / "agent-key").unlink()
    again = farm.start_agent("one", wait=False)
    assert again.wait() == 2
    agent_id = farm.read("stolen").strip()
    assert f"daggyr agent forget {agent_id}" in again.said()
    assert farm.states(run_id) == {"a": "RUNNING"}
    forgotten = farm.daggyr("agent", "forget", "one")
    assert (forgotten.code, forgotten.out) == (0, "agent one is forgotten; 1 task of it run again elsewhere\n")
    assert farm.agents() == []
    farm.start_agent("one")
    gate.open()
    assert farm.watch(run_id)["state"] == "COMPLETED"
    assert [attempt["outcome"] for attempt in farm.task(run_id, "a")["attempts"]] == ["LOST", "SUCCEEDED"]
    nobody = farm.daggyr("agent", "forget", "nobody")
    assert (nobody.code, "'nobody'" in nobody.err) == (2, True)


def test_an_agent_that_is_gone_for_long_is_still_known_by_its_key(deployment: Deployment, tmp_path: Path) -> None:
    """This holds after a restart of the coordinator, too. The agent's name finds it."""
    config = f'[server]\ntracker = "sqlite:{tmp_path}/state.db"\nheartbeat = 30\nlease = 100\n[pools.farm]\nexecutor = "agent"\n'
    server = deployment.start_server(config=config)
    deployment.start_agent("one").end()
    server.end()
    deployment.start_server(config=config)
    (state_of(deployment) / "agent-key").unlink()
    assert deployment.start_agent("one", wait=False).wait() == 2
    assert deployment.json("agent", "forget", "one") == {"name": "one", "lost": 0}
    deployment.start_agent("one")
    deployment.goes_on()


def a_copy(farm: Deployment) -> Path:
    """A copy of the state folder of agent `one`, with all that is in it."""
    return shutil.copytree(state_of(farm), farm.folder / "copy")


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_copy_of_the_state_folder_of_an_agent_that_lives(farm: Deployment, name: str) -> None:
    """On the same host it does not begin, and ends nothing of what the first one runs; without the id, it is an agent of its own.

    The copy is made while a task runs, so that its journal has that task's process.
    """
    run_id, gate, agent = holding(farm)
    until(lambda: Journal(state_of(farm) / "journal").running, "the task's process in the journal")
    copy = a_copy(farm)
    clone = farm.start_agent(name, "--state-dir", str(copy), wait=False)
    assert clone.wait() == 2
    assert f"is a copy of another one, whose agent runs on this host as process {agent.process.pid}" in clone.said()
    assert "remove agent-id and agent-key from the copy" in clone.said()
    assert [(seen["name"], seen["state"]) for seen in farm.agents()] == [("one", "CONNECTED")]
    for file in ("agent-id", "agent-key"):
        (copy / file).unlink()
    farm.start_agent("two", "--state-dir", str(copy))
    assert len(farm.agents()) == 2
    gate.open()
    assert farm.watch(run_id)["state"] == "COMPLETED"
    assert farm.attempts(run_id) == {"a": 1}


def test_a_copy_that_was_made_of_an_agent_that_was_stopped(farm: Deployment) -> None:
    """Its journal has nothing of what the first one runs now, but the tasks' environment has the id."""
    farm.start_agent("one").end()
    copy = a_copy(farm)
    run_id, gate, agent = holding(farm)
    clone = farm.start_agent("one", "--state-dir", str(copy), wait=False)
    assert clone.wait() == 2
    gate.open()
    assert farm.watch(run_id)["state"] == "COMPLETED"
    assert farm.attempts(run_id) == {"a": 1}
    agent.end()
    farm.start_agent("one", "--state-dir", str(copy))  # The first one is gone, and the copy is as good.
    farm.goes_on()


@pytest.mark.parametrize("name", ["one", "two"])
async def test_a_copy_of_a_state_folder_on_another_host(farm: Deployment, name: str) -> None:
    """The coordinator refuses it, with what to do, as long as the first one answers; and it takes no name away."""
    agent = await asyncio.to_thread(farm.start_agent, "one")
    agent_id, key = ((state_of(farm) / file).read_text().strip() for file in ("agent-id", "agent-key"))
    async with session(farm, hello(agent_id=agent_id, name=name, agent_key=bytes.fromhex(key))) as call:
        code, words = await refusal(call)
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert "another process of agent 'one'" in words and "remove agent-id and agent-key from the copy" in words
    assert agent.process.poll() is None
    assert [(seen["name"], seen["state"]) for seen in farm.agents()] == [("one", "CONNECTED")]
    await asyncio.to_thread(farm.goes_on)
    await asyncio.to_thread(agent.end)
    nobody = farm.daggyr("agent", "forget", "two")
    assert (nobody.code, "no agent 'two' is known" in nobody.err) == (2, True), nobody.err
    assert farm.json("agent", "forget", "one") == {"name": "one", "lost": 0}


def test_an_agent_is_known_by_the_name_that_it_had_last(farm: Deployment) -> None:
    farm.start_agent("one").end()
    farm.start_agent("two", "--state-dir", str(state_of(farm))).end()
    assert farm.daggyr("agent", "forget", "one").code == 2
    assert farm.json("agent", "forget", "two") == {"name": "two", "lost": 0}
