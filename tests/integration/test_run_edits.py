"""`daggyr edit`: another specification for a run, whatever state it is in, with the real programs.

Each run is on a server with a sqlite tracker. Where it matters, that is the test's own, is then killed and started again, and has
to know the same; the other tests share one.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from support.deployment import PATIENT, Deployment, Task, shell
from support.waiting import is_gone, until

LEDGER = 'echo "$DAGGYR_TASK_ID $DAGGYR_ATTEMPT" >> ledger'


@pytest.fixture
def alone(deployment: Deployment) -> Deployment:
    """A server with a local pool of two workers, which keeps state."""
    deployment.start_server("--workers", "2", "--tracker", f"sqlite:{deployment.folder}/state.db")
    return deployment


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The same, for all tests that do nothing to it."""
    made = Deployment(tmp_path_factory.mktemp("shared"))
    try:
        made.start_server("--workers", "2", "--tracker", f"sqlite:{made.folder}/state.db")
        yield made
    finally:
        made.close()


@pytest.fixture
def kept(unharmed: Deployment) -> Deployment:
    """The module's server, without a run."""
    return unharmed


def start_again(deployment: Deployment) -> None:
    """Kill the server and start the next one in its place."""
    deployment.killed = True
    deployment.programs[-1].end(signal.SIGKILL)
    deployment.start_server("--workers", "2", "--tracker", f"sqlite:{deployment.folder}/state.db")


def command(deployment: Deployment, run_id: int, tasks: dict[str, Task], *options: str) -> Any:
    """Return what `daggyr edit` prints: the run after an edit, or what `--plan` tells."""
    return deployment.json("edit", str(run_id), deployment.spec(tasks), *options)


def edit(deployment: Deployment, run_id: int, tasks: dict[str, Task], *options: str, **keys: Any) -> list[dict[str, Any]]:
    """The same without the command; returns the tasks that a `plan` names. `options` are those of EditRunHeader."""
    document = json.dumps({"tasks": tasks, **keys}).encode()
    return deployment.ask(lambda server: server.edit(run_id, document, **dict.fromkeys(options, True)))[1]


def test_parameters_from_the_command_line_are_part_of_the_run(alone: Deployment) -> None:
    """The run has the values that it was given, in an edit and on the next server, too."""
    spec = alone.spec({"a": shell("echo {{DAY}} >> days")}, parameters={"{{DAY}}": ["1"]})
    (alone.work / "dates").write_text("2\n3\n")
    run = alone.json("submit", spec, "--param", "DAY=2", "--watch")
    start_again(alone)
    alone.json("edit", str(run["run_id"]), spec, "--param", "DAY=@dates")
    start_again(alone)
    assert alone.watch(run["run_id"])["state"] == "COMPLETED"
    assert alone.read("days").split() == ["2", "3"]
    assert "a.{{DAY}}:3" in alone.states(run["run_id"])
    ended = alone.daggyr("run", spec, "--param", "{{DAY}}=9")
    assert (ended.code, alone.read("days").split()) == (0, ["2", "3", "9"])
    ended = alone.daggyr("edit", "1", spec, "--param", "DYA=9")
    assert (ended.code, "did you mean `DAY`?" in ended.err) == (2, True)


def ledger(deployment: Deployment) -> list[str]:
    return sorted(deployment.read("ledger").splitlines())


def outputs(deployment: Deployment, run_id: int, task_id: str) -> list[tuple[int, str, str]]:
    """Return number, outcome and standard output of all attempts of a task."""
    attempts = deployment.task(run_id, task_id)["attempts"]
    return [(attempt["attempt"], attempt["outcome"], attempt["stdout"]) for attempt in attempts]


