"""Runs on a server with a local pool, from submission to their end. What their tasks did proves each rule."""

from __future__ import annotations

import io
import json
import random
from itertools import pairwise

import pytest
from support.deployment import Deployment, Task, shell, task
from support.waiting import until

LEDGER = 'echo "$DAGGYR_TASK_ID" >> ledger'


@pytest.fixture
def local(unharmed: Deployment) -> Deployment:
    """The module's server, which has a local pool of two workers, without a run."""
    return unharmed


def test_the_original_specification(local: Deployment) -> None:
    spec = (
        '{"tags":{"abc":"def"},"parameters":{"{{DATE}}":["2022-01-01","2022-01-02"]},'
        '"tasks":{"a":{"details":{"command":["echo","{{DATE}}"],"environment":{"TEST_ENV":"{{DATE}}"}}}}}'
    )
    (local.work / "spec.json").write_text(spec)
    run = local.json("submit", "--watch", "spec.json")
    (run_id,) = [each["run_id"] for each in local.runs()]
    assert (run["run_id"], run["state"], run["tags"], run["task_states"]) == (
        run_id,
        "COMPLETED",
        {"abc": "def"},
        {"COMPLETED": 4},
    )
    assert run["submit_time"] <= run["start_time"] <= run["stop_time"]
    assert [(each["task_id"], each["task_type"], each["state"]) for each in local.json("tasks", str(run_id))] == [
        ("a", "STRUCTURAL", "COMPLETED"),
        ("a.{{DATE}}:2022-01-01", "COMMAND", "COMPLETED"),
        ("a.{{DATE}}:2022-01-02", "COMMAND", "COMPLETED"),
        ("a.tail", "STRUCTURAL", "COMPLETED"),
    ]
    whole = local.task(run_id, "a.{{DATE}}:2022-01-02")
    assert whole["details"]["environment"] == {"TEST_ENV": "2022-01-02"}
    (attempt,) = whole["attempts"]
    assert (attempt["outcome"], attempt["exit_code"]) == ("SUCCEEDED", 0)
    assert (attempt["stdout"], attempt["stderr"]) == ("2022-01-02\n", "")
    assert attempt["cpu_seconds"] >= 0
    # `run` prints the same, with its tasks.
    ended = local.daggyr("--output", "json", "run", "spec.json")
    assert (ended.code, ended.json["state"], len(ended.json["tasks"])) == (0, "COMPLETED", 4)
    assert run.keys() | {"tasks"} == ended.json.keys()


def test_parents_and_children_are_waited_for(local: Deployment) -> None:
    """Each task needs what the tasks before it made."""
    run = local.complete(
        {
            "bill": shell("cat list prices > bill", parents=["list", "prices"]),
            "list": shell("cat start > list; echo list >> list"),
            "prices": shell("cat start > prices; echo prices >> prices"),
            "start": shell("echo start > start", children=["list", "prices"]),
        }
    )
    assert run["state"] == "COMPLETED"
    assert local.read("bill") == "start\nlist\nstart\nprices\n"


def test_a_match_waits_for_its_equals_and_a_barrier_for_all(local: Deployment) -> None:
    """The first month is loaded while the second is still held. The report is not made before both are loaded."""
    gate = local.gate()
    run_id = local.submit(
        {
            "extract": shell(f'if [ "{{{{M}}}}" = 2 ]; then {gate.hold}; fi; echo {{{{M}}}} > extracted-{{{{M}}}}'),
            "load": shell(
                "cat extracted-{{M}} > loaded-{{M}}; [ {{M}} = 1 ] && echo open > first || true",
                parents=[{"task": "extract", "match": ["{{M}}"]}],
            ),
            "report": shell("cat loaded-1 loaded-2 > report", parents=["load"]),
        },
        parameters={"{{M}}": ["1", "2"]},
    )
    local.running(run_id, "extract.{{M}}:2")
    # One of two workers is held, and the other one has nothing else to do.
    until(lambda: local.read("first"), "the first month")
    states = local.states(run_id)
    assert (states["extract.{{M}}:2"], states["extract.tail"], states["report"]) == ("RUNNING", "QUEUED", "QUEUED")
    gate.open()
    local.watch(run_id)
    assert local.read("report") == "1\n2\n"


