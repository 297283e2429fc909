"""Generators on a server: what they print becomes tasks of the run, in the right place of its graph."""

from __future__ import annotations

import json

import pytest
from support.deployment import Deployment, Task, shell, task

LEDGER = 'echo "$DAGGYR_TASK_ID" >> ledger'


@pytest.fixture
def local(unharmed: Deployment) -> Deployment:
    """The module's server, which has a local pool of two workers, without a run."""
    return unharmed


def prints(deployment: Deployment, tasks: dict[str, Task], **keys: object) -> Task:
    """Return a generator that prints these tasks."""
    name = f"printed-{len(list(deployment.work.glob('printed-*')))}"
    (deployment.work / name).write_text(json.dumps(tasks))
    return task("cat", name, is_generator=True, **keys)


def test_new_tasks_stand_between_the_generator_and_its_children(local: Deployment) -> None:
    """Edges among the new tasks, and to a descendant of the generator, are kept."""
    new = {
        "count": shell(LEDGER, children=["total"]),
        "total": shell(LEDGER),
        "early": shell(LEDGER, children=["last"]),
    }
    run = local.complete(
        {
            "plan": prints(local, new, children=["page"]),
            "page": shell(LEDGER, children=["last"]),
            "last": shell(LEDGER),
        }
    )
    assert (run["state"], run["task_states"], run["revision"]) == ("COMPLETED", {"COMPLETED": 6}, 2)
    order = local.read("ledger").split()
    assert sorted(order) == ["count", "early", "last", "page", "total"]
    assert order.index("count") < order.index("total") < order.index("page") < order.index("last")
    assert order.index("early") < order.index("last")
    types = {each["task_id"]: each["task_type"] for each in local.tasks(run["run_id"])}
    assert types == {name: "GENERATOR" if name == "plan" else "COMMAND" for name in types}
    assert local.task(run["run_id"], "page")["parents"] == ["plan", "total"]
    assert set(local.task(run["run_id"], "count")["parents"]) == {"plan"}


def test_new_tasks_are_expanded_with_the_runs_parameters(local: Deployment) -> None:
    new = {
        "part": shell(f"echo {{{{X}}}} > part-{{{{X}}}}; {LEDGER}"),
        "sum": shell("cat part-* > sum", parents=["part"]),
    }
    run = local.complete(
        {"plan": prints(local, new, children=["after"]), "after": shell("cp sum after")},
        parameters={"{{X}}": ["1", "2", "3"]},
    )
    assert run["task_states"] == {"COMPLETED": 8}
    assert local.read("after").split() == ["1", "2", "3"]
    assert set(local.states(run["run_id"])) >= {"part", "part.{{X}}:1", "part.{{X}}:3", "part.tail", "sum"}


def test_new_tasks_get_the_runs_defaults(local: Deployment) -> None:
    """They are written as in the specification: with a script, a unit, and a note that is ignored."""
    new = {
        "made": {"details": {"script": 'echo "$FROM $OWN"', "environment": {"OWN": "task"}}, "x-note": 1},
        "other": {"details": {"script": 'echo "$FROM"', "environment": {"FROM": "task"}, "timeout": "1h"}, "max_retries": 0},
    }
    run = local.complete(
        {"plan": prints(local, new)},
        defaults={
            "max_retries": 2,
            "details": {"environment": {"FROM": "run"}, "timeout": "2m", "shell": ["sh", "-eu"]},
        },
    )
    made, other = (local.task(run["run_id"], name) for name in ("made", "other"))
    assert [each["attempts"][0]["stdout"] for each in (made, other)] == ["run task\n", "task\n"]
    assert made["details"]["command"] == ["sh", "-eu", "-c", 'echo "$FROM $OWN"']
    assert [each["details"]["timeout"] for each in (made, other)] == [120, 3600]
    assert [each["max_retries"] for each in (made, other)] == [2, 0]


def test_an_expanded_generator_prints_once_for_each_value(local: Deployment) -> None:
    """The tasks of both wait only for their own generator; the child waits for all."""
    plan = shell(
        """printf '{"made-{{X}}": {"details": {"command": ["sh", "-c", "echo {{X}} >> ledger"]}}}'""",
        is_generator=True,
        children=["after"],
    )
    run = local.complete({"plan": plan, "after": shell("cp ledger after")}, parameters={"{{X}}": ["1", "2"]})
    assert (run["state"], run["revision"]) == ("COMPLETED", 3)
    assert sorted(local.read("after").split()) == ["1", "2"]
    assert local.task(run["run_id"], "made-1")["parents"] == ["plan.{{X}}:1"]


