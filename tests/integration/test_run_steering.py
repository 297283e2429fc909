"""What people do with runs and tasks (kill, retry, ask why), and what the processes do then."""

from __future__ import annotations

import pytest
from support.deployment import Deployment, shell, task
from support.waiting import is_gone, until

LEDGER = 'echo "$DAGGYR_TASK_ID $DAGGYR_ATTEMPT" >> ledger'


@pytest.fixture
def local(unharmed: Deployment) -> Deployment:
    """The module's server, which has a local pool of two workers, without a run."""
    return unharmed


def test_killing_a_run_ends_what_runs_and_starts_nothing_more(local: Deployment) -> None:
    gate = local.gate()
    run_id = local.submit(
        {
            "done": shell(LEDGER, priority=1, resources={"cores": 2}),
            "held": shell(f"{gate.hold}; {LEDGER}", parents=["done"]),
            "after": shell(LEDGER, parents=["held"]),
            "later": shell(LEDGER, parents=["after"]),
        }
    )
    pid = gate.reached()
    killed = local.json("kill", str(run_id))
    assert killed["run_id"] == run_id
    run = local.watch(run_id, code=1)
    assert (run["state"], run["task_states"]) == ("KILLED", {"COMPLETED": 1, "KILLED": 1, "QUEUED": 2})
    assert is_gone(pid)
    assert local.read("ledger") == "done 1\n"
    (attempt,) = local.task(run_id, "held")["attempts"]
    assert (attempt["outcome"], attempt["exit_code"]) == ("KILLED", None)
    assert "was killed" in local.why(run_id, "after")
    # A person lets the same run go on where it was.
    assert local.json("retry", "last")["state"] in ("QUEUED", "RUNNING")
    gate.open()
    assert local.watch(run_id)["task_states"] == {"COMPLETED": 4}
    assert local.read("ledger") == "done 1\nheld 2\nafter 1\nlater 1\n"


def test_killing_a_run_before_anything_runs(farm: Deployment) -> None:
    """The run ends at once, because it has no process. An agent that comes later gets nothing of it."""
    run_id = farm.submit({"a": shell(LEDGER), "b": shell(LEDGER, parents=["a"])})
    assert farm.json("kill", "last")["state"] == "KILLED"
    assert farm.watch(run_id, code=1)["task_states"] == {"QUEUED": 2}
    farm.start_agent("one")
    farm.goes_on()
    assert farm.read("ledger") == ""


def test_killing_a_task_leaves_the_rest_alone(local: Deployment) -> None:
    """The name means all its expansions and nothing beside them. They are never started again, whatever retries they have."""
    one, two = local.gate("one"), local.gate("two")
    run_id = local.submit(
        {
            "a": shell(
                f'if [ "{{{{X}}}}" = 1 ]; then {one.hold}; else {two.hold}; fi', max_retries=5, resources={"memory_mb": 1}
            ),
            "after": shell(LEDGER, parents=["a"]),
            "beside": shell(LEDGER, resources={"cores": 0}),
        },
        parameters={"{{X}}": ["1", "2"]},
    )
    pids = [one.reached(), two.reached()]
    local.ask(lambda server: server.kill(run_id, ["a"]))
    run = local.watch(run_id, code=1)
    assert run["state"] == "KILLED"
    states = local.states(run_id)
    assert (states["a.{{X}}:1"], states["a.{{X}}:2"], states["after"], states["beside"]) == (
        "KILLED",
        "KILLED",
        "QUEUED",
        "COMPLETED",
    )
    assert all(map(is_gone, pids))
    assert local.attempts(run_id)["a.{{X}}:1"] == 1


