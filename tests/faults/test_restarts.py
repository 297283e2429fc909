"""A new coordinator and each kind of run that the last one left: the run goes on where it was, and its history is readable."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from pathlib import Path

import pytest
from farm import LEDGER, Farm
from support.deployment import Deployment, is_gone, shell, task, until

LOCAL = '[pools.farm]\nexecutor = "agent"\n[pools.here]\nexecutor = "local"\nworkers = 2'


@pytest.fixture
def farm(deployment: Deployment, sqlite_tracker: str) -> Farm:
    made = Farm(deployment, sqlite_tracker)
    made.start()
    return made


def outcomes(deployment: Deployment, run_id: int, name: str) -> list[str | None]:
    """Return the outcomes of a task's attempts, None for one that runs."""
    return [attempt.get("outcome") for attempt in deployment.task(run_id, name)["attempts"]]


# -- what runs --------------------------------------------------------------------------------------------------------


def test_a_task_that_runs_meanwhile_is_taken_up(farm: Farm, deployment: Deployment) -> None:
    """The attempt is RUNNING for the new coordinator since its own start. It ends once, and its output is whole."""
    gate = deployment.gate()
    farm.agents("one")
    run_id = deployment.submit(
        {"a": shell(f"echo before; {gate.hold}; echo after; {LEDGER}", children=["b"]), "b": shell(LEDGER)}
    )
    pid = gate.reached()
    until(lambda: deployment.states(run_id)["a"] == "RUNNING", "the task, as the coordinator sees it")
    before = deployment.task(run_id, "a")["attempts"][0]
    farm.kill_and_start()
    until(lambda: deployment.states(run_id)["a"] == "RUNNING", "the task, as the new coordinator sees it")
    assert deployment.task(run_id, "a")["attempts"] == [before]
    assert "runs on one since" in deployment.why(run_id, "a")
    until(lambda: deployment.daggyr("logs", str(run_id), "a").out == "before\n", "the output so far")
    assert not is_gone(pid)
    gate.open()
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 2}
    assert farm.performed() == [("a", 1), ("b", 1)]
    assert deployment.daggyr("logs", str(run_id), "a").out == "before\nafter\n"


def test_a_run_that_is_killed_after_a_restart(farm: Farm, deployment: Deployment) -> None:
    """An attempt that an earlier coordinator started is ended as any other is."""
    gate = deployment.gate()
    farm.agents("one")
    run_id = deployment.submit({"a": shell(gate.hold, children=["b"]), "b": shell(LEDGER)})
    pid = gate.reached()
    until(lambda: deployment.states(run_id)["a"] == "RUNNING", "the task")
    farm.kill_and_start()
    until(lambda: [agent["state"] for agent in deployment.agents()] == ["CONNECTED"], "the agent")
    assert deployment.daggyr("kill", str(run_id)).code == 0
    run = deployment.watch(run_id, code=1)
    assert (run["state"], run["task_states"]) == ("KILLED", {"KILLED": 1, "QUEUED": 1})
    assert is_gone(pid)
    assert farm.performed() == []


@pytest.mark.parametrize("names", [(), ("a",)], ids=["the run", "a task"])
def test_an_end_that_was_asked_for_is_not_forgotten(deployment: Deployment, sqlite_tracker: str, names: tuple[str, ...]) -> None:
    """The agent is stopped while its attempt is to be ended, so that only the next coordinator can tell it."""
    farm = Farm(deployment, sqlite_tracker)
    farm.start()
    gate = deployment.gate()
    (agent,) = farm.agents("one")
    run_id = deployment.submit({"a": shell(gate.hold, children=["b"], max_retries=3), "b": shell(LEDGER)})
    pid = gate.reached()
    until(lambda: deployment.states(run_id)["a"] == "RUNNING", "the task")
    agent.process.send_signal(signal.SIGSTOP)
    assert deployment.daggyr("kill", str(run_id), *names).code == 0
    farm.kill_and_start()
    assert not is_gone(pid)
    agent.process.send_signal(signal.SIGCONT)
    assert deployment.watch(run_id, code=1)["task_states"] == {"KILLED": 1, "QUEUED": 1}
    assert is_gone(pid)
    assert outcomes(deployment, run_id, "a") == ["KILLED"]
    # The task can be asked for again, and is then not KILLED any more.
    assert deployment.daggyr("retry", str(run_id)).code == 0
    gate.open()
    farm.wait_for(1)
    farm.kill_and_start()
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 2}
    assert outcomes(deployment, run_id, "a") == ["KILLED", "SUCCEEDED"]


