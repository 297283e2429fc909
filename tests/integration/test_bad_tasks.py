"""Tasks that misbehave: they cannot be started, print rubbish, far too much or no text, or leave processes behind.

Whatever they do, the server goes on. The fixture `standing` tests that after each test.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.deployment import Deployment, shell, task, words
from support.waiting import is_gone, until

GENERATED = {"details": {"command": ["true"]}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One server for all that generators print."""
    made = Deployment(tmp_path_factory.mktemp("generators"))
    made.start_server("--workers", "2")
    try:
        yield made
        made.goes_on()
    finally:
        made.close()


def test_a_program_that_does_not_exist(standing: Deployment) -> None:
    """The task is not tried again, whatever retries it has."""
    run = standing.complete({"a": task("no-such-program", max_retries=3), "b": task("/dev/null")}, code=1)
    assert (run["state"], run["task_states"]) == ("ERRORED", {"ERRORED": 2})
    missing, forbidden = (standing.task(1, name) for name in "ab")
    (attempt,) = missing["attempts"]
    assert (missing["state"], attempt["outcome"], attempt["exit_code"]) == ("ERRORED", "REJECTED", None)
    assert "no-such-program" in attempt["executor"][0]
    assert "ermission" in forbidden["attempts"][0]["executor"][0]
    assert "no-such-program" in standing.why(1, "a")
    # Commands that watch tell of it as well.
    assert "task a ERRORED: REJECTED" in standing.daggyr("watch", "1").err


def test_a_folder_that_does_not_exist(standing: Deployment) -> None:
    standing.complete({"a": task("true", working_directory="nowhere")}, code=1)
    (attempt,) = standing.task(1, "a")["attempts"]
    assert attempt["outcome"] == "REJECTED"
    assert "nowhere" in attempt["executor"][0]


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        (b"done.\n", "the document is no JSON"),
        (b"", "the document is empty"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1, 2]", "an object (in braces) is needed"),
        (b'{"new": {"command": ["true"]}}', "`command` belongs inside `details`"),
        (json.dumps({"new": {**GENERATED, "parents": ["nowhere"]}}).encode(), "there is no task `nowhere`"),
        (json.dumps({"after": GENERATED}).encode(), "after"),  # clashes with a task of the run
        (json.dumps({"made.tail": GENERATED}).encode(), "made.tail"),  # clashes with what another expands to
        (
            json.dumps({"x": {**GENERATED, "parents": ["y"]}, "y": {**GENERATED, "parents": ["x"]}}).encode(),
            "x -> y -> x",
        ),
        (json.dumps({"x": {**GENERATED, "children": ["plan"]}}).encode(), "plan"),  # not a descendant: a cycle
        (json.dumps({"x": {"details": {"command": ["true"]}, "pool": "nope"}}).encode(), "there is no pool `nope`"),
    ],
)
def test_a_generator_that_prints_rubbish(shared: Deployment, printed: bytes, reason: str) -> None:
    (shared.work / "printed").write_bytes(printed)
    run = shared.complete(
        {
            "plan": task("cat", "printed", is_generator=True, max_retries=2, children=["after"]),
            "after": task("true"),
            "made": task("echo", "{{X}}"),
        },
        code=1,
        parameters={"{{X}}": ["1", "2"]},
    )
    assert (run["state"], run["revision"]) == ("ERRORED", 1)
    assert shared.states(run["run_id"]) == {
        "plan": "ERRORED",
        "after": "QUEUED",
        **dict.fromkeys(["made", "made.{{X}}:1", "made.{{X}}:2", "made.tail"], "COMPLETED"),
    }
    attempts = shared.task(run["run_id"], "plan")["attempts"]
    assert attempts[-1]["executor"], attempts
    assert reason in "\n".join(attempts[-1]["executor"])  # a fault a line
    assert reason in shared.why(run["run_id"], "plan")
    assert attempts[-1]["stdout"] == printed.decode(errors="replace")


def test_a_generator_that_prints_more_than_is_taken(standing: Deployment) -> None:
    standing.complete({"plan": shell("head -c 65M /dev/zero", is_generator=True)}, code=1)
    (attempt,) = standing.task(1, "plan")["attempts"]
    assert "68,157,440 bytes; the most is 67,108,864" in attempt["executor"][-1]