def test_a_task_may_end_in_its_own_way_when_it_is_killed(deployment: Deployment) -> None:
    """The task gets SIGTERM first. If it then ends with 0, it has done its work."""
    local = deployment
    local.start_server(config='[server]\nkill_grace = 3600\n[pools.default]\nexecutor = "local"\nworkers = 2\n')
    run_id = local.submit(
        {
            "good": shell("trap 'echo saved > saved; exit 0' TERM; echo > ready-1; while :; do sleep 0.01; done"),
            "bad": shell("trap 'exit 4' TERM; echo > ready-2; while :; do sleep 0.01; done"),
        }
    )
    until(lambda: local.read("ready-1") and local.read("ready-2"), "both tasks")
    local.ask(lambda server: server.kill(run_id))
    local.watch(run_id, code=1)
    assert local.read("saved") == "saved\n"
    assert local.states(run_id) == {"good": "COMPLETED", "bad": "KILLED"}


def test_a_task_that_ignores_sigterm_is_killed_after_the_grace_period(deployment: Deployment) -> None:
    deployment.start_server(config='[server]\nkill_grace = 0.2\n[pools.default]\nexecutor = "local"\n')
    run_id = deployment.submit({"a": shell("trap '' TERM; echo $$ > pid; while :; do sleep 0.01; done")})
    pid = int(until(lambda: deployment.read("pid"), "the task"))
    deployment.ask(lambda server: server.kill(run_id))
    assert deployment.watch(run_id, code=1)["state"] == "KILLED"
    assert is_gone(pid)


def test_a_pools_grace_holds_after_a_kill_and_after_a_timeout(deployment: Deployment) -> None:
    """The pool's own, over the server's: without any, no task hears of a SIGTERM."""
    pools = '[pools.default]\nexecutor = "local"\nworkers = 2\nkill_grace = 0\n'
    deployment.start_server(config=f"[server]\nkill_grace = 3600\n{pools}")
    hears = "trap 'exit 0' TERM; echo >> $DAGGYR_TASK_ID; while :; do sleep 0.01; done"
    late = shell(hears)
    late["details"]["timeout"] = 0.5
    run_id = deployment.submit({"late": late, "killed": shell(hears)})
    until(lambda: deployment.task(run_id, "late")["state"] == "ERRORED", "the timeout")
    until(lambda: deployment.read("killed"), "the task")
    deployment.ask(lambda server: server.kill(run_id, ["killed"]))
    assert deployment.watch(run_id, code=1)["state"] == "KILLED"
    ended = [deployment.task(run_id, name)["attempts"][-1] for name in ("late", "killed")]
    assert [(attempt["outcome"], attempt["signal"]) for attempt in ended] == [("TIMED_OUT", 9), ("KILLED", 9)]


def test_retrying_a_run_repeats_only_what_did_not_complete(local: Deployment) -> None:
    run_id = local.complete(
        {
            "a": shell(LEDGER),
            "b": shell(f"{LEDGER}; test -f mended", parents=["a"], max_retries=1),
            "c": shell(LEDGER, parents=["b"]),
        },
        code=1,
    )["run_id"]
    assert local.read("ledger").split("\n") == ["a 1", "b 1", "b 2", ""]
    # The retry gives fresh budgets, so that there are two attempts more.
    local.ask(lambda server: server.retry(run_id))
    local.watch(run_id, code=1)
    assert local.attempts(run_id) == {"a": 1, "b": 4, "c": 0}
    (local.work / "mended").touch()
    local.ask(lambda server: server.retry(run_id))
    run = local.watch(run_id)
    assert (run["run_id"], run["task_states"]) == (run_id, {"COMPLETED": 3})
    assert local.read("ledger").split() == ["a", "1", "b", "1", "b", "2", "b", "3", "b", "4", "b", "5", "c", "1"]
    assert [attempt["attempt"] for attempt in local.task(run_id, "b")["attempts"]] == [1, 2, 3, 4, 5]
    # Nothing is left to repeat.
    ended = local.daggyr("retry", str(run_id))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)