def test_a_generator_may_print_generators(local: Deployment) -> None:
    inner = prints(local, {"inmost": shell(LEDGER)})
    run = local.complete({"plan": prints(local, {"inner": inner}, children=["after"]), "after": shell(LEDGER)})
    assert (run["state"], run["revision"]) == ("COMPLETED", 3)
    assert local.read("ledger") == "inmost\nafter\n"


def test_a_generator_that_fails_first_is_heard_the_second_time(local: Deployment) -> None:
    """What a failed attempt printed is no part of the tasks."""
    new = json.dumps({"new": shell(LEDGER)})
    (local.work / "new.json").write_text(new)
    plan = shell('if [ "$DAGGYR_ATTEMPT" = 1 ]; then echo "{"; exit 1; fi; cat new.json', is_generator=True, max_retries=1)
    assert local.complete({"plan": plan})["task_states"] == {"COMPLETED": 2}
    assert local.read("ledger") == "new\n"


def test_no_new_tasks_are_fine(local: Deployment) -> None:
    assert local.complete({"plan": prints(local, {}, children=["b"]), "b": task("true")})["task_states"] == {"COMPLETED": 2}


def test_more_tasks_than_a_message_holds(deployment: Deployment) -> None:
    """Megabytes of tasks are kept whole, though only one megabyte of other output would be."""
    new = {f"task-{number}": task("true", "x" * 1000, resources={"cores": 0}) for number in range(3000)}
    config = """
        [server]
        default_pool = "default"
        [pools.default]
        executor = "noop"
        [pools.here]
        executor = "local"
        workers = 1
    """
    deployment.start_server(config=config)
    run = deployment.complete({"plan": prints(deployment, new, pool="here")})
    assert (run["state"], run["task_states"]) == ("COMPLETED", {"COMPLETED": 3001})


def test_a_generator_whose_tasks_are_there_is_done_again_with_what_it_had_made(local: Deployment) -> None:
    run_id = local.complete({"plan": prints(local, {"new": shell(LEDGER)}), "other": task("true")})["run_id"]
    ended = local.daggyr("retry", "last", "--task", "plan")
    assert (ended.code, f"daggyr retry {run_id} --task plan --downstream" in ended.err) == (2, True)
    ended = local.daggyr("mark", "last", "plan", "queued")
    assert (ended.code, f"daggyr retry {run_id} --task plan --downstream" in ended.err) == (2, True)
    assert local.run(run_id)["state"] == "COMPLETED"
    local.ask(lambda server: server.retry(run_id, ["new"]))
    assert local.watch(run_id)["task_states"] == {"COMPLETED": 3}
    assert local.read("ledger") == "new\nnew\n"
    local.ask(lambda server: server.retry(run_id, ["plan"], downstream=True))
    assert local.watch(run_id)["task_states"] == {"COMPLETED": 3}
    assert local.read("ledger") == "new\nnew\nnew\n"
    assert [attempt["attempt"] for attempt in local.task(run_id, "new")["attempts"]] == [1, 2, 3]
    assert {change["reason"] for change in local.run(run_id)["history"] if change["reason"]} == {"retry"}


def test_what_is_wrong_with_generated_tasks_is_told_one_fault_a_line(local: Deployment) -> None:
    """Sizes are bounded for them as for all."""
    new = {"large": task("true", stdin="x" * 3_200_000), "lost": task("true", parents=["nobody"])}
    run_id = local.submit({"plan": prints(local, new), "run": task("printf", '{"tasks": {"a": {}}}', is_generator=True)})
    assert local.watch(run_id, code=1)["task_states"] == {"ERRORED": 2}
    assert local.task(run_id, "plan")["attempts"][0]["executor"] == [
        "the generator's tasks are refused: large.details: the task takes 3,200,005 bytes, most of them for `stdin`; "
        "a task takes at most 3,145,728; put the text into a file, and give the task the file's name",
        "lost.parents[0]: there is no task `nobody`",
    ]
    assert "print the object alone that stands under `tasks`" in local.daggyr("task", "last", "run").out
    assert "\\x0a" not in local.daggyr("task", "last", "plan").out
