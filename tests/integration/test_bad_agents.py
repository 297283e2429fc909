"""Agents that a coordinator refuses, and agents that misbehave. Some are played by a raw gRPC client on the real wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.deployment import FARM, Deployment, shell, task
from support.waiting import DEADLINE, until

from daggyr.channel import PROTOCOL_VERSION, open_channel, token_metadata
from daggyr.v1.agents_pb2 import AgentMessage, CoordinatorMessage, Heartbeat, Hello, UpdateBatch
from daggyr.v1.agents_pb2_grpc import AgentsStub
from daggyr.v1.task_pb2 import SUCCEEDED, AttemptKey, AttemptResult, AttemptUpdate

Call = Any  # grpc.aio.StreamStreamCall[AgentMessage, CoordinatorMessage], which is not generic at runtime


def hello(**changes: Any) -> AgentMessage:
    """The hello of an agent `raw` with one core; `changes` go over it."""
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "agent_id": "raw-id",
        "incarnation": "1",
        "name": "raw",
        "pool": "farm",
        "resources": {"cores": 1},
        "first_unacknowledged": 1,
    }
    return AgentMessage(hello=Hello(**{**fields, **changes}))


@asynccontextmanager
async def session(deployment: Deployment, *messages: AgentMessage) -> AsyncIterator[Call]:
    """A session that has sent these messages."""
    async with open_channel(deployment.address) as channel:
        call = AgentsStub(channel).Session(metadata=token_metadata(deployment.token("agent")))
        for message in messages:
            await call.write(message)
        try:
            yield call
        finally:
            call.cancel()


async def refusal(call: Call) -> tuple[grpc.StatusCode, str]:
    """Return how the coordinator ends a session."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with asyncio.timeout(DEADLINE):
            while await call.read() is not grpc.aio.EOF:
                pass
            raise await _error(call)
    return refused.value.code(), refused.value.details() or ""


async def _error(call: Call) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(await call.code(), grpc.aio.Metadata(), grpc.aio.Metadata(), details=await call.details())


async def answer(call: Call) -> CoordinatorMessage:
    async with asyncio.timeout(DEADLINE):
        message = await call.read()
    assert isinstance(message, CoordinatorMessage)
    return message