@pytest.mark.parametrize(("downstream", "again"), [(False, "b"), (True, "bcd")])
def test_retrying_a_task_with_or_without_what_depends_on_it(local: Deployment, downstream: bool, again: str) -> None:
    run_id = local.complete(
        {
            "a": shell(LEDGER, children=["b", "other"]),
            "b": shell(LEDGER, children=["c"]),
            "c": shell(LEDGER, children=["d"]),
            "d": shell(LEDGER),
            "other": shell(LEDGER),
        }
    )["run_id"]
    local.ask(lambda server: server.retry(run_id, ["b"], downstream=downstream))
    assert local.watch(run_id)["task_states"] == {"COMPLETED": 5}
    second = [line for line in local.read("ledger").splitlines() if line.endswith(" 2")]
    assert second == [f"{name} 2" for name in again]


def test_a_run_is_not_retried_while_it_goes_on(local: Deployment) -> None:
    gate = local.gate()
    run_id = local.submit({"a": shell(gate.hold)})
    gate.reached()
    ended = local.daggyr("retry", str(run_id))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    gate.open()
    assert local.watch(run_id)["state"] == "COMPLETED"
    assert local.attempts(run_id) == {"a": 1}


def test_why_in_every_state(farm: Deployment) -> None:
    """The answer says what is so now, and what to do."""
    gate = farm.gate()
    run_id = farm.submit(
        {
            "held": shell(f"{gate.hold}; exit 5", children=["after"]),
            "after": task("true"),
            "large": task("true", resources={"gpus": 2}),
            "wide": task("true", resources={"cores": 2}),
            "spread": task("echo", "{{X}}", parents=["after"]),
            "again": shell("exit 6", max_retries=1, retry_delay=1000, priority=9),
        },
        parameters={"{{X}}": ["1", "2"]},
    )
    assert "waits for a host to join the pool 'farm'" in farm.why(run_id, "held")
    assert "4 tasks wait for a host to join the pool 'farm'" in farm.run(run_id)["notes"]
    farm.start_agent("one")
    farm.running(run_id, "held")
    assert "runs on one since" in farm.why(run_id, "held")
    assert "waits for 1 of its 1 parent: held (RUNNING)" in farm.why(run_id, "after")
    assert "waits for a host with cores=1, gpus=2" in farm.why(run_id, "large")
    assert "waits for a host with cores=2" in farm.why(run_id, "wide")
    assert "gpus=2" in " ".join(farm.run(run_id)["notes"])
    delayed = farm.why(run_id, "again")
    assert "before retry 1 of 1" in delayed
    assert "FAILED with exit code 6 on one" in delayed
    gate.open()
    until(lambda: farm.states(run_id)["held"] == "ERRORED", "the end of the task")
    assert "FAILED with exit code 5 on one" in farm.why(run_id, "held")
    blocked = farm.why(run_id, "after")
    assert f"daggyr retry {run_id} --task held" in blocked
    assert "waits for 2 of its 2 parents: spread.{{X}}:1 (QUEUED), spread.{{X}}:2 (QUEUED)" in farm.why(run_id, "spread.tail")
    farm.ask(lambda server: server.kill(run_id))
    farm.watch(run_id, code=1)
    assert "was killed" in farm.why(run_id, "large")
    done = farm.complete({"ok": task("echo", "{{X}}")}, parameters={"{{X}}": ["1", "2"]})["run_id"]
    assert "It is COMPLETED." in farm.why(done, "ok.{{X}}:1")
    assert "SUCCEEDED with exit code 0 on one" in farm.why(done, "ok.{{X}}:1")
    assert "It is expanded into 2 tasks: 2 COMPLETED." in farm.why(done, "ok")
    # People get the same in lines.
    lines = farm.daggyr("why", str(done), "ok.{{X}}:1").out.splitlines()
    assert lines[0].startswith(f"Task ok.{{{{X}}}}:1 of run {done} ")
    assert "COMPLETED" in lines[0]


def test_why_of_a_task_that_was_killed(local: Deployment) -> None:
    gate = local.gate()
    run_id = local.submit({"a": shell(gate.hold)})
    gate.reached()
    local.ask(lambda server: server.kill(run_id, ["a"]))
    local.watch(run_id, code=1)
    assert "a person asked for that" in local.why(run_id, "a")
