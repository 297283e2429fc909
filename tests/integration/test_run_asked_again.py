"""What goes on when a person asks for a part of a run: nothing but that, with attempts that are numbered on.

Random cases of the same are in tests/model; these are those that people told of, each with the words that they read.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping

from support.deployment import Deployment, Task, shell, task
from support.waiting import until

LEDGER = 'echo "$DAGGYR_TASK_ID $DAGGYR_ATTEMPT" >> ledger'
VALUE = "{{V}}"


def numbers(local: Deployment, run_id: int, name: str) -> list[int]:
    """The numbers of a task's attempts, each of which has its own output."""
    attempts = local.task(run_id, name)["attempts"]
    assert [attempt["stdout"].split() for attempt in attempts] == [[str(attempt["attempt"])] for attempt in attempts]
    return [attempt["attempt"] for attempt in attempts]


def edited(local: Deployment, run_id: int, tasks: Mapping[str, Task], *options: str, code: int = 1, **keys: object) -> None:
    ended = local.daggyr("edit", str(run_id), local.spec(tasks, **keys), *options)
    assert ended.code == 0, ended.err
    local.watch(run_id, code=code)


def asked(local: Deployment, run_id: int) -> list[tuple[str, str, list[str]]]:
    """What a run's history tells that people asked of its tasks."""
    changes = [change for change in local.run(run_id)["history"] if change["reason"]]
    return [(change["reason"], change["state"], change["tasks"]) for change in changes]


def test_attempts_of_a_name_are_numbered_on_through_edits(local: Deployment) -> None:
    """A parameter is edited in two steps, and a task away and back; both had failed."""
    step = shell(f'echo "$DAGGYR_ATTEMPT"; : {VALUE}; exit 1')
    run_id = local.complete({"step": step, "other": step}, code=1, parameters={VALUE: ["1", "2"]})["run_id"]
    edited(local, run_id, {"step": step, "other": step}, "--remove", parameters={VALUE: ["2"]})
    assert numbers(local, run_id, "step") == [1]
    plan = local.json("edit", str(run_id), local.spec({"step": step, "other": step}, parameters={VALUE: ["3"]}), "--plan")
    assert [(edit["task_id"], edit["change"]) for edit in plan] == [("step", "CHANGED"), ("other", "CHANGED")]
    edited(local, run_id, {"step": step, "other": step}, parameters={VALUE: ["3"]})
    assert numbers(local, run_id, "step") == [1, 2]
    edited(local, run_id, {"step": step}, "--remove", parameters={VALUE: ["3"]})
    assert local.task(run_id, "other")["removed"]
    assert "took it away" in local.why(run_id, "other")
    edited(local, run_id, {"step": step, "other": step}, parameters={VALUE: ["3"]})
    assert numbers(local, run_id, "other") == [1, 2, 3]
    # The expansions that the first edit took away come back as well.
    edited(local, run_id, {"step": step, "other": step}, parameters={VALUE: ["1", "3"]})
    assert numbers(local, run_id, f"step.{VALUE}:1") == [1, 2]
    assert numbers(local, run_id, f"step.{VALUE}:3") == [1, 2]


def test_a_retry_of_one_task_starts_nothing_that_a_kill_had_stopped(deployment: Deployment) -> None:
    """What else would go on is told, through a restart too, and --all asks for it."""
    local, tracker = deployment, ("--tracker", f"sqlite:{deployment.folder}/state.db", "--workers", "1")
    server = local.start_server(*tracker)
    gate = local.gate()
    run_id = local.submit(
        {
            "held": shell(gate.hold, priority=1),
            "a": shell(LEDGER),
            "b": shell(LEDGER),
            "after": shell(LEDGER, parents=["a"]),
            "both": shell(LEDGER, parents=["a", "b"]),
        }
    )
    gate.reached()
    assert local.daggyr("kill", str(run_id)).code == 0
    local.watch(run_id, code=1)
    told = local.daggyr("retry", str(run_id), "--task", "a")
    assert told.code == 0 and "1 task stays QUEUED, because the run was killed" in told.out
    run = local.watch(run_id, code=1)
    assert (run["state"], local.read("ledger")) == ("KILLED", "a 1\nafter 1\n")
    assert f"daggyr retry {run_id} --task b" in local.why(run_id, "b")
    assert f"daggyr retry {run_id} --task b" in local.why(run_id, "both")
    # An edit that changes nothing starts nothing either.
    same = local.spec(json.loads((local.folder / "spec-0.json").read_text())["tasks"])
    told = local.daggyr("edit", str(run_id), same)
    assert told.code == 0 and "1 task stays QUEUED" in told.out
    assert local.run(run_id)["state"] == "KILLED"
    local.killed = True
    server.end(signal.SIGKILL)
    local.start_server(*tracker)
    (listed,) = local.runs()
    shown = local.run(run_id)
    assert shown == {**listed, "history": shown["history"]}
    assert (listed["revision"], listed["blocked"]) == (2, 2)
    assert local.daggyr("retry", str(run_id), "--task", "after").code == 0
    assert local.watch(run_id, code=1)["state"] == "KILLED"
    assert local.daggyr("retry", str(run_id), "--task", "held", "--all").code == 0
    gate.open()
    assert local.watch(run_id)["state"] == "COMPLETED"
    assert local.read("ledger") == "a 1\nafter 1\nafter 2\nb 1\nboth 1\n"