def test_a_local_pool_dies_with_its_coordinator(deployment: Deployment, sqlite_tracker: str) -> None:
    """Its attempts are ended and LOST, and their tasks run again at once without using a retry."""
    farm = Farm(deployment, sqlite_tracker, pools=LOCAL)
    farm.start()
    gate = deployment.gate()
    script = f'if [ "$DAGGYR_ATTEMPT" = 1 ]; then {gate.hold}; fi; {LEDGER}; test "$DAGGYR_ATTEMPT" = 3'
    run_id = deployment.submit({"a": shell(script, pool="here", max_retries=1)})
    pid = gate.reached()
    farm.kill_and_start()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    until(lambda: is_gone(pid), "the end of what the first coordinator's pool ran")
    assert farm.performed() == [("a", 2), ("a", 3)]
    assert outcomes(deployment, run_id, "a") == ["LOST", "FAILED", "SUCCEEDED"]


def test_retries_that_were_used_stay_used(farm: Farm, deployment: Deployment) -> None:
    """There are three attempts in all, however many coordinators there were. The delay before a retry begins again."""
    gate = deployment.gate()
    farm.agents("one")
    script = f"{LEDGER}; case $DAGGYR_ATTEMPT in 2 | 5) {gate.hold} ;; esac; exit 7"
    run_id = deployment.submit(
        {"a": shell(script, max_retries=2), "later": shell(f"{LEDGER}; exit 8", max_retries=1, retry_delay=1000)}
    )
    gate.reached()
    until(lambda: "before retry 1 of 1" in deployment.why(run_id, "later"), "the delay")
    farm.kill_and_start()
    gate.open()
    until(lambda: deployment.states(run_id)["a"] == "ERRORED", "the last attempt")
    assert outcomes(deployment, run_id, "a") == ["FAILED"] * 3
    assert "before retry 1 of 1" in deployment.why(run_id, "later")
    assert deployment.daggyr("kill", str(run_id)).code == 0
    assert deployment.watch(run_id, code=1)["state"] == "KILLED"
    assert sorted(farm.performed()) == [("a", 1), ("a", 2), ("a", 3), ("later", 1)]
    # A retry by a person gives a fresh budget, of which the next coordinator knows.
    assert deployment.daggyr("retry", str(run_id), "--task", "a").code == 0
    farm.wait_for(6)
    farm.kill_and_start()
    gate.open()
    farm.wait_for(7)
    until(lambda: deployment.states(run_id)["a"] == "ERRORED", "the last attempt")
    assert outcomes(deployment, run_id, "a") == ["FAILED"] * 6


# -- graphs -----------------------------------------------------------------------------------------------------------


def test_expanded_and_matched_tasks_keep_their_places(farm: Farm, deployment: Deployment) -> None:
    """Tasks wait for the same tasks as before, through heads, tails and matches."""
    gate = deployment.gate()
    farm.agents("one")
    run_id = deployment.submit(
        {
            "a": shell(f'{LEDGER}; if [ "{{{{X}}}}" = 2 ]; then {gate.hold}; fi', children=["c"]),
            "b": shell(f"{LEDGER}; : {{{{X}}}}", parents=[{"task": "a", "match": ["{{X}}"]}]),
            "c": shell(f"{LEDGER}; : {{{{Y}}}}"),
            "d": shell(LEDGER, parents=["b", "c"]),
        },
        parameters={"{{X}}": ["1", "2", "3"], "{{Y}}": ["1", "2"]},
    )
    gate.reached()
    farm.wait_for(5)
    assert {name for name, _ in farm.performed()} == {"a.{{X}}:1", "a.{{X}}:2", "a.{{X}}:3", "b.{{X}}:1", "b.{{X}}:3"}
    farm.kill_and_start()
    until(lambda: deployment.states(run_id)["b.{{X}}:3"] == "COMPLETED", "what was done")
    states = deployment.states(run_id)
    assert (states["b.{{X}}:2"], states["b.tail"], states["c"], states["c.{{Y}}:1"], states["d"]) == ("QUEUED",) * 5
    gate.open()
    run = deployment.watch(run_id)
    assert run["task_states"] == {"COMPLETED": 15}
    farm.assert_each_once(run_id, [name for name, attempts in deployment.attempts(run_id).items() if attempts])
    assert len(farm.performed()) == 9
    assert farm.performed()[-1] == ("d", 1)


