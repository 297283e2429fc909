"""Runs that outlive the command or the server that began them, and the commands that set them right or take them away.

`daggyr run --resume` goes on with a run that a tracker kept, however it came to an end: by Ctrl-C, by a failure, by kill -9
of the command or of its server, or in the middle of being killed. All programs are the real ones, the tracker is a file.
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.deployment import Deployment, Gate, Task, follows, is_gone, shell, until

STATE = "sqlite:kept.db"


def held(gate: Gate) -> dict[str, Task]:
    """A chain that goes into `ledger`; its middle stands at the gate until there is a file `go`."""
    return {
        "first": shell("echo first >> ledger", children=["middle"]),
        "middle": shell(f"echo middle >> ledger; test -e go || {{ {gate.hold}; }}", children=["last"]),
        "last": shell("echo last >> ledger"),
    }


@pytest.fixture
def gate(deployment: Deployment) -> Gate:
    return deployment.gate()


def begun(deployment: Deployment, gate: Gate, **variables: str) -> subprocess.Popen[str]:
    """Start `daggyr run`, and return it once the middle of its run is at the gate."""
    process = deployment.command("run", "--tracker", STATE, deployment.spec(held(gate)), **variables)
    gate.reached()
    follows(process)
    return process


def resumed(deployment: Deployment, run: str = "last", code: int = 0) -> tuple[Any, str]:
    """The JSON of a resumed run that may go through the gate, and what was said."""
    (deployment.work / "go").touch()
    ended = deployment.daggyr("--output", "json", "run", "--tracker", STATE, "--resume", run)
    assert ended.code == code, ended.err
    return ended.json, ended.err


def completed(run: Any, **attempts: int) -> None:
    """The whole run has to be COMPLETED, each task after so many attempts."""
    assert (run["state"], run["task_states"]) == ("COMPLETED", {"COMPLETED": len(attempts)})
    assert {task["task_id"]: task["attempt_count"] for task in run["tasks"]} == attempts


def test_a_run_that_ctrl_c_killed_goes_on(deployment: Deployment, gate: Gate) -> None:
    process = begun(deployment, gate)
    process.send_signal(signal.SIGINT)
    assert deployment.ended(process).code == 130
    run, said = resumed(deployment)
    completed(run, first=1, middle=2, last=1)
    assert (run["run_id"], deployment.read("ledger").split()) == (1, ["first", "middle", "middle", "last"])
    assert said.splitlines()[0] == "run 1 was KILLED: what did not complete runs again"
    assert said.splitlines()[-1].startswith("run 1 COMPLETED in ")


def test_a_run_that_was_still_being_killed_goes_on(deployment: Deployment) -> None:
    """The kill is durable, and the server went before the process did."""
    deployment.killed = True
    # The process has an hour to end after SIGTERM, so that it is still there.
    config = '[server]\nkill_grace = 3600\n[pools.default]\nexecutor = "local"\n'
    server = deployment.start_server("--tracker", f"sqlite:{deployment.work}/kept.db", config=config)
    script = "trap '' TERM; test -e go && exit; echo $$ > pid; while :; do sleep 1000; done"
    assert deployment.submit({"stubborn": shell(script)}) == 1
    task = int(until(lambda: deployment.read("pid").rstrip("\n"), "the task"))
    assert deployment.json("kill", "1")["state"] == "RUNNING"
    server.end(signal.SIGKILL)
    until(lambda: is_gone(task), "the end of the task")
    run, said = resumed(deployment)
    completed(run, stubborn=2)
    assert "run 1 was KILLED: what did not complete runs again" in said


@pytest.mark.parametrize("victim", ["command", "server"])
def test_a_run_whose_coordinator_was_killed_goes_on(deployment: Deployment, gate: Gate, victim: str) -> None:
    deployment.killed = True
    process = begun(deployment, gate)
    server = psutil.Process(process.pid).children()[0]
    (process if victim == "command" else server).kill()
    assert deployment.ended(process).code == (-signal.SIGKILL if victim == "command" else 3)
    until(lambda: is_gone(server.pid) and is_gone(gate.reached()), "the end of the server and the task")
    run, said = resumed(deployment, "1")
    completed(run, first=1, middle=2, last=1)
    assert deployment.read("ledger").split() == ["first", "middle", "middle", "last"]
    assert "what did not complete runs again" not in said, "it had not ended, and went on by itself"


def test_a_run_that_failed_is_retried_and_its_end_is_the_exit_code(deployment: Deployment) -> None:
    spec = deployment.spec({"a": shell("test -e fixed", children=["b"]), "b": shell("echo b >> ledger")})
    assert deployment.daggyr("run", "--tracker", STATE, spec).code == 1
    run, said = resumed(deployment, code=1)
    assert (run["state"], run["task_states"]) == ("ERRORED", {"QUEUED": 1, "ERRORED": 1})
    assert "task a ERRORED: FAILED, exit code 1" in said
    (deployment.work / "fixed").touch()
    run, said = resumed(deployment)
    completed(run, a=3, b=1)
    assert said.splitlines()[0] == "run 1 was ERRORED: what did not complete runs again"


def test_a_run_that_completed_is_left_alone(deployment: Deployment) -> None:
    assert deployment.daggyr("run", "--tracker", STATE, deployment.spec({"a": shell("echo a >> ledger")})).code == 0
    run, said = resumed(deployment)
    completed(run, a=1)
    assert said == "run 1 is COMPLETED already: nothing of it is left to do\n"
    ended = deployment.daggyr("run", "--tracker", STATE, "--resume", "1")
    assert (ended.code, ended.out.splitlines()[0]) == (0, "Run 1  COMPLETED")
    assert deployment.read("ledger") == "a\n"


def test_ctrl_c_kills_a_resumed_run_too(deployment: Deployment, gate: Gate) -> None:
    process = begun(deployment, gate)
    process.send_signal(signal.SIGINT)
    assert deployment.ended(process).code == 130
    (deployment.work / f"{gate.name}.pid").unlink()
    process = deployment.command("--output", "json", "run", "--tracker", STATE, "--resume", "last")
    task = gate.reached()
    follows(process)
    process.send_signal(signal.SIGINT)
    ended = deployment.ended(process)
    assert (ended.code, ended.json["state"]) == (130, "KILLED")
    assert is_gone(task)
    completed(resumed(deployment)[0], first=1, middle=3, last=1)


def test_runs_that_are_not_there_and_trackers_that_cannot_be_used(deployment: Deployment) -> None:
    def said(*arguments: str) -> str:
        ended = deployment.daggyr("run", *arguments)
        assert (ended.code, ended.out) == (2, ""), ended.err
        return ended.err

    missing = "daggyr: there is no file kept.db: --resume needs the tracker that kept the run\n"
    assert said("--tracker", STATE, "--resume", "last") == missing
    assert not (deployment.work / "kept.db").exists()
    assert deployment.daggyr("run", "--tracker", STATE, deployment.spec({"a": shell("true")})).code == 0
    assert "there is no run 7 in this tracker" in said("--tracker", STATE, "--resume", "7")
    assert "there is no tracker `sqlit`; did you mean `sqlite`?" in said("--tracker", "sqlit:kept.db", "--resume", "7")
    (deployment.work / "text.db").write_text("this is no database\n" * 1000)
    assert "text.db" in said("--tracker", "sqlite:text.db", "--resume", "7")
    assert deployment.read("text.db").startswith("this is no database"), "what is not understood is left as it is"


def test_a_configuration_may_name_the_tracker(deployment: Deployment) -> None:
    (deployment.work / "daggyr.toml").write_text(f"[server]\ntracker = '{STATE}'\n")
    config = ("--config", "daggyr.toml")
    assert deployment.daggyr("run", *config, deployment.spec({"a": shell("test -e fixed")})).code == 1
    (deployment.work / "fixed").touch()
    assert deployment.daggyr("run", *config, "--resume", "last").code == 0


def test_an_address_with_a_password_is_in_no_arguments_but_the_users_own(deployment: Deployment) -> None:
    """Nor in what tasks see; the variable that carries it stands in for --tracker, too."""
    gate = deployment.gate("looking")
    spec = deployment.spec({"a": shell(f"env > seen; {gate.hold}")})
    process = deployment.command("run", spec, DAGGYR_TRACKER="sqlite:secret.db")
    gate.reached()
    arguments = [" ".join(one.cmdline()) for one in deployment.processes()]
    assert [line for line in arguments if "daggyr_server.main" in line], "the server is among those that were looked at"
    assert [line for line in arguments if "daggyr_agent" in line]
    assert not [line for line in arguments if "secret" in line]
    assert "secret" not in deployment.read("seen")
    gate.open()
    assert deployment.ended(process).code == 0
    assert (deployment.work / "secret.db").exists()
    # An option wins over the variable, as everywhere.
    assert deployment.daggyr("run", "--tracker", "memory", spec, "--resume", "1", DAGGYR_TRACKER="sqlite:secret.db").code == 2
    ended = deployment.daggyr("run", "--tracker", STATE, "--resume", "1", DAGGYR_TRACKER="sqlite:secret.db")
    assert "there is no file kept.db" in ended.err


def test_a_password_is_not_told_when_the_tracker_cannot_be_used(deployment: Deployment) -> None:
    """Nothing listens at port 1 of this host."""
    ended = deployment.daggyr("run", "--tracker", "postgresql://someone:hush@127.0.0.1:1/db", "--resume", "last")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("daggyr: the server did not start")
    assert "hush" not in ended.err


@pytest.fixture
def kept(deployment: Deployment) -> Deployment:
    """A server with a local pool and a tracker in a file."""
    deployment.environment["DAGGYR_TRACKER"] = STATE
    deployment.start_server("--workers", "2")
    return deployment


def again(deployment: Deployment) -> None:
    """End the server and start another one in its place."""
    assert deployment.programs[-1].end() == 0
    deployment.start_server("--workers", "2")


def test_mark_says_what_a_person_knows_better(kept: Deployment) -> None:
    tasks = {
        "bad": shell("echo bad >> ledger; exit 1", children=["after"]),
        "after": shell("echo after >> ledger"),
    }
    assert kept.complete(tasks, code=1)["state"] == "ERRORED"
    run = kept.json("mark", "last", "bad", "completed")
    assert (run["run_id"], run["state"] in ("QUEUED", "RUNNING", "COMPLETED")) == (1, True)
    assert kept.watch(1)["task_states"] == {"COMPLETED": 2}
    again(kept)
    assert kept.states(1) == {"bad": "COMPLETED", "after": "COMPLETED"}
    assert kept.json("mark", "1", "after", "queued")["task_states"].get("COMPLETED", 0) <= 2
    assert kept.watch(1)["task_states"] == {"COMPLETED": 2}
    assert kept.attempts(1) == {"bad": 1, "after": 2}
    assert kept.read("ledger").split() == ["bad", "after", "after"]


def test_what_was_taken_away_is_gone_for_good(kept: Deployment) -> None:
    for _ in range(3):
        assert kept.complete({"a": shell("echo output")})["state"] == "COMPLETED"
    gate = kept.gate()
    assert kept.submit({"a": shell(gate.hold)}) == 4
    gate.reached()

    def refused(*arguments: str) -> str:
        ended = kept.daggyr(*arguments)
        assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1), ended.err
        return ended.err

    assert "run 4 has not ended: it is RUNNING" in refused("delete", "4")
    assert kept.daggyr("delete", "2").out == "run 2 is deleted\n"
    for arguments in (["show", "2"], ["logs", "2"], ["delete", "2"], ["mark", "2", "a", "queued"], ["retry", "2"]):
        assert "there is no run 2" in refused(*arguments)
    assert kept.json("prune", "--older-than", "1h") == {"runs": 0}
    assert kept.json("prune", "--older-than", "0s") == {"runs": 2}
    assert [run["run_id"] for run in kept.json("runs")] == [4]
    gate.open()
    kept.watch(4)
    assert kept.json("delete", "4") == {"run_id": 4}
    again(kept)
    assert kept.json("runs") == []
    assert kept.submit({"a": shell("true")}) == 5, "a run's number is never used again"
    kept.watch(5)


def test_the_commands_see_what_run_left(deployment: Deployment) -> None:
    """A file is one tracker, whoever opens it."""
    assert deployment.daggyr("run", "--tracker", STATE, deployment.spec({"a": shell("echo out; exit 3")})).code == 1
    deployment.environment["DAGGYR_TRACKER"] = STATE
    deployment.start_server("--workers", "1")
    attempt = deployment.task(1, "a")["attempts"][0]
    assert (attempt["outcome"], attempt["exit_code"], attempt["stdout"]) == ("FAILED", 3, "out\n")
    assert json.loads(deployment.daggyr("--output", "json", "mark", "1", "a", "completed").out)["state"] == "COMPLETED"
    deployment.programs[-1].end()
    assert resumed(deployment)[1].startswith("run 1 is COMPLETED already")
    assert Path(deployment.work / "kept.db").exists()