def test_a_failed_run_is_mended(alone: Deployment) -> None:
    """What completed stays, what is changed runs again under the same id, what is new comes, what is gone leaves its history."""
    first = {
        "a": shell(f"echo a; {LEDGER}", children=["b"]),
        "b": shell("echo broken; exit 3", children=["c"]),
        "c": shell(LEDGER),
        "gone": shell("echo gone"),
    }
    run_id = alone.submit(first)
    assert alone.watch(run_id, code=1)["state"] == "ERRORED"
    second = {
        "new": shell(LEDGER, parents=["c"]),
        "b": shell(f"echo mended; {LEDGER}", children=["c"]),
        "a": shell(f"echo a; {LEDGER}", children=["b"], max_retries=5),
        "c": shell(LEDGER),
    }
    assert command(alone, run_id, second, "--plan") == [
        {"task_id": "new", "change": "ADDED", "state": None, "fields": []},
        {"task_id": "b", "change": "CHANGED", "state": "ERRORED", "fields": ["command"]},
        {"task_id": "a", "change": "ADJUSTED", "state": "COMPLETED", "fields": ["max_retries"]},
        {"task_id": "gone", "change": "REMOVED", "state": "COMPLETED", "fields": []},
    ]
    assert alone.run(run_id)["revision"] == 1, "a plan changes nothing"
    refused = alone.daggyr("edit", str(run_id), alone.spec(second))
    assert (refused.code, refused.out) == (2, "")
    assert "the specification does not have a task that ran or runs: `gone`" in refused.err
    assert "--remove" in refused.err
    assert alone.run(run_id)["revision"] == 1
    edited = command(alone, run_id, second, "--remove")
    assert edited["revision"] == 2
    assert edited["edited"] == {"unchanged": 1, "adjusted": 1, "changed": 1, "added": 1, "removed": 1}
    assert alone.watch(run_id)["task_states"] == {"COMPLETED": 4}
    for again in (False, True):
        if again:
            start_again(alone)
        assert list(alone.states(run_id)) == ["new", "b", "a", "c"]
        assert ledger(alone) == ["a 1", "b 2", "c 1", "new 1"]
        assert outputs(alone, run_id, "a") == [(1, "SUCCEEDED", "a\n")]
        assert outputs(alone, run_id, "b") == [(1, "FAILED", "broken\n"), (2, "SUCCEEDED", "mended\n")]
        assert outputs(alone, run_id, "gone") == [(1, "SUCCEEDED", "gone\n")]
        assert alone.task(run_id, "gone")["removed"]
        assert alone.task(run_id, "a")["max_retries"] == 5
        history = [(change["state"], change["reason"]) for change in alone.run(run_id)["history"]]
        assert history == [
            *[(state, None) for state in ("RUNNING", "ERRORED")],
            ("ERRORED", "edit"),
            *[(state, None) for state in ("QUEUED", "RUNNING", "COMPLETED")],
        ]
        assert alone.daggyr("logs", str(run_id), "b").out == "mended\n"
    assert alone.daggyr("kill", str(run_id), "gone").code == 2


def test_a_table_says_what_would_change(kept: Deployment) -> None:
    run_id = kept.submit({"a": shell("true"), "b": shell("true")})
    kept.watch(run_id)
    ended = kept.daggyr("edit", "last", kept.spec({"a": shell("false", environment={"A": "1"})}), "--plan")
    assert (ended.code, ended.err) == (0, "")
    assert [line.split(maxsplit=3) for line in ended.out.splitlines()] == [
        ["TASK", "STATE", "CHANGE", "WHY"],
        ["a", "COMPLETED", "changed", "another command and environment"],
        ["b", "COMPLETED", "removed", "the specification does not have it any more"],
        ["0", "tasks", "unchanged,", "1 changed, 0 added, 1 removed"],
    ]
    ended = kept.daggyr("edit", "last", kept.spec({"a": shell("true"), "b": shell("true")}), "--plan")
    assert ended.out == "2 tasks unchanged, 0 changed, 0 added, 0 removed\n"
    ended = kept.daggyr(
        "edit", "last", kept.spec({"a": shell("true", timeout=9), "b": shell("true", resources={"cores": 2})}), "--plan"
    )
    assert [line.split(maxsplit=3) for line in ended.out.splitlines()[1:]] == [
        ["a", "COMPLETED", "adjusted", "other timeout from its next attempt on"],
        ["b", "COMPLETED", "adjusted", "other resources from its next attempt on"],
        ["0", "tasks", "unchanged,", "2 adjusted, 0 changed, 0 added, 0 removed"],
    ]
    ended = kept.daggyr("edit", "last", kept.spec({"a": shell("false"), "b": shell("true")}))
    assert ended.out.startswith("1 task unchanged, 1 changed, 0 added, 0 removed\n")