def connected(deployment: Deployment) -> set[str]:
    return {agent["name"] for agent in deployment.agents() if agent["state"] == "CONNECTED"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server with a pool of agents, `farm`, and the agent `one`, for all sessions that the server ends."""
    made = Deployment(tmp_path_factory.mktemp("sessions"))
    try:
        made.start_server(config=FARM)
        made.start_agent("one")
        yield made
        made.start_agent("late")  # can still join after them
        assert connected(made) == {"one", "late"}
    finally:
        made.close()


def test_a_second_agent_of_the_same_name(farm: Deployment) -> None:
    """The second agent ends with a word on what to do. The first one goes on."""
    farm.start_agent("one", "--state-dir", str(farm.folder / "a"))
    second = farm.start_agent("one", "--state-dir", str(farm.folder / "b"), wait=False)
    assert second.wait() == 2
    assert "another agent called 'one' is connected" in second.said()
    assert "give this one another --name" in second.said()
    # On the same host and with the same folder, it does not even ask.
    third = farm.start_agent("one", "--state-dir", str(farm.folder / "a"), wait=False)
    assert third.wait() == 2
    assert "give this one another --name or --state-dir" in third.said()
    assert [agent["name"] for agent in farm.agents()] == ["one"]
    farm.goes_on()


async def test_an_agent_of_another_protocol_version(farm: Deployment) -> None:
    async with session(farm, hello(protocol_version=99)) as call:
        code, details = await refusal(call)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "protocol version 99" in details
    assert "install the same version" in details
    farm.start_agent("one")
    farm.goes_on()


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        ([AgentMessage(heartbeat=Heartbeat())], grpc.StatusCode.INVALID_ARGUMENT, "hello first"),
        ([hello(name="")], grpc.StatusCode.INVALID_ARGUMENT, "no name"),
        ([hello(agent_id="", pool="")], grpc.StatusCode.INVALID_ARGUMENT, "no agent_id, pool"),
        ([hello(resources={"cores": 0})], grpc.StatusCode.INVALID_ARGUMENT, "no cores"),
        ([hello(resources={"cores": 1, "gpus": -1})], grpc.StatusCode.INVALID_ARGUMENT, "less than none"),
        ([hello(pool="fram")], grpc.StatusCode.NOT_FOUND, "there are: farm"),
        ([hello(), hello()], grpc.StatusCode.INVALID_ARGUMENT, "hello"),
        ([hello(), AgentMessage(updates=UpdateBatch(sequence=7))], grpc.StatusCode.INVALID_ARGUMENT, "7"),
        ([hello(name="x" * 100_000)], grpc.StatusCode.INVALID_ARGUMENT, "hello.name is out of bounds"),
    ],
)
async def test_a_session_that_makes_no_sense(
    shared: Deployment, messages: list[AgentMessage], code: grpc.StatusCode, words: str
) -> None:
    async with session(shared, *messages) as call:
        found, details = await refusal(call)
        assert (found, words in details) == (code, True), details
    await asyncio.to_thread(until, lambda: connected(shared) == {"one"}, "the end of the session")
    await asyncio.to_thread(shared.goes_on)


async def test_rubbish_in_the_middle_of_a_session(farm: Deployment) -> None:
    """The session ends. Its assignments are given to the agent again when it is back, and to nobody else meanwhile."""
    metadata = token_metadata(farm.token("agent"))
    async with open_channel(farm.address) as channel:
        call: Call = channel.stream_stream("/daggyr.v1.Agents/Session")(metadata=metadata)
        await call.write(hello().SerializeToString())
        await call.write(b"\xff\xff\xff\xff no protobuf")
        code, details = await refusal(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "could not be read" in details
    farm.start_agent("one")
    farm.goes_on()


async def test_reports_of_attempts_that_are_not_the_agents_change_nothing(farm: Deployment) -> None:
    """Of a run that there is not, of a task that another agent has, and twice of its own: the first word holds."""
    gate = farm.gate()
    farm.start_agent("one")
    run_id = farm.submit({"a": shell(gate.hold), "b": task("true", parents=["a"])})
    await asyncio.to_thread(farm.running, run_id, "a")
    succeeded = AttemptResult(outcome=SUCCEEDED, exit_code=0)
    keys = [AttemptKey(run_id=run, task_number=number, attempt=1) for run in (run_id, 99) for number in (0, 1, 99)]
    lies = UpdateBatch(sequence=1, updates=[AttemptUpdate(key=key, finished=succeeded) for key in keys])
    async with session(farm, hello(), AgentMessage(updates=lies)) as call:
        assert (await answer(call)).HasField("welcome")
        assert (await answer(call)).acknowledge.sequence == 1
        assert await asyncio.to_thread(farm.states, run_id) == {"a": "RUNNING", "b": "QUEUED"}
    await asyncio.to_thread(gate.open)
    assert (await asyncio.to_thread(farm.watch, run_id))["task_states"] == {"COMPLETED": 2}


async def test_an_agent_that_says_nothing_more_loses_its_session(deployment: Deployment) -> None:
    """Its connection stands, but no heartbeat comes, of which one is due every half second."""
    deployment.start_server(config='[server]\nheartbeat = 0.5\nlease = 100\n[pools.farm]\nexecutor = "agent"\n')
    async with session(deployment, hello()) as call:
        code, details = await refusal(call)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "heartbeat" in details
    (agent,) = deployment.agents()
    assert (agent["name"], agent["state"]) == ("raw", "DISCONNECTED")


async def test_the_newer_session_of_an_agent_replaces_the_older(farm: Deployment) -> None:
    async with session(farm, hello()) as older:
        assert (await answer(older)).HasField("welcome")
        async with session(farm, hello()) as newer:
            assert (await answer(newer)).HasField("welcome")
            code, details = await refusal(older)
            assert code is grpc.StatusCode.ABORTED
            assert "newer session" in details
            (agent,) = await asyncio.to_thread(farm.agents)
            assert agent["state"] == "CONNECTED"


@pytest.mark.parametrize("role", ["client", "wrong", "none"])
def test_an_agent_without_its_token_ends_with_advice(shared: Deployment, tmp_path: Path, role: str) -> None:
    token = tmp_path / "token"
    if role != "none":
        token.write_text(shared.token() if role == "client" else "daggyr-agent-" + "x" * 43)
        token.chmod(0o600)
    agent = shared.start_agent(role, "--token-file", str(token), wait=False)
    assert agent.wait() == 2
    said = agent.said().splitlines()[-1]
    assert said.startswith("daggyr-agent: ")
    assert "token" in said
    assert token.exists() is False or token.read_text() not in agent.said()


def test_wrong_usage_of_an_agent(deployment: Deployment) -> None:
    for options, words in (
        (["--coordinator", "nowhere"], "HOST:PORT"),
        (["--coordinator", "127.0.0.1:1", "--resource", "cores=0"], "at least 1"),
        (["--coordinator", "127.0.0.1:1", "--resource", "gpus"], "NAME=UNITS"),
        (["--coordinator", "127.0.0.1:1", "--name", "a/b"], "cannot name a folder"),
        ([], "--coordinator"),
    ):
        agent = deployment.start("daggyr-agent", *options)
        assert agent.wait() == 2
        assert words in agent.said()
        assert len(agent.said().splitlines()) == 1
