"""What commands print: JSON to the letter of the design, tables that a person reads, and results on standard output only."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from daggyr_program import Daggyr, Start
from scripted_server import COMPLETED, ERRORED, KILLED, TOKEN, ScriptedRun, ScriptedServer, stamp
from support.waiting import DEADLINE

from daggyr.v1 import runs_pb2 as pb
from daggyr.v1.run_pb2 import State, TaskType
from daggyr.v1.task_pb2 import STDERR

SPEC = {"tasks": {"a": {"details": {"command": ["true"]}}, "b": {"details": {"command": ["true"]}}}}


@pytest.fixture
async def failed(server: ScriptedServer) -> ScriptedRun:
    """A run with a head, a task that fails after a retry, and a task that never starts."""
    run = server.new_run("a", "b", "c", "d", tags={"env": "test", "note": "x\x1b[2J"}, pool="farm")
    run.add("head", task_type=TaskType.TASK_TYPE_STRUCTURAL)
    await run.start("a")
    await run.write("a", b"caf\xc3\xa9 \xff\n")
    await run.write("a", b"end\n", missing=10)
    await run.finish("a")
    await run.start("b")
    await run.finish("b", exit_code=2, state=ERRORED, again=True)
    await run.start("b")
    await run.write("b", b"no such file\n", stream=STDERR)
    await run.finish("b", ERRORED, exit_code=3, notes=("its patience ended",))
    await run.end(ERRORED)
    run.tasks["b"].task.parents.append("a")
    run.tasks["b"].task.parent_count = 1
    run.tasks["b"].task.details.timeout.FromMilliseconds(1500)
    run.tasks["b"].task.retry_delay.FromSeconds(5)
    run.tasks["b"].task.max_retries = 1
    run.tasks["b"].task.details.stdin = ""
    return run


async def test_submit_prints_the_id_and_nothing_else(daggyr: Daggyr, server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    ended = await daggyr("submit", "--tag", "k=v", "--tag", "l=w=x", "--pool", "farm", "spec.json")
    assert (ended.code, ended.out, ended.err) == (0, "1\n", "")
    assert dict(server.headers[0].tags) == {"k": "v", "l": "w=x"}
    assert server.headers[0].pool == "farm"
    ended = await daggyr("--output", "json", "submit", "-", stdin=json.dumps(SPEC).encode())
    assert (ended.code, ended.json) == (0, {"run_id": 2})
    assert list(server.runs[2].tasks) == ["a", "b"]


async def test_yaml_is_known_by_its_name_and_on_standard_input_by_its_beginning(
    daggyr: Daggyr, server: ScriptedServer, tmp_path: Path
) -> None:
    text = "tasks:\n  a:\n    details: {command: [echo, no]}\n"
    (tmp_path / "spec.yml").write_text(text)
    assert (await daggyr("submit", "spec.yml")).out == "1\n"
    assert (await daggyr("submit", "-", stdin=text.encode())).out == "2\n"
    assert [list(run.tasks) for run in server.runs.values()] == [["a"], ["a"]]


async def test_a_submission_is_repeated_and_says_so(daggyr: Daggyr, server: ScriptedServer) -> None:
    server.lose_next_answer = True
    ended = await daggyr("submit", "-", stdin=json.dumps(SPEC).encode())
    assert (ended.code, ended.out) == (0, "1\n")
    assert ended.err == "daggyr: no connection to the server; trying again\n"
    assert len(server.runs) == 1


async def test_runs(daggyr: Daggyr, server: ScriptedServer, failed: ScriptedRun) -> None:
    for number in range(4):
        server.new_run("x", tags={"number": str(number)})
    ended = await daggyr("--output", "json", "runs")
    assert [run["run_id"] for run in ended.json] == [5, 4, 3, 2, 1]
    assert ended.json[-1]["state"] == "ERRORED"
    ended = await daggyr("runs", "--state", "errored", "--state", "KILLED", "--since", "2d", "--until", "2099-01-01")
    heading, row = ended.out.splitlines()
    assert heading.split() == ["RUN", "STATE", "TASKS", "SUBMITTED", "TOOK", "TAGS"]
    assert row == "  1  ERRORED    2/5  2023-11-14 22:13:21  1 min 0 s  env=test note=x\\x1b[2J"
    request = server.calls[-1][1]
    assert list(request.states) == [ERRORED, KILLED]
    assert request.until.seconds == 4_070_908_800
    assert (await daggyr("runs", "--tag", "number=2", "--output", "json")).json[0]["run_id"] == 4
    assert (await daggyr("runs", "--tag", "number=9")).out == ""
    assert (await daggyr("--output", "json", "runs", "--tag", "number=9")).json == []


async def test_one_runs_tags_do_not_fill_the_list_of_all(daggyr: Daggyr, server: ScriptedServer) -> None:
    server.new_run("x", tags={"long": "v" * 60_000})
    server.new_run("x", tags={"fits": "v" * 495})
    fits, long = (await daggyr("runs")).out.splitlines()[1:]
    assert fits.endswith(" fits=" + "v" * 495)
    assert long.endswith("v... (60,005 letters; `daggyr show 1` has all)") and len(long) < 700
    assert len((await daggyr("--output", "json", "runs")).json[1]["tags"]["long"]) == 60_000
    assert "v" * 60_000 in (await daggyr("show", "1")).out


async def test_show(daggyr: Daggyr, failed: ScriptedRun) -> None:
    failed.summary.notes.append("waits for 64 cores, which no agent has")
    failed.summary.blocked = 2
    shown = (await daggyr("--output", "json", "show", "last")).json
    assert shown == {
        "run_id": 1,
        "state": "ERRORED",
        "tags": {"env": "test", "note": "x\x1b[2J"},
        "task_states": {"QUEUED": 3, "COMPLETED": 1, "ERRORED": 1},
        "submit_time": "2023-11-14T22:13:21Z",
        "start_time": "2023-11-14T22:15:00Z",
        "stop_time": "2023-11-14T22:16:00Z",
        "ran_seconds": None,
        "pool": "farm",
        "revision": 1,
        "change_seq": failed.summary.change_seq,
        "ready": 0,
        "delayed": 0,
        "blocked": 2,
        "damage": None,
        "notes": ["waits for 64 cores, which no agent has"],
        "history": [],
    }
    ended = await daggyr("show", "1")
    assert ended.code == 0
    assert "Run 1  ERRORED" in ended.out
    assert "took       1 min 0 s" in ended.out, "a server that is older tells no more than start and end"
    failed.summary.ran_seconds = 12.5
    assert "took       12.5 s" in (await daggyr("show", "1")).out
    assert (await daggyr("--output", "json", "show", "1")).json["ran_seconds"] == 12.5
    assert "5: 3 QUEUED, 1 COMPLETED, 1 ERRORED" in ended.out
    assert "for other tasks" not in ended.out, "an ended run waits for nothing"
    assert "waits for 64 cores, which no agent has" in ended.out
    assert "\x1b" not in ended.out


async def test_a_run_that_has_not_started_has_no_times(daggyr: Daggyr, server: ScriptedServer) -> None:
    run = server.new_run("a")
    run.summary.ready, run.summary.blocked = 1, 1236  # structural tasks are counted too, though the table does not show them
    run.summary.command_states["QUEUED"] = 1235
    shown = (await daggyr("show", "1")).out
    assert "1 for capacity, 1,234 for other tasks" in shown
    assert "started" not in shown
    shown = (await daggyr("--output", "json", "show", "1")).json
    assert (shown["start_time"], shown["stop_time"]) == (None, None)


async def test_tasks(daggyr: Daggyr, failed: ScriptedRun) -> None:
    ended = await daggyr("--output", "json", "tasks", "last")
    assert [task["task_id"] for task in ended.json] == ["a", "b", "c", "d", "head"]
    assert ended.json[1] == {
        "task_id": "b",
        "task_number": 1,
        "state": "ERRORED",
        "task_type": "COMMAND",
        "attempt_count": 2,
        "pool": "farm",
        "stdout_bytes": None,
        "stderr_bytes": None,
    }
    assert ended.json[4]["task_type"] == "STRUCTURAL"
    ended = await daggyr("tasks", "last", "--state", "errored")
    assert [line.split() for line in ended.out.splitlines()] == [
        ["TASK", "STATE", "TYPE", "ATTEMPTS", "POOL"],
        ["b", "ERRORED", "command", "2", "farm"],
    ]
    assert len((await daggyr("tasks", "1")).out.splitlines()) == 6


async def test_task(daggyr: Daggyr, failed: ScriptedRun) -> None:
    shown = (await daggyr("--output", "json", "task", "last", "b")).json
    assert {key: shown[key] for key in ("task_id", "state", "task_type", "attempt_count", "parents", "retry_delay")} == {
        "task_id": "b",
        "state": "ERRORED",
        "task_type": "COMMAND",
        "attempt_count": 2,
        "parents": ["a"],
        "retry_delay": 5,
    }
    assert shown["details"] == {
        "command": ["echo", "b"],
        "environment": {},
        "working_directory": "",
        "stdin": "",
        "timeout": 1.5,
        "resources": {"cores": 1},
    }
    first, second = shown["attempts"]
    assert (first["attempt"], first["outcome"], first["exit_code"], first["stderr"]) == (1, "FAILED", 2, "")
    assert second == {
        "attempt": 2,
        "outcome": "FAILED",
        "exit_code": 3,
        "signal": None,
        "stdout": "",
        "stderr": "no such file\n",
        "stdout_size": {"size_bytes": 0, "cut_bytes": 0, "incomplete": False},
        "stderr_size": {"size_bytes": 13, "cut_bytes": 0, "incomplete": False},
        "assign_time": None,
        "start_time": "2023-11-14T22:15:00Z",
        "stop_time": "2023-11-14T22:15:01.500Z",
        "cpu_seconds": 0.25,
        "max_rss_bytes": 3 * 1024 * 1024,
        "host": "h1",
        "placement": {"host": "agent-1", "job": None, "node": None, "state": None, "reason": None},
        "executor": ["its patience ended"],
    }
    output = (await daggyr("--output", "json", "task", "1", "a")).json["attempts"][0]["stdout"]
    assert output == "café \ufffd\n[... 10 bytes not kept ...]\nend\n"
    ended = await daggyr("task", "1", "b")
    assert "Task b  ERRORED" in ended.out
    assert "echo b" in ended.out
    assert "FAILED, exit code 3" in ended.out
    assert "its patience ended" in ended.out
    assert "  no such file" in ended.out
    head = (await daggyr("--output", "json", "task", "1", "head")).json
    assert (head["details"], head["attempts"]) == (None, [])
    assert "structural" in (await daggyr("task", "1", "head")).out


async def test_a_running_attempt_has_no_outcome(daggyr: Daggyr, server: ScriptedServer) -> None:
    await server.new_run("a").start("a")
    attempt = (await daggyr("--output", "json", "task", "1", "a")).json["attempts"][0]
    assert (attempt["outcome"], attempt["exit_code"], attempt["stop_time"]) == (None, None, None)
    assert attempt["start_time"] == "2023-11-14T22:15:00Z"
    assert " running " in (await daggyr("task", "1", "a")).out


async def test_why(daggyr: Daggyr, failed: ScriptedRun) -> None:
    reasons = ["It waits for task a, which is RUNNING.", "Then it needs 1 core in pool default."]
    shown = (await daggyr("--output", "json", "why", "last", "c")).json
    assert shown == {"run_id": 1, "task_id": "c", "state": "QUEUED", "reasons": reasons}
    assert (await daggyr("why", "last", "c")).out.splitlines() == ["Task c of run 1 (QUEUED):", *reasons]


async def test_kill_and_retry(daggyr: Daggyr, server: ScriptedServer) -> None:
    run = server.new_run("a", "b", "c")
    await run.start("a")
    await run.start("b")
    ended = await daggyr("--output", "json", "kill", "last", "a")
    assert ended.json["task_states"] == {"QUEUED": 1, "RUNNING": 1, "KILLED": 1}
    ended = await daggyr("kill", "1")
    assert ended.code == 0
    assert "Run 1  KILLED" in ended.out
    ended = await daggyr("--output", "json", "retry", "1", "--task", "a", "--task", "b", "--downstream")
    assert (ended.code, ended.json["state"]) == (0, "QUEUED")
    request = server.calls[-1][1]
    assert (list(request.tasks), request.downstream) == (["a", "b"], True)


async def test_mark(daggyr: Daggyr, failed: ScriptedRun, server: ScriptedServer) -> None:
    ended = await daggyr("--output", "json", "mark", "last", "b", "completed")
    assert (ended.code, ended.json["state"], ended.json["stop_time"]) == (0, "QUEUED", None)
    assert ended.json["task_states"] == {"QUEUED": 3, "COMPLETED": 2}
    assert {**ended.json, "history": []} == (await daggyr("--output", "json", "show", "1")).json
    ended = await daggyr("mark", "1", "a", "QUEUED")
    assert (ended.code, "Run 1  QUEUED" in ended.out) == (0, True)
    marks = [request for method, request in server.calls if method == "MarkTasks"]
    assert [(mark.run_id, list(mark.tasks), mark.state) for mark in marks] == [
        (0, ["b"], COMPLETED),
        (1, ["a"], State.STATE_QUEUED),
    ]


async def test_delete_and_prune(daggyr: Daggyr, server: ScriptedServer) -> None:
    for _ in range(5):
        await server.new_run("a").end()
    server.new_run("a")
    ended = await daggyr("delete", "2")
    assert (ended.code, ended.out, ended.err) == (0, "run 2 is deleted\n", "")
    assert (await daggyr("--output", "json", "delete", "1")).json == {"run_id": 1}
    assert list(server.runs) == [3, 4, 5, 6]
    assert (await daggyr("prune", "--older-than", "2023-11-01")).out == "0 runs deleted\n"
    async with server.runs[4].changed:
        server.runs[4].summary.stop_time.seconds += 1_000_000_000
    assert (await daggyr("--output", "json", "prune", "--older-than", "30d")).json == {"runs": 2}
    assert list(server.runs) == [4, 6], "what ended later, and what has not ended, stays"
    assert (await daggyr("prune", "--older-than", "2099-01-01")).out == "1 run deleted\n"
    for method in ("DeleteRun", "PruneRuns"):
        assert server.time_limits[method] is None, "a large history may take its time"


async def test_prune_goes_on_until_all_are_gone_and_tells_of_it(daggyr: Daggyr, server: ScriptedServer) -> None:
    server.most_pruned = 2
    for _ in range(5):
        await server.new_run("a").end()
    ended = await daggyr("prune", "--older-than", "2099-01-01")
    assert (ended.code, ended.out) == (0, "5 runs deleted\n")
    assert ended.err.splitlines() == [f"{count} deleted so far" for count in ("2 runs", "4 runs")]
    assert not server.runs


async def test_pools_agents_and_drain(daggyr: Daggyr, server: ScriptedServer) -> None:
    server.pools.append(
        pb.Pool(name="farm", executor="agent", is_default=True, hosts=2, resources={"cores": 8}, used={"cores": 3}, ready=1234)
    )
    server.agents.append(
        pb.Agent(
            name="h1", agent_id="id", pool="farm", state=pb.AGENT_STATE_DRAINING, resources={"cores": 8}, running=3,
            last_seen=stamp(1_700_000_000), memory_available_bytes=2**31, load_average=1.5, cpu_percent=50,
        )
    )  # fmt: skip
    pool = (await daggyr("--output", "json", "pools")).json[0]
    assert (pool["name"], pool["is_default"], pool["resources"], pool["ready"]) == ("farm", True, {"cores": 8}, 1234)
    assert "farm (default)  agent" in (await daggyr("pools")).out
    agent = (await daggyr("--output", "json", "agents")).json[0]
    assert (agent["name"], agent["state"], agent["last_seen"]) == ("h1", "DRAINING", "2023-11-14T22:13:20Z")
    assert agent["connect_time"] is None
    assert "2.0 GiB" in (await daggyr("agents")).out
    assert (await daggyr("agent", "drain", "h1")).out == "agent h1 drains; 2 tasks still to finish\n"
    assert (await daggyr("--output", "json", "agent", "drain", "h1")).json == {"name": "h1", "running": 2}


async def test_logs_are_raw_and_mark_what_is_missing(daggyr: Daggyr, failed: ScriptedRun) -> None:
    ended = await daggyr("logs", "last", "a")
    assert ended.out.encode("utf-8", "surrogateescape") == b"caf\xc3\xa9 \xff\n[... 10 bytes not kept ...]\nend\n"
    assert ended.err == ""
    ended = await daggyr("logs", "last", "b")
    said = "nothing on standard output; standard error is not shown, 13 bytes: --stderr shows it, --both shows both"
    assert (ended.out, ended.err) == ("", f"daggyr: {said}\n")
    assert (await daggyr("--output", "json", "logs", "1", "b", "--stderr")).out == "no such file\n"


async def test_logs_of_a_run_name_the_task_before_each_line(daggyr: Daggyr, server: ScriptedServer) -> None:
    run = server.new_run("a", "b", "c")
    for name in ("a", "b"):
        await run.start(name)
        await run.write(name, f"{name} be".encode())
        await run.write(name, b"gins\nand ends")
        await run.finish(name)
    expected = "a | a begins\na | and ends\nb | b begins\nb | and ends\n"
    assert (await daggyr("logs", "1")).out == expected


@pytest.mark.parametrize("follow", [[], ["-f"]])
async def test_logs_tell_of_the_stream_that_they_do_not_show(daggyr: Daggyr, server: ScriptedServer, follow: list[str]) -> None:
    run = server.new_run("a", "b")
    for name in ("a", "b"):
        await run.start(name)
        await run.write(name, b"out\n")
        if name == "a":
            await run.write(name, b"error\n", stream=STDERR)
        await run.finish(name)
    await run.end()
    ended = await daggyr("logs", "1", "a", *follow)
    assert (ended.out, ended.err) == (
        "out\n",
        "daggyr: standard error is not shown, 6 bytes: --stderr shows it, --both shows both\n",
    )
    ended = await daggyr("logs", "1", "a", "--stderr", *follow)
    assert (ended.out, "standard output is not shown, 4 bytes: leave out --stderr" in ended.err) == ("error\n", True)
    ended = await daggyr("logs", "1", "a", "--both", *follow)
    assert (ended.out, ended.err) == ("out\n", "error\n")
    ended = await daggyr("logs", "1", "--both", *follow)
    assert (sorted(ended.out.splitlines()), ended.err) == (["a | out", "b | out"], "a | error\n")
    ended = await daggyr("logs", "1", *follow)
    assert "daggyr: standard error is not shown, 6 bytes of 1 task: --stderr shows it" in ended.err
    assert (await daggyr("logs", "1", "b", *follow)).err == ""
    assert (await daggyr("logs", "1", "--both", "--stderr")).code == 2


@pytest.mark.parametrize("tells", [True, False], ids=["sizes", "a server before 0.2"])
async def test_logs_of_a_run_ask_only_for_tasks_that_wrote_something(daggyr: Daggyr, server: ScriptedServer, tells: bool) -> None:
    run = server.new_run("silent", "out", "error", "runs")
    for name in run.tasks:
        await run.start(name)
    await run.write("out", b"line\n")
    await run.write("error", b"trouble\n", stream=STDERR)
    await run.write("runs", b"so far\n")
    for name in ("silent", "out", "error"):
        await run.finish(name)
        if tells:
            result, summary = run.tasks[name].task.attempts[-1].result, run.tasks[name].summary
            summary.stdout_bytes, summary.stderr_bytes = result.stdout.size_bytes, result.stderr.size_bytes
    ended = await daggyr("logs", "1")
    assert ended.out == "out | line\nruns | so far\n"
    assert ended.err == "daggyr: standard error is not shown, 8 bytes of 1 task: --stderr shows it, --both shows both\n"
    listed = [request for method, request in server.calls if method == "ListTasks"]
    assert all(request.output_sizes for request in listed)
    asked = [request.task_id for method, request in server.calls if method == "ReadOutput"]
    assert asked == (["out", "runs"] if tells else list(run.tasks))
    tasks = {task["task_id"]: task for task in (await daggyr("--output", "json", "tasks", "1")).json}
    sizes = [(tasks[name]["stdout_bytes"], tasks[name]["stderr_bytes"]) for name in run.tasks]
    assert sizes == [(0, 0), (5, 0), (0, 8), (None, None)] if tells else [(None, None)] * 4


async def test_logs_of_an_expanded_task_are_those_of_its_expansions(daggyr: Daggyr, server: ScriptedServer) -> None:
    run = server.new_run("before")
    run.add("t", task_type=TaskType.TASK_TYPE_STRUCTURAL)
    run.add("t.X:1", "t.X:2")
    run.add("t.tail", task_type=TaskType.TASK_TYPE_STRUCTURAL)
    run.add("t.after")
    for name in ("before", "t.X:1", "t.X:2", "t.after"):
        await run.start(name)
        await run.write(name, b"line\n")
        await run.finish(name)
    await run.end()
    assert (await daggyr("logs", "1", "t")).out == "t.X:1 | line\nt.X:2 | line\n"
    followed = (await daggyr("logs", "1", "t", "-f")).out
    assert sorted(followed.splitlines()) == ["t.X:1 | line", "t.X:2 | line"]
    ended = await daggyr("logs", "1", "t.tail")
    assert ended.code == 2
    assert "runs nothing" in ended.err


async def test_a_reader_that_goes_away_ends_the_output_quietly(start: Start, server: ScriptedServer) -> None:
    run = server.new_run("a")
    await run.start("a")
    for _ in range(20):
        await run.write("a", b"x" * 250_000)
    process = await start("logs", "1", "a", "-f", "--server", f"127.0.0.1:{server.port}")
    assert process.process.stdout is not None
    await process.process.stdout.readexactly(10)
    process.process.stdout._transport.close()  # type: ignore[attr-defined]
    assert process.process.stderr is not None
    assert await asyncio.wait_for(process.process.stderr.read(), DEADLINE) == b""
    assert await process.process.wait() == 0


async def test_a_unix_socket_needs_no_token_of_its_own(start: Start, tmp_path: Path) -> None:
    server = ScriptedServer()
    await server.start(socket=str(tmp_path / "socket"))
    server.new_run("a")
    ended = await (await start("show", "1", "--server", f"unix:{tmp_path}/socket")).ended()
    assert (ended.code, "wants a valid token" in ended.err) == (2, True)  # the token was not sent
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    ended = await (await start("--token-file", str(token), "show", "1", "--server", f"unix:{tmp_path}/socket")).ended()
    assert ended.code == 0
    ended = await (
        await start("show", "1", env={"DAGGYR_TOKEN_FILE": str(token), "DAGGYR_SERVER": f"unix:{tmp_path}/socket"})
    ).ended()
    assert ended.code == 0
    await server.stop()


async def test_options_win_over_the_environment(daggyr: Daggyr, server: ScriptedServer, nowhere: str) -> None:
    await server.new_run("a").complete()
    address = f"127.0.0.1:{server.port}"
    elsewhere = {"DAGGYR_SERVER": nowhere}
    assert (await daggyr("--server", address, "show", "1", env=elsewhere)).code == 0
    assert (await daggyr("--server", nowhere, "show", "1", "--server", address)).code == 0
    assert (await daggyr("show", "1", env=elsewhere)).code == 3


async def test_validate_needs_no_server(daggyr: Daggyr, tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(SPEC))
    (tmp_path / "bad.yaml").write_text("tasks:\n  a:\n    details: {command: []}\n    parents: [nowhere]\n    chidlren: []\n")
    nowhere = {"DAGGYR_SERVER": "127.0.0.1:1"}
    ended = await daggyr("validate", "good.json", env=nowhere)
    assert (ended.code, ended.out, ended.err) == (0, "good.json is valid: 2 tasks\n", "")
    shown = (await daggyr("--output", "json", "validate", "good.json", env=nowhere)).json
    assert shown == {"valid": True, "task_count": 2, "faults": [], "warnings": []}
    ended = await daggyr("validate", "bad.yaml", env=nowhere)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("daggyr: bad.yaml is refused:\n")
    for word in ("chidlren", "nowhere", "command"):
        assert word in ended.err
    ended = await daggyr("--output", "json", "validate", "bad.yaml", env=nowhere)
    assert (ended.code, ended.json["valid"], len(ended.json["faults"])) == (2, False, len(ended.err.splitlines()) - 1)


DATED = """
parameters: {"{{DATE}}": ["2026-01-01"]}
tasks: {a: {details: {command: [x, "{{DATE}}"]}}}
"""


async def test_parameters_get_other_values(daggyr: Daggyr, server: ScriptedServer, tmp_path: Path) -> None:
    """A date on the command line, and a file of dates, for every command that takes a specification."""
    (tmp_path / "spec.yaml").write_text(
        'parameters: {"{{DATE}}": ["2026-01-01"]}\ntasks: {a: {details: {command: [x, "{{DATE}}"]}}}\n'
    )
    (tmp_path / "dates").write_bytes(b"2026-02-01\r\n2026-02-02\n\n")

    async def commands(*params: str) -> list[str]:
        shown = await daggyr("--output", "json", "expand", "spec.yaml", *params)
        return [task["details"]["command"][1] for task in shown.json if task["details"]]

    assert await commands() == ["2026-01-01"]
    assert await commands("--param", "DATE=2026-02-28") == ["2026-02-28"]
    assert await commands("--param", "{{DATE}}=a=b") == ["a=b"]
    assert await commands("--param", "DATE=@dates") == ["2026-02-01", "2026-02-02"]
    assert (await daggyr("validate", "spec.yaml", "--param", "DATE=@dates")).out == "spec.yaml is valid: 2 tasks\n"
    assert (await daggyr("submit", "spec.yaml", "--param", "DATE=@dates")).code == 0
    assert json.loads(server.documents[-1])["parameters"] == {"{{DATE}}": ["2026-02-01", "2026-02-02"]}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (["DAET=1"], "daggyr: spec.yaml is refused: --param DAET: the run has no such parameter; did you mean `DATE`?\n"),
        (["DATE=1", "DATE=2"], "--param DATE is given twice: for several values, name a file with one a line, NAME=@FILE"),
        (["DATE="], "'DATE=' gives no value: write NAME=VALUE, or leave the option out"),
        (["DATE"], "'DATE' is no parameter: write NAME=VALUE, or NAME=@FILE for a value in each line"),
        (["=1"], "'=1' is no parameter"),
        (["DATE=@nowhere"], "--param DATE: cannot read nowhere: No such file or directory"),
        (["DATE=@"], "--param DATE: cannot read a file without a name: No such file or directory"),
        (["DATE=@."], "--param DATE: cannot read .: Is a directory"),
        (["DATE=@empty"], "--param DATE: the file empty has no value: write one a line"),
        (["DATE=@latin"], "--param DATE: the file latin is no UTF-8: save it so"),
        (["DATE=@twice"], "parameters.{{DATE}}: the list has `1` more than once; each value makes a task of its own"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "expand"])
async def test_parameters_that_are_none(daggyr: Daggyr, tmp_path: Path, command: str, params: list[str], said: str) -> None:
    (tmp_path / "spec.yaml").write_text(
        'parameters: {"{{DATE}}": ["2026-01-01"]}\ntasks: {a: {details: {command: [x, "{{DATE}}"]}}}\n'
    )
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "latin").write_bytes(b"\xe9\n")
    (tmp_path / "twice").write_text("1\n2\n1\n")
    ended = await daggyr(command, "spec.yaml", *(word for param in params for word in ("--param", param)))
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


async def test_expand_needs_no_server(daggyr: Daggyr, tmp_path: Path) -> None:
    spec = {
        "parameters": {"{{DATE}}": ["2022-01-01", "2022-01-02"]},
        "pool": "farm",
        "tasks": {
            "a": {"details": {"command": ["echo", "{{DATE}}"], "timeout": 2.5}, "children": ["b"], "max_retries": 2},
            "b": {"details": {"command": ["echo", "it's done"]}, "priority": 7, "is_generator": True},
        },
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    tasks = {task["task_id"]: task for task in (await daggyr("--output", "json", "expand", "spec.json")).json}
    assert set(tasks) == {"a", "a.{{DATE}}:2022-01-01", "a.{{DATE}}:2022-01-02", "a.tail", "b"}
    first = tasks["a.{{DATE}}:2022-01-01"]
    assert first["details"]["command"] == ["echo", "2022-01-01"]
    assert (first["details"]["timeout"], first["details"]["resources"]) == (2.5, {"cores": 1})
    assert (first["parents"], first["children"], first["pool"], first["max_retries"]) == (["a"], ["a.tail"], "farm", 2)
    assert (tasks["a"]["task_type"], tasks["a"]["details"], tasks["a"]["child_count"]) == ("STRUCTURAL", None, 2)
    assert (tasks["b"]["task_type"], tasks["b"]["parents"], tasks["b"]["priority"]) == ("GENERATOR", ["a.tail"], 7)
    lines = (await daggyr("expand", "spec.json")).out.splitlines()
    assert lines[0].split() == ["TASK", "TYPE", "PARENTS", "COMMAND"]
    assert any(line.endswith("""echo 'it'"'"'s done'""") for line in lines)


async def test_submit_watch_as_json_is_the_run(daggyr: Daggyr, server: ScriptedServer) -> None:
    async def complete() -> None:
        await (await server.next_submitted()).complete()

    completing = asyncio.create_task(complete())
    ended = await daggyr("--output", "json", "submit", "--watch", "-", stdin=json.dumps(SPEC).encode())
    await completing
    assert ended.code == 0
    assert (ended.json["run_id"], ended.json["state"]) == (1, "COMPLETED")
    assert ended.json["task_states"] == {"COMPLETED": 2}
    assert ended.err.splitlines()[0] == "run 1 accepted: 2 tasks"
    assert ended.err.splitlines()[-1].startswith("run 1 COMPLETED in ")


@pytest.mark.parametrize(("state", "code"), [(COMPLETED, 0), (ERRORED, 1), (KILLED, 1)])
async def test_watch_exits_with_the_end_of_the_run(daggyr: Daggyr, server: ScriptedServer, state: State, code: int) -> None:
    await server.new_run("a").end(state)
    assert (await daggyr("watch", "last")).code == code
    assert (await daggyr("--output", "json", "watch", "1")).code == code
