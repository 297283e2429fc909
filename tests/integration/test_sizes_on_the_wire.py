"""What people chose, at any size, in trackers of earlier versions too: no other run waits for it, and all of it can be listed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from support.deployment import FARM, Deployment, task
from support.waiting import until

from daggyr.client import ServerError
from daggyr.v1 import runs_pb2 as pb
from daggyr.v1.run_pb2 import State as StateMessage
from daggyr.v1.task_pb2 import AttemptOutcome, AttemptResult, OutputSummary
from daggyr_server.core.records import AttemptRecorded, AttemptsAssigned, Record, RunAdded, RunMoved
from daggyr_server.core.states import Outcome, State
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

MEGABYTE = 1_000_000


def written(path: Path, *commits: Sequence[Record]) -> str:
    """Make a tracker in `path` with these records, as an earlier version may have left it; returns its address."""

    async def write() -> None:
        tracker = SqliteTracker(f"sqlite:{path}")
        await tracker.open()
        try:
            for records in commits:
                await tracker.commit(records)
        finally:
            await tracker.close()

    asyncio.run(write())
    return f"sqlite:{path}"


def added(run_id: int, tasks: dict[str, object], tags: dict[str, str] | None = None, submit_time: float = 1e9) -> RunAdded:
    document = json.dumps({"tasks": tasks}).encode()
    return RunAdded(run_id, f"request-{run_id}", tags or {}, "default", submit_time, document)


def ended(run_id: int, state: State = State.COMPLETED) -> RunMoved:
    return RunMoved(run_id, state, 1e9 + 1, {state: 1})


def test_a_task_that_no_message_holds_is_rejected_and_delays_nobody(deployment: Deployment) -> None:
    """Its tracker holds it from before the limit; there is a run of many small tasks beside it."""
    large = {
        "too large": {"details": {"command": ["cat"], "stdin": "x" * 4_300_000}},
        "words": {"details": {"command": ["true", *["word"] * 900_000]}},
        "fits": {"details": {"command": ["wc", "-c"], "stdin": "x" * 3_000_000}},
        "after": {"details": {"command": ["true"]}},
    }
    tracker = written(deployment.folder / "state.db", [added(1, large)])
    deployment.start_server("--workers", "2", "--tracker", tracker)
    small = deployment.complete({"t": task("true", "{{N}}")}, parameters={"{{N}}": [str(n) for n in range(1000)]})
    assert small["state"] == "COMPLETED"
    assert deployment.watch(1, code=1)["state"] == "ERRORED"
    assert deployment.states(1) == {"too large": "ERRORED", "words": "ERRORED", "fits": "COMPLETED", "after": "COMPLETED"}
    for name, size in (("too large", "4,300,0"), ("words", "5,400,0")):
        (attempt,) = deployment.task(1, name)["attempts"]
        assert attempt["outcome"] == "REJECTED"
        (note,) = attempt["executor"]
        assert f"it takes {size}" in note and "a message holds 4,194,299" in note
        assert size in deployment.why(1, name)
        assert len(json.dumps(deployment.task(1, name))) < 2 * MEGABYTE  # its details are shown cut
    assert deployment.daggyr("logs", "1", "fits").out.split() == ["3000000"]
    assert "session" not in deployment.logs() and "out of reach" not in deployment.logs()


def test_runs_with_large_tags_are_listed(deployment: Deployment) -> None:
    runs = [[added(number, {"a": task("true")}, {"text": "x" * 60_000}), ended(number)] for number in range(1, 76)]
    huge = [
        [added(number, {"a": task("true")}, {"mine": f"{number}", "text": "\N{SNOWMAN}" * 2 * MEGABYTE}), ended(number)]
        for number in range(76, 79)
    ]
    many = [added(79, {"a": task("true")}, {f"tag{number}": "x" * 100 for number in range(50_000)}), ended(79)]
    tracker = written(deployment.folder / "state.db", *runs, *huge, many)
    deployment.start_server("--workers", "1", "--tracker", tracker)
    found = deployment.json("runs")
    assert len(found) == 79
    assert deployment.daggyr("runs").code == 0
    by_id = {int(run["run_id"]): run for run in found}
    assert by_id[1]["tags"] == {"text": "x" * 60_000}
    assert by_id[77]["tags"]["mine"] == "77"
    assert by_id[77]["tags"]["text"].endswith(f"... ({6 * MEGABYTE:,} bytes in all)")
    assert by_id[77]["notes"] == ["its tags take 6,000,010 bytes and are shown cut"]
    assert 500 < len(by_id[79]["tags"]) < 1000
    (mine,) = deployment.json("runs", "--tag", "mine=77")
    assert mine["run_id"] == by_id[77]["run_id"]
    assert len(deployment.json("runs", "--tag", "tag49999=" + "x" * 100)) == 1
    assert deployment.json("show", "77")["tags"] == by_id[77]["tags"]
    assert deployment.daggyr("delete", "77").code == 0


def test_a_task_of_very_many_attempts_is_told_whole(deployment: Deployment) -> None:
    count = 2_501  # six megabytes, in more than two pages of attempts

    def attempt(number: int) -> AttemptRecorded:
        notes = ["a note of some length, as executors write " * 50]
        nothing = OutputSummary(size_bytes=0)
        result = AttemptResult(outcome=AttemptOutcome.FAILED, exit_code=1, notes=notes, stdout=nothing, stderr=nothing)
        return AttemptRecorded(1, 0, number, Outcome.FAILED, "host", "a host", 1e9, result, State.QUEUED)

    failed = AttemptResult(outcome=AttemptOutcome.FAILED, notes=["n" * 5 * MEGABYTE] * 3)
    last = AttemptRecorded(1, 0, count, Outcome.FAILED, "host", "a host", 1e9, failed, State.ERRORED)
    tasks: dict[str, object] = {"a": {"details": {"command": ["false"]}, "max_retries": count}}
    tracker = written(
        deployment.folder / "state.db",
        [added(1, tasks)],
        [AttemptsAssigned(1, "host", "a host", [0], [1], 1e9), RunMoved(1, State.RUNNING, 1e9)],
        [attempt(number) for number in range(1, count)],
        [last, ended(1, State.ERRORED)],
    )
    deployment.start_server("--workers", "1", "--tracker", tracker)
    found = deployment.task(1, "a")["attempts"]
    assert [each["attempt"] for each in found] == list(range(1, count + 1))
    assert found[-1]["executor"][2].endswith(f"({5 * MEGABYTE:,} bytes in all)")
    assert deployment.daggyr("task", "1", "a").code == 0
    assert deployment.daggyr("logs", "1", "a").code == 0
    assert deployment.daggyr("watch", "1").code == 1
    assert f"Attempt {count} ended as FAILED" in deployment.why(1, "a")


def test_tasks_of_long_names_are_listed_shown_and_watched(local: Deployment) -> None:
    names = [f"{number:04d}" + "n" * 1020 for number in range(6000)]
    tasks = {"hub": {"details": {"command": ["true"]}, "children": names}}
    tasks |= {name: {"details": {"command": ["false"]}, "parents": []} for name in names}
    run_id = int(local.daggyr("submit", "-", input=json.dumps({"tasks": tasks, "pool": "default"})).out)
    assert local.daggyr("kill", str(run_id)).code == 0
    local.watch(run_id, code=1)
    listed = local.json("tasks", str(run_id))
    assert [each["task_id"] for each in listed[1:]] == names
    hub = local.task(run_id, "hub")
    assert int(hub["child_count"]) == 6000
    assert 100 < len(hub["children"]) < 1000
    assert len(local.why(run_id, names[0])) < 100_000
    changed = {name: {"details": {"command": ["false", "x"]}} for name in names}
    plan = local.daggyr("--output", "json", "edit", str(run_id), "-", "--plan", input=json.dumps({"tasks": changed}))
    assert plan.code == 0, plan.err


async def test_a_page_token_that_is_none_is_refused(local: Deployment) -> None:
    await asyncio.to_thread(local.complete, {"a": task("true")})
    async with local.client() as client:
        stub = client._calls.stub
        for method, request in (
            (stub.ListRuns, pb.ListRunsRequest(page_token="x")),
            (stub.ListTasks, pb.ListTasksRequest(page_token="-1")),
            (stub.GetTask, pb.GetTaskRequest(task_id="a", page_token="1-2")),
            (stub.GetTask, pb.GetTaskRequest(task_id="a", page_token="1-7-1")),
            (stub.ListPools, pb.ListPoolsRequest(page_token="\N{SUPERSCRIPT TWO}")),
            (stub.ListAgents, pb.ListAgentsRequest(page_token="9" * 100)),
        ):
            with pytest.raises(ServerError) as refused:
                await client._calls.once(method, request)
            assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT, request
        run = await client.run(1)
        assert run.state == StateMessage.STATE_COMPLETED


def test_very_many_agents_are_listed(deployment: Deployment) -> None:
    """The agents are known from an earlier coordinator and have not come back yet."""
    names = [f"agent-{number:04d}" for number in range(2500)]
    tasks: dict[str, object] = {name: {"details": {"command": ["true"]}} for name in names}
    assigned = [AttemptsAssigned(1, name, name, [number], [1], 1e9) for number, name in enumerate(names)]
    run = replace(added(1, tasks), pool="farm")
    tracker = written(deployment.folder / "state.db", [run], [*assigned, RunMoved(1, State.RUNNING, 1e9)])
    deployment.start_server("--tracker", tracker, config=FARM)
    until(
        lambda: len(deployment.agents()) == len(names), "all agents: a coordinator answers before it has restored what it knows"
    )
    assert sorted(agent["name"] for agent in deployment.json("agents")) == names
    assert deployment.daggyr("pools").code == 0