def test_a_generator_that_was_half_way(farm: Farm, deployment: Deployment) -> None:
    """One has generated, one is printing, one has failed once. What they print becomes tasks once."""
    gate = deployment.gate()
    farm.agents("one", cores=3)

    def printing(*names: str) -> str:
        # The generator's own text must not expand, so the parameter's name appears only in what it prints.
        tasks = {name: shell(f"{LEDGER}; : @@X%%") for name in names}
        return f"sed 's/@/{{/g; s/%/}}/g' <<'END'\n{json.dumps(tasks)}\nEND\n"

    run_id = deployment.submit(
        {
            "done": shell(printing("d1", "d2"), is_generator=True, children=["after"]),
            "half": shell(f"{printing('h1')}{gate.hold}", is_generator=True, children=["after"]),
            "again": shell(f'test "$DAGGYR_ATTEMPT" = 2 || exit 3; {printing("g1")}', is_generator=True, max_retries=1),
            "after": shell(LEDGER),
        },
        parameters={"{{X}}": ["1", "2"]},
    )
    gate.reached()
    farm.wait_for(6)
    farm.kill_and_start()
    gate.open()
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 4 + 4 * 4}
    farm.kill_and_start()  # an ended run is read from the tracker, with all that was generated
    assert len(deployment.states(run_id)) == 20
    performed = [name for name, _ in farm.performed()]
    assert sorted(performed[:-1]) == sorted(f"{name}.{{{{X}}}}:{value}" for name in ("d1", "d2", "g1", "h1") for value in "12")
    assert performed[-1] == "after"


def test_what_a_generator_printed_may_be_durable_in_part(farm: Farm, deployment: Deployment) -> None:
    """The coordinator dies when it has some of several messages. All of its tasks wait, because no host can run them."""
    farm.agents("one")
    padding = "x" * 1000
    script = (
        "python3 - <<'END'\n"
        "import json\n"
        f"details = {{'command': ['true', {padding!r}], 'resources': {{'gpus': 1}}}}\n"
        "print(json.dumps({f'g{i}': {'details': details} for i in range(8000)}))\nEND\n"
    )
    run_id = deployment.submit({"a": shell(f"{script}{LEDGER}", is_generator=True)})
    path = Path(farm.tracker.removeprefix("sqlite:"))
    log = path.with_name(path.name + "-wal")
    until(lambda: log.exists() and log.stat().st_size > 2_000_000, "some of the output")
    farm.kill_and_start()
    until(lambda: sum(deployment.run(run_id)["task_states"].values()) == 8001, "the generated tasks")
    assert farm.performed() == [("a", 1)]
    assert deployment.daggyr("kill", str(run_id)).code == 0
    run = deployment.watch(run_id, code=1)
    assert (run["state"], run["task_states"]) == ("KILLED", {"COMPLETED": 1, "QUEUED": 8000})


# -- pools ------------------------------------------------------------------------------------------------------------


def test_a_pool_that_is_not_configured_any_more(deployment: Deployment, sqlite_tracker: str) -> None:
    """Attempts in that pool are LOST, and tasks for it wait and say so. Everything else goes on."""
    farm = Farm(deployment, sqlite_tracker, pools='[pools.farm]\nexecutor = "agent"\n[pools.old]\nexecutor = "agent"')
    farm.start()
    gate, other = deployment.gate(), deployment.gate("other")
    farm.agents("one")
    two = deployment.start_agent("two", "--pool", "old", "--resource", "cores=2")
    spec = {
        "a": shell(f'if [ "$DAGGYR_ATTEMPT" = 1 ]; then {gate.hold}; fi; {LEDGER}', pool="old", children=["b"]),
        "b": shell(LEDGER, pool="farm"),
    }
    run_id = deployment.submit(spec, pool="farm")
    killed = deployment.submit({"k": shell(other.hold, pool="old")}, pool="farm")
    gate.reached()
    other.reached()
    two.process.send_signal(signal.SIGSTOP)  # so that the agent does not hear of this
    assert deployment.daggyr("kill", str(killed)).code == 0
    farm.kill()
    both, farm.pools = farm.pools, '[pools.farm]\nexecutor = "agent"'
    farm.start()
    assert deployment.watch(killed, code=1)["state"] == "KILLED"
    until(lambda: outcomes(deployment, run_id, "a") == ["LOST"], "the loss")
    until(lambda: "a host to join the pool 'old'" in deployment.why(run_id, "a"), "the end of its delay")
    assert [pool["name"] for pool in deployment.pools()] == ["farm", "old"]
    deployment.goes_on()
    farm.kill()
    farm.pools = both
    two.process.send_signal(signal.SIGCONT)
    farm.start()
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 2}
    assert farm.performed() == [("a", 2), ("b", 1)]