def test_a_retry_agrees_with_why(local: Deployment) -> None:
    """`c` waits for a task that ERRORED, while the run goes on: asking for it alone changes nothing, and that is said."""
    gate = local.gate()
    run_id = local.submit(
        {
            "f": shell("test -f mended"),
            "b": shell(LEDGER, parents=["f"]),
            "c": shell(LEDGER, parents=["b"]),
            "held": shell(gate.hold),
        }
    )
    gate.reached()
    local.running(run_id, "held")
    until(lambda: local.states(run_id)["f"] == "ERRORED", "the end of f")
    refused = local.daggyr("retry", str(run_id), "--task", "c")
    assert (refused.code, "c waits for f, which is ERRORED: retry that" in refused.err) == (2, True)
    assert f"It will not run unless f (ERRORED) is retried: daggyr retry {run_id} --task f" in local.why(run_id, "c")
    refused = local.daggyr("retry", str(run_id), "--task", "held")
    assert (refused.code, "held still runs" in refused.err) == (2, True)
    (local.work / "mended").touch()
    assert local.daggyr("retry", str(run_id), "--task", "f", "--task", "c").code == 0
    gate.open()
    assert local.watch(run_id)["state"] == "COMPLETED"
    assert local.read("ledger") == "b 1\nc 1\n"


def test_a_retry_and_a_mark_end_the_delay_of_a_retry(local: Deployment) -> None:
    failing = shell(f"{LEDGER}; test $DAGGYR_ATTEMPT -gt 1", max_retries=1, retry_delay=10_000)
    run_id = local.submit({"a": failing, "b": failing})
    for name, words in (("a", ("retry", str(run_id), "--task", "a")), ("b", ("mark", str(run_id), "b", "queued"))):
        until(lambda name=name: "before retry 1 of 1" in local.why(run_id, name), "the first attempt to fail")
        assert local.daggyr(*words).code == 0
    assert local.watch(run_id)["task_states"] == {"COMPLETED": 2}
    history = [
        (change["reason"], change["state"], change["tasks"]) for change in local.run(run_id)["history"] if change["reason"]
    ]
    assert history == [("retry", "QUEUED", ["a"]), ("mark", "QUEUED", ["b"])]


def test_a_run_s_history_tells_what_was_asked_of_its_tasks(local: Deployment) -> None:
    gate = local.gate()
    run_id = local.submit({"held": shell(gate.hold), "a": task("true", parents=["held"]), "b": task("true", parents=["a"])})
    gate.reached()
    local.running(run_id, "held")
    assert local.daggyr("kill", str(run_id), "b").code == 0
    assert local.daggyr("mark", str(run_id), "b", "completed").code == 0
    gate.open()
    local.watch(run_id)
    assert asked(local, run_id) == [("kill", "KILLED", ["b"]), ("mark", "COMPLETED", ["b"])]
    assert "kill" in local.daggyr("show", str(run_id)).out


def prints(document: str, **keys: object) -> Task:
    return shell(f"printf '%s' '{document}'", is_generator=True, **keys)


def test_a_generator_that_made_no_task_is_queued_again(local: Deployment) -> None:
    made = json.dumps({"made": shell(LEDGER)}).replace("'", "'\\''")
    again = shell(f"test $DAGGYR_ATTEMPT = 1 && printf '{{}}' || printf '%s' '{made}'", is_generator=True)
    run_id = local.complete({"g": again, "marked": prints("{}", parents=["g"])})["run_id"]
    assert local.daggyr("retry", str(run_id), "--task", "g").code == 0
    assert local.watch(run_id)["task_states"] == {"COMPLETED": 3}
    assert local.read("ledger") == "made 1\n"


def test_a_retry_above_a_generator_takes_away_what_it_had_made(local: Deployment) -> None:
    made = json.dumps({"made": {"details": {"command": ["sh", "-c", LEDGER]}}}).replace("'", "'\\''")
    run_id = local.complete({"top": shell(LEDGER), "g": prints(made, parents=["top"]), "sum": shell(LEDGER, parents=["g"])})[
        "run_id"
    ]
    assert local.daggyr("retry", str(run_id), "--task", "top", "--downstream").code == 0
    assert local.watch(run_id)["task_states"] == {"COMPLETED": 4}
    assert local.read("ledger").split("\n") == ["top 1", "made 1", "sum 1", "top 2", "made 2", "sum 2", ""]


def test_a_generator_whose_document_is_bad_is_tried_again_while_retries_last(local: Deployment) -> None:
    run_id = local.submit(
        {
            "mended": shell("test $DAGGYR_ATTEMPT = 1 && echo no document || echo '{}'", is_generator=True, max_retries=1),
            "bad": prints("no document", max_retries=2),
        }
    )
    local.watch(run_id, code=1)
    assert local.states(run_id) == {"mended": "COMPLETED", "bad": "ERRORED"}
    assert local.attempts(run_id) == {"mended": 2, "bad": 3}