def test_a_gigabyte_of_output(farm: Deployment) -> None:
    """Neither the agent's disk nor any program's memory takes all of it. Its beginning and end are kept, and the cut is marked.

    The task writes it in pieces, each once the piece before is off the disk but for what is kept.
    """
    state = farm.folder / "agent"
    agent = farm.start_agent("one", "--state-dir", str(state))
    pieces = (
        "for i in 1 2 3 4 5 6 7 8; do head -c 128M /dev/zero{0}; echo > {1}$i; until [ -e {1}$i.go ]; do sleep 0.02; done; done"
    )
    out, err = pieces.format("", "out"), pieces.format(" >&2", "err")
    run_id = farm.submit({"a": shell(f"echo begin; {out}; printf end", priority=1), "b": shell(err)})
    for name in (f"{stream}{number}" for stream in ("out", "err") for number in range(1, 9)):
        until((farm.work / name).exists, f"the piece {name}")
        until(lambda: sum(map(_blocks, (state / "output").iterdir())) < 8 << 20, f"less on the agent's disk after {name}")
        (farm.work / f"{name}.go").touch()
    assert farm.watch(run_id)["task_states"] == {"COMPLETED": 2}
    server = farm.programs[0]
    for program, bound in ((agent, 200 << 20), (server, 200 << 20)):
        peak = _peak_memory(program.pid)
        assert peak < bound, f"{program.name} had {peak:,} bytes"
    attempt = farm.task(run_id, "a")["attempts"][0]
    size = attempt["stdout_size"]
    assert size["size_bytes"] == 1073741824 + 9
    begin, mark, end = re.split(rb"\n(\[.*\])\n", farm.bytes("logs", str(run_id), "a"))
    assert str(size["cut_bytes"]).encode() in mark
    assert len(begin) + len(end) == size["size_bytes"] - size["cut_bytes"] <= 1 << 20
    assert begin.startswith(b"begin\n\0\0")
    assert end.endswith(b"\0\0end")
    farm.goes_on()


def _blocks(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_output_that_is_no_text_comes_back_byte_for_byte(standing: Deployment) -> None:
    data = random.Random(1).randbytes(300_000)
    (standing.work / "data").write_bytes(data)
    standing.complete({"a": shell("cat data; head -c 1000 data >&2")})
    assert standing.bytes("logs", "1", "a") == data
    assert standing.bytes("logs", "1", "a", "--stderr") == data[:1000]
    assert standing.task(1, "a")["attempts"][0]["stdout"] == data.decode(errors="replace")


@pytest.mark.parametrize("exit_code", [0, 3])
@pytest.mark.parametrize("environment", ["", "env -i "])
def test_a_task_that_forks_and_leaves(standing: Deployment, environment: str, exit_code: int) -> None:
    """A process that forked twice, in a session of its own, even without its environment, ends with the attempt."""
    leave = f"{environment}setsid sh -c 'echo $$ > left; exec sleep 1000 > /dev/null 2>&1'"
    standing.complete(
        {"a": shell(f"({leave} &) ; while ! test -s left; do sleep 0.01; done; exit {exit_code}")},
        code=1 if exit_code else 0,
    )
    assert is_gone(int(standing.read("left")))


def test_a_task_that_floods_with_processes_is_killed_whole(standing: Deployment) -> None:
    run_id = standing.submit({"a": shell("for i in 1 2 3 4 5; do (sleep 1000 &); setsid sleep 1000 & done; echo > ready; wait")})
    until(lambda: standing.read("ready"), "the task")
    until(lambda: sleepers(standing) == 10, "its processes")
    assert standing.daggyr("kill", str(run_id)).code == 0
    assert standing.watch(run_id, code=1)["state"] == "KILLED"
    assert sleepers(standing) == 0


def sleepers(deployment: Deployment) -> int:
    return sum(words(process)[:1] == ["sleep"] for process in deployment.processes())


def test_a_task_that_kills_its_agent(standing: Deployment) -> None:
    """A crash of the local agent is a lost agent. Another one is started, and the task runs again."""
    standing.killed = True
    run = standing.complete({"a": shell('test "$DAGGYR_ATTEMPT" -gt 1 || { kill -9 $PPID; exit 1; }')})
    assert run["state"] == "COMPLETED"
    attempts: list[dict[str, Any]] = standing.task(1, "a")["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["LOST", "SUCCEEDED"]
    assert psutil.pid_exists(standing.programs[0].pid)