def test_what_runs_goes_on_or_is_replaced_after_its_end(deployment: Deployment) -> None:
    """On an agent, through kill -9 of the server too: the same process goes on, the changed one ends before the next begins."""
    # Who is asked to end has an hour for that.
    config = f'[server]\n{PATIENT}\nkill_grace = 3600\ntracker = "sqlite:state.db"\n[pools.farm]\nexecutor = "agent"\n'
    deployment.start_server(config=config, listen=f"unix:{deployment.folder}/s")
    server = deployment.programs[-1]
    deployment.start_agent("one", "--resource", "cores=3")
    stays, ends, goes = deployment.gate("stays"), deployment.gate("ends"), deployment.gate("goes")
    slow = "trap 'while test ! -e let; do sleep 0.02; done; echo ended >> ledger; exit' TERM;"
    run_id = deployment.submit(
        {
            "stays": shell(f"{stays.hold}; {LEDGER}", children=["after"]),
            "ends": shell(f"{slow} {ends.hold}; echo never >> ledger"),
            "goes": shell(goes.hold),
            "after": shell(LEDGER),
        }
    )
    pids = [gate.reached() for gate in (stays, ends, goes)]
    for task_id in ("stays", "ends", "goes"):
        deployment.running(run_id, task_id)
    edit(
        deployment,
        run_id,
        {
            "ends": shell(LEDGER),
            "stays": shell(f"{stays.hold}; {LEDGER}", children=["after"], priority=5),
            "after": shell(LEDGER),
        },
        "remove",
    )
    until(lambda: is_gone(pids[2]), "the end of what is gone")
    assert deployment.states(run_id)["ends"] == "RUNNING", "what was changed has not ended yet"
    deployment.killed = True
    server.end(signal.SIGKILL)
    deployment.start_server(config=config, listen=f"unix:{deployment.folder}/s")
    deployment.running(run_id, "stays")
    assert not is_gone(pids[0])
    assert ledger(deployment) == []
    (deployment.work / "let").touch()
    stays.open()
    run = deployment.watch(run_id)
    assert run["task_states"] == {"COMPLETED": 3}
    assert deployment.read("ledger").splitlines().index("ended") < deployment.read("ledger").splitlines().index("ends 2")
    assert ledger(deployment) == ["after 1", "ended", "ends 2", "stays 1"]
    assert [attempt for attempt, *_ in outputs(deployment, run_id, "ends")] == [1, 2]
    assert [attempt for attempt, *_ in outputs(deployment, run_id, "stays")] == [1]


def test_a_task_is_known_by_its_values_not_by_its_name(kept: Deployment) -> None:
    """With a second value, what was `a` is `a.{{D}}:1`, and has run already; so are those of another order or product."""
    run_id = kept.submit({"a": shell("echo {{D}}; " + LEDGER)}, parameters={"{{D}}": ["1"]})
    kept.watch(run_id)
    edit(kept, run_id, {"a": shell("echo {{D}}; " + LEDGER)}, parameters={"{{D}}": ["2", "1"]})
    assert kept.watch(run_id)["task_states"] == {"COMPLETED": 4}
    assert ledger(kept) == ["a 1", "a.{{D}}:2 1"]
    assert outputs(kept, run_id, "a.{{D}}:1") == [(1, "SUCCEEDED", "1\n")]
    plan = edit(kept, run_id, {"a": shell("echo {{D}}; " + LEDGER)}, "plan", parameters={"{{D}}": ["1", "3", "2"]})
    assert plan == [{"task_id": "a.{{D}}:3", "change": "ADDED", "state": None, "fields": []}]
    plan = edit(kept, run_id, {"a": shell("echo {{D}}; " + LEDGER)}, "plan", parameters={"{{D}}": ["2"]})
    assert plan == [{"task_id": "a.{{D}}:1", "change": "REMOVED", "state": "COMPLETED", "fields": []}]