def test_what_a_process_is_given(local: Deployment) -> None:
    (local.work / "inner").mkdir()
    run = local.complete(
        {
            "seen": shell(
                "pwd; cat; env -0; exec 0<&-",
                working_directory="inner",
                stdin="one\ntwo\0three",
                environment={"MINE": "a b", "DAGGYR_ATTEMPT": "mine too"},
            ),
            "nothing": shell("readlink /proc/self/fd/0; pwd"),
        }
    )
    seen = local.task(run["run_id"], "seen")["attempts"][0]["stdout"]
    assert seen.startswith(f"{local.work}/inner\none\ntwo\0three")
    variables = dict(each.split("=", 1) for each in seen.split("\0three")[1].split("\0") if each)
    given = {name: value for name, value in variables.items() if name.startswith("DAGGYR_") or name == "MINE"}
    assert given.pop("DAGGYR_AGENT_ID") and int(given.pop("DAGGYR_LIFE"), 16)
    assert given == {"MINE": "a b", "DAGGYR_ATTEMPT": "mine too", "DAGGYR_RUN_ID": str(run["run_id"]), "DAGGYR_TASK_ID": "seen"}
    assert variables["PATH"] == local.environment["PATH"]
    assert local.task(run["run_id"], "nothing")["attempts"][0]["stdout"] == f"/dev/null\n{local.work}\n"


def test_retries_wait_and_then_the_task_is_errored(local: Deployment) -> None:
    """Two retries come after 0.2 and 0.4 seconds. Then the tasks behind it stay queued, and everything else goes on."""
    run = local.complete(
        {
            "mended": shell('echo "try $DAGGYR_ATTEMPT"; test "$DAGGYR_ATTEMPT" -ge 2', max_retries=2),
            "broken": shell("cut -d ' ' -f 1 /proc/uptime >> starts; exit 3", max_retries=2, retry_delay=0.2, children=["after"]),
            "after": task("true"),
            "other": task("true", parents=["mended"]),
        },
        code=1,
    )
    assert (run["state"], run["task_states"]) == ("ERRORED", {"COMPLETED": 2, "ERRORED": 1, "QUEUED": 1})
    run_id = run["run_id"]
    mended, broken = (local.task(run_id, name)["attempts"] for name in ("mended", "broken"))
    assert [(each["outcome"], each["stdout"]) for each in mended] == [("FAILED", "try 1\n"), ("SUCCEEDED", "try 2\n")]
    assert [(each["attempt"], each["outcome"], each["exit_code"]) for each in broken] == [
        (1, "FAILED", 3),
        (2, "FAILED", 3),
        (3, "FAILED", 3),
    ]
    # By a clock that nobody sets, in hundredths of a second.
    pauses = [after - before for before, after in pairwise(map(float, local.read("starts").split()))]
    assert pauses[0] > 0.18
    assert pauses[1] > 0.38


def test_a_timeout_ends_the_whole_group_and_counts_as_a_failure(local: Deployment) -> None:
    run = local.complete({"slow": shell("sleep 1000 & wait", timeout=0.2, max_retries=1)}, code=1)
    attempts = local.task(run["run_id"], "slow")["attempts"]
    assert [each["outcome"] for each in attempts] == ["TIMED_OUT", "TIMED_OUT"]
    assert "timeout" in attempts[0]["executor"][0]
    assert run["state"] == "ERRORED"


def test_higher_priorities_go_first(local: Deployment) -> None:
    gate = local.gate()
    both = {"resources": {"cores": 2}}
    run_id = local.submit(
        {
            "hold": shell(gate.hold, priority=100, **both),
            "low": shell(LEDGER, priority=-1, **both),
            "middle": shell(LEDGER, **both),
            "high": shell(LEDGER, priority=7, **both),
        }
    )
    gate.open()
    local.watch(run_id)
    assert local.read("ledger").split() == ["high", "middle", "low"]


