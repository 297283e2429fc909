"""Looking at runs: output while its task still runs, changes as JSON lines, lists by tag, state and time; health, reflection."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.deployment import Deployment, shell, task
from support.waiting import until

from daggyr.channel import open_channel, token_metadata


@pytest.fixture
def local(unharmed: Deployment) -> Deployment:
    """The module's server, which has a local pool of two workers, without a run."""
    return unharmed


def test_output_is_seen_while_its_task_still_runs(local: Deployment) -> None:
    gate = local.gate()
    run_id = local.submit({"a": shell(f"echo first; echo oops >&2; {gate.hold}; printf second")})
    followers = [local.command("logs", "last", "a", "-f", *options) for options in ([], ["--stderr"])]
    both = local.command("logs", "last", "-f")
    for follower, line in ((followers[0], "first\n"), (followers[1], "oops\n"), (both, "a | first\n")):
        assert follower.stdout is not None
        assert follower.stdout.readline() == line
    # Without -f, the command prints the output so far.
    until(lambda: local.daggyr("logs", "last", "a").out == "first\n", "what there is")
    local.running(run_id, "a")
    gate.open()
    assert [local.ended(follower).out for follower in followers] == ["second", ""]
    assert local.ended(both).out == "a | second\n"
    assert local.daggyr("logs", str(run_id), "a").out == "first\nsecond"


def test_following_goes_on_over_retries(local: Deployment) -> None:
    gate = local.gate()
    run_id = local.submit({"a": shell(f'echo "try $DAGGYR_ATTEMPT"; {gate.hold}; test "$DAGGYR_ATTEMPT" = 2', max_retries=1)})
    follower = local.command("logs", str(run_id), "a", "-f")
    assert follower.stdout is not None
    assert follower.stdout.readline() == "try 1\n"
    gate.open()
    assert follower.stdout.readline() == "try 2\n"
    gate.open()
    assert local.ended(follower).code == 0


def test_a_watch_as_json_lines(local: Deployment) -> None:
    """A line for each change, the first one at once, the last one with the end; each task's end is told."""
    gate = local.gate()
    run_id = local.submit({"a": shell(gate.hold), "b": shell("exit 3", parents=["a"])}, tags={"k": "v"})
    local.running(run_id, "a")
    watching = local.command("--output", "json", "watch", "last")
    assert watching.stdout is not None
    first = watching.stdout.readline()
    gate.open()
    ended = local.ended(watching)
    assert ended.code == 1
    changes = [*type(ended)(0, first, "").lines, *ended.lines]
    assert [change["run_id"] for change in changes] == [run_id] * len(changes)
    assert (changes[0]["state"], changes[0]["tags"]) == ("RUNNING", {"k": "v"})
    assert (changes[-1]["state"], changes[-1]["task_states"]) == ("ERRORED", {"COMPLETED": 1, "ERRORED": 1})
    assert [change["change_seq"] for change in changes] == sorted({change["change_seq"] for change in changes})
    last = {each["task_id"]: each for change in changes for each in change["tasks"]}
    assert (last["a"]["state"], last["b"]["state"]) == ("COMPLETED", "ERRORED")
    assert (last["b"]["outcome"], last["b"]["exit_code"]) == ("FAILED", 3)
    # A run that has ended is told of in one line.
    (line,) = local.daggyr("--output", "json", "watch", str(run_id)).lines
    assert line["state"] == "ERRORED"


def test_runs_are_found_by_tag_state_and_time(local: Deployment) -> None:
    local.complete({"a": task("true")}, tags={"env": "prod", "n": "1"})
    second = local.complete({"a": task("false")}, tags={"env": "prod", "n": "2"}, code=1)["run_id"]
    local.complete({"a": task("true")}, tags={"env": "test"})

    def found(*options: str) -> list[int]:
        return [run["run_id"] - second + 2 for run in local.json("runs", *options)]

    assert found() == [3, 2, 1]
    assert found("--tag", "env=prod") == [2, 1]
    assert found("--tag", "env=prod", "--tag", "n=2") == [2]
    assert found("--state", "completed") == [3, 1]
    assert found("--state", "completed", "--state", "errored", "--tag", "env=prod") == [2, 1]
    assert found("--since", "1h", "--until", "2199-01-01") == [3, 2, 1]
    assert found("--until", "1h") == []
    assert local.json("show", "last")["tags"] == {"env": "test"}
    assert [each["task_id"] for each in local.json("tasks", str(second), "--state", "errored")] == ["a"]
    assert local.json("tasks", str(second), "--state", "completed") == []


def test_pools_and_agents_are_listed(farm: Deployment) -> None:
    (pool,) = farm.json("pools")
    assert (pool["name"], pool["executor"], pool["is_default"], pool["hosts"]) == ("farm", "agent", True, 0)
    gate = farm.gate()
    farm.start_agent("one", "--resource", "cores=3", "--resource", "gpus=1", "--resource", "memory_mb=100")
    run_id = farm.submit({"a": shell(gate.hold, resources={"cores": 2, "gpus": 1})})
    farm.running(run_id, "a")
    (pool,) = farm.json("pools")
    assert (pool["hosts"], pool["resources"]) == (1, {"cores": 3, "gpus": 1, "memory_mb": 100})
    assert (pool["used"]["cores"], pool["used"]["gpus"], pool["running"]) == (2, 1, 1)
    (agent,) = farm.json("agents")
    assert (agent["name"], agent["state"], agent["pool"], agent["running"]) == ("one", "CONNECTED", "farm", 1)
    assert agent["resources"] == {"cores": 3, "gpus": 1, "memory_mb": 100}
    gate.open()
    farm.watch(run_id)


async def test_health_and_reflection(local: Deployment) -> None:
    async with open_channel(local.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "daggyr.v1.Runs", "daggyr.v1.Agents"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))  # without a token, as probes do
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([request]), metadata=token_metadata(local.token()))
        (listed,) = [answer async for answer in call]
        names = {service.name for service in listed.list_services_response.service}
        assert {"daggyr.v1.Runs", "daggyr.v1.Agents", "grpc.health.v1.Health"} <= names
        refused = stub.ServerReflectionInfo(iter([request]))
        assert await refused.code() is grpc.StatusCode.UNAUTHENTICATED