def test_downstream_is_queued_as_well(kept: Deployment) -> None:
    def tasks(script: str) -> dict[str, Task]:
        return {
            "a": shell(f"{script}; {LEDGER}", children=["b"]),
            "b": shell(LEDGER, children=["c"]),
            "c": shell(LEDGER),
            "beside": shell(LEDGER),
        }

    run_id = kept.submit(tasks("true"))
    kept.watch(run_id)
    edit(kept, run_id, tasks(":"))
    kept.watch(run_id)
    assert ledger(kept) == ["a 1", "a 2", "b 1", "beside 1", "c 1"]
    plan = edit(kept, run_id, tasks("echo"), "plan", "downstream")
    assert {change["task_id"]: change["change"] for change in plan} == {"a": "CHANGED", "b": "QUEUED_AGAIN", "c": "QUEUED_AGAIN"}
    edit(kept, run_id, tasks("echo"), "downstream")
    kept.watch(run_id)
    assert [(change["state"], change["reason"]) for change in kept.task(run_id, "b")["history"]] == [("QUEUED", "edit")]
    assert "edit" in kept.daggyr("task", "last", "b").out
    assert ledger(kept) == ["a 1", "a 2", "a 3", "b 1", "b 2", "beside 1", "c 1", "c 2"]


def test_generated_tasks_stay_with_their_generator(alone: Deployment) -> None:
    """The tasks stay unless the generator is changed. Then it generates again."""

    def tasks(extra: str, **more: Task) -> dict[str, Task]:
        made = json.dumps({f"made-{number}": shell(LEDGER) for number in (1, 2)})
        return {
            "g": shell(f"{extra}{LEDGER}; printf %s '{made}'", is_generator=True, children=["end"]),
            "end": shell(LEDGER),
            **more,
        }

    run_id = alone.submit(tasks(""))
    alone.watch(run_id)
    refused = alone.daggyr("edit", str(run_id), alone.spec(tasks("", **{"made-1": shell(LEDGER)})))
    assert refused.code == 2
    assert "printed is kept, and does not fit: the run has a task `made-1` already" in refused.err
    edit(alone, run_id, tasks("", more=shell(LEDGER, parents=["g"])))
    assert alone.watch(run_id)["task_states"] == {"COMPLETED": 5}
    before = ["end 1", "g 1", "made-1 1", "made-2 1", "more 1"]
    assert ledger(alone) == before
    start_again(alone)
    edit(alone, run_id, tasks(":;"), "downstream", "remove")
    assert alone.watch(run_id)["task_states"] == {"COMPLETED": 4}
    assert ledger(alone) == sorted([*before, "end 2", "g 2", "made-1 2", "made-2 2"])
    start_again(alone)
    assert alone.run(run_id)["task_states"] == {"COMPLETED": 4}


def test_what_is_wrong_leaves_the_run_as_it_was(kept: Deployment) -> None:
    run_id = kept.submit({"a": shell("true", children=["b"]), "b": shell("true")})
    kept.watch(run_id)
    before = kept.run(run_id)
    for tasks in ({"a": shell("true", children=["nobody"])}, {"a": {"details": {}}}, {"a": shell("true", pool="nowhere")}):
        for options in ([], ["--plan"]):
            ended = kept.daggyr("edit", str(run_id), kept.spec(tasks), *options)
            assert (ended.code, ended.out) == (2, "")
            assert "is refused" in ended.err
    assert kept.run(run_id) == before
    assert "there is no run 99" in kept.daggyr("edit", "99", kept.spec({"a": shell("true")})).err


def test_the_second_of_two_editors_is_told(kept: Deployment) -> None:
    run_id = kept.submit({"a": shell("true")})
    kept.watch(run_id)
    assert command(kept, run_id, {"a": shell(":")}, "--revision", "1")["revision"] == 2
    ended = kept.daggyr("edit", str(run_id), kept.spec({"a": shell("false")}), "--revision", "1")
    assert ended.code == 2
    assert "has revision 2, not 1" in ended.err
    assert kept.task(run_id, "a")["details"]["command"][-1] == ":"


def test_an_edit_that_changes_nothing_leaves_an_ended_run_as_it_is(kept: Deployment) -> None:
    run_id = kept.submit({"a": shell("true")})
    before = kept.watch(run_id)
    after = command(kept, run_id, {"a": shell("true", max_retries=1)})
    assert {name: after[name] for name in ("state", "stop_time")} == {name: before[name] for name in ("state", "stop_time")}
    assert kept.task(run_id, "a")["max_retries"] == 1
    assert kept.json("mark", str(run_id), "a", "completed")["stop_time"] == before["stop_time"]