def test_resources_are_not_oversubscribed(local: Deployment) -> None:
    """Tasks that need both workers' cores, or most of the memory, are never two at once; others share."""
    alone = "mkdir lock || exit 1; sleep 0.01; rmdir lock"
    (resources,) = until(lambda: [pool["resources"] for pool in local.pools() if pool["hosts"]], "the local agent")
    memory_mb = resources["memory_mb"]
    whole = {f"wide-{number}": shell(alone, resources={"cores": 2}) for number in range(6)}
    large = {f"large-{number}": shell(alone, resources={"memory_mb": memory_mb * 2 // 3}) for number in range(6)}
    assert local.complete({**whole, **large})["task_states"] == {"COMPLETED": 12}


def test_two_runs_share_the_pool(local: Deployment) -> None:
    """A small run behind a large one is done before half of the large one is, though some of that was sent ahead."""
    gate = local.gate()
    large = {f"task-{number}": shell(LEDGER) for number in range(600)}
    first = local.submit({"hold": shell(gate.hold, priority=1, resources={"cores": 2}), **large})
    gate.reached()
    second = local.submit({f"small-{number}": shell(LEDGER) for number in range(3)})
    gate.open()
    local.watch(first)
    local.watch(second)
    order = local.read("ledger").split()
    assert len(order) == 603
    assert max(order.index(f"small-{number}") for number in range(3)) < 300


def workflow(levels: int, width: int) -> dict[str, Task]:
    """A layered graph of which each task needs the files of up to three tasks of the layer before, or exits with 3."""
    random_ = random.Random(20130101)
    tasks: dict[str, Task] = {}
    before: list[str] = []
    for level in range(levels):
        layer = [f"t{level}-{number}" for number in range(width)]
        for name in layer:
            parents = sorted(random_.sample(before, min(3, len(before))))
            inputs = " && ".join(f"test -f wf/{parent}" for parent in parents) or "true"
            tasks[name] = shell(f"{{ {inputs}; }} || exit 3; echo {name} >> wf/.ledger; touch wf/{name}", parents=parents)
        before = layer
    return tasks


@pytest.mark.parametrize("how", ["run", "agents"])
def test_each_task_of_a_workflow_runs_once_and_after_its_inputs(deployment: Deployment, how: str) -> None:
    tasks = workflow(levels=10, width=6)
    (deployment.work / "wf").mkdir()
    if how == "run":
        ended = deployment.daggyr("--output", "json", "run", deployment.spec(tasks))
        assert ended.code == 0, ended.err
        run = ended.json
    else:
        deployment.start_server(config='[pools.farm]\nexecutor = "agent"\n')
        deployment.start_agent("one")
        deployment.start_agent("two")
        run = deployment.complete(tasks)
        # At first, no agent is given more than one task beside the one that it runs.
        hosts = {deployment.task(1, name)["attempts"][0]["host"] for name in list(tasks)[:3]}
        assert hosts == {"one", "two"}
    assert run["task_states"] == {"COMPLETED": 60}
    assert sorted(deployment.read("wf/.ledger").split()) == sorted(tasks)


async def test_a_submission_that_is_repeated_is_one_run(local: Deployment) -> None:
    document = json.dumps({"tasks": {"a": shell(LEDGER)}}).encode()
    async with local.client() as client:
        first = await client.submit_document(io.BytesIO(document), request_id="mine")
        second = await client.submit_document(io.BytesIO(document), request_id="mine")
        other = await client.submit_document(io.BytesIO(document), request_id="another")
        assert first == second != other
        async for change in client.watch(other):
            run = change.run
        async for change in client.watch(first):
            run = change.run
        assert run.run_id == first
    assert local.read("ledger") == "a\na\n"