def test_queued_runs_wait_on(farm: Farm, deployment: Deployment) -> None:
    """Runs wait in the order and with the tags in which they were submitted."""
    ids = [deployment.submit({"a": shell(LEDGER), "b": shell(LEDGER, parents=["a"])}, tags={"n": str(n)}) for n in range(3)]
    farm.kill_and_start()
    runs = deployment.runs()
    assert [(run["run_id"], run["state"], run["tags"]) for run in runs] == [
        (run_id, "QUEUED", {"n": str(n)}) for n, run_id in reversed(list(enumerate(ids)))
    ]
    assert "a host to join the pool" in deployment.why(ids[0], "a")
    farm.agents("one")
    for run_id in ids:
        assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 2}


# -- what clients see -------------------------------------------------------------------------------------------------


async def submitted(deployment: Deployment, request_id: str) -> int:
    document = json.dumps({"tasks": {"a": shell(LEDGER)}}).encode()
    async with deployment.client() as client:
        return await client.submit_document(io.BytesIO(document), request_id=request_id)


def test_run_ids_and_request_ids_outlive_everything(farm: Farm, deployment: Deployment) -> None:
    """A request that is repeated after a restart finds its run. No run id is used again, not even that of a deleted run."""
    first = asyncio.run(submitted(deployment, "the same"))
    farm.kill_and_start()
    assert asyncio.run(submitted(deployment, "the same")) == first
    assert [run["run_id"] for run in deployment.runs()] == [first]
    farm.agents("one")
    deployment.watch(first)
    second = deployment.complete({"a": shell(LEDGER)})["run_id"]
    assert deployment.daggyr("delete", str(second)).code == 0
    farm.kill_and_start()
    assert deployment.daggyr("show", str(second)).code == 2
    assert asyncio.run(submitted(deployment, "the same")) == first
    third = deployment.complete({"a": shell(LEDGER)})["run_id"]
    assert len({first, second, third}) == 3
    assert third > second
    assert len(farm.performed()) == 3


def test_history_is_readable_after_a_restart(farm: Farm, deployment: Deployment) -> None:
    """Runs, tasks, attempts, output and reasons of ended runs are shown as before."""
    farm.agents("one")
    good = deployment.complete(
        {
            "a": shell('echo out; echo err >&2; test "$DAGGYR_ATTEMPT" = 2', max_retries=1),
            "x": shell("echo {{V}}", parents=["a"]),
        },
        parameters={"{{V}}": ["1", "2"]},
        tags={"kind": "good"},
    )["run_id"]
    bad = deployment.complete({"a": task("false"), "b": task("true", parents=["a"]), "c": task("/no/such")}, code=1)["run_id"]

    def seen() -> list[object]:
        listed = [
            {key: run[key] for key in ("run_id", "state", "tags", "task_states", "submit_time", "start_time", "stop_time")}
            for run in deployment.runs()
        ]
        return [
            listed,
            *({**deployment.run(run_id), "change_seq": None} for run_id in (good, bad)),
            *(deployment.tasks(run_id) for run_id in (good, bad)),
            *(deployment.task(good, name) for name in ("a", "x", "x.{{V}}:1", "x.tail")),
            *(deployment.task(bad, name) for name in "abc"),
            *(deployment.why(bad, name) for name in "abc"),
            deployment.daggyr("logs", str(good)).out,
            deployment.daggyr("logs", str(good), "a", "--stderr").out,
        ]

    before = seen()
    farm.kill_and_start()
    assert seen() == before
    # The run can be retried.
    assert deployment.daggyr("retry", str(bad)).code == 0
    deployment.watch(bad, code=1)
    assert outcomes(deployment, bad, "a") == ["FAILED", "FAILED"]


def test_an_agent_that_has_not_come_back_yet_is_shown(deployment: Deployment, sqlite_tracker: str) -> None:
    """The agent has its name and its attempts, and this coordinator has never seen it."""
    farm = Farm(deployment, sqlite_tracker)
    farm.start()
    gate = deployment.gate()
    (agent,) = farm.agents("one")
    run_id = deployment.submit({"a": shell(gate.hold)})
    gate.reached()
    agent.process.send_signal(signal.SIGSTOP)
    farm.kill_and_start()
    (shown,) = until(deployment.agents, "the agent, which is restored while the server answers")
    assert (shown["name"], shown["state"], shown["waiting"], shown["last_seen"]) == ("one", "DISCONNECTED", 1, None)
    assert deployment.daggyr("agents").out.splitlines()[1].startswith("one ")
    assert "one is out of reach" in deployment.why(run_id, "a")
    agent.process.send_signal(signal.SIGCONT)
    gate.open()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
