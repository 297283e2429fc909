"""Hosts that are there and broken: nothing is ERRORED because of them, and they come back by themselves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from farm import Farm, outcome
from support.deployment import BIN, Deployment, Task, shell, until
from support.small_disk import SmallDisk, small_disk

SLOTS = 64
# Each writes to both streams; where that fails, the task fails, and has had no effect.
WRITES = 'echo "out $DAGGYR_TASK_ID" && echo "err $DAGGYR_TASK_ID" >&2 && echo "$DAGGYR_TASK_ID $DAGGYR_ATTEMPT" >> ledger'


@pytest.fixture
def farm(deployment: Deployment, sqlite_tracker: str) -> Iterator[Farm]:
    farm = Farm(deployment, sqlite_tracker, "heartbeat = 1")
    farm.start()
    yield farm
    farm.coordinator.end()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "size=16m,nr_inodes=2000") as disk:
        yield disk


def writing(count: int) -> dict[str, Task]:
    return {f"t{number}": shell(WRITES) for number in range(count)}


def paused(deployment: Deployment, name: str) -> Any:
    """Wait until the agent is said to be paused; returns what is said of it."""

    def found() -> Any:
        return next((agent for agent in deployment.agents() if agent["name"] == name and agent["state"] == "PAUSED"), None)

    return until(found, "a pause, in `agents`")


def assert_all_written(farm: Farm, run_id: int, names: list[str]) -> None:
    """Each task is COMPLETED, had its effect once, and its output is whole and its own."""
    assert set(farm.deployment.states(run_id).values()) == {"COMPLETED"}
    assert sorted(name for name, _ in farm.performed()) == sorted(names)
    for name in names:
        task = farm.deployment.task(run_id, name)
        last = task["attempts"][-1]
        assert (last["stdout"], last["stderr"]) == (f"out {name}\n", f"err {name}\n")
        assert {attempt["outcome"] for attempt in task["attempts"][:-1]} <= {"RETURNED"}, task


@pytest.mark.parametrize("kind", ["full", "without inodes"])
def test_a_disk_that_is_full_for_a_while(farm: Farm, disk: SmallDisk, kind: str) -> None:
    deployment = farm.deployment
    deployment.start_agent("small", "--resource", f"cores={SLOTS}", "--state-dir", str(disk.folder / "state"))
    (disk.fill if kind == "full" else disk.take_inodes)()
    tasks = writing(100)
    tasks["t0"]["priority"] = 5  # those that differ in that are told together
    names = list(tasks)
    run_id = deployment.submit(tasks)
    said = paused(deployment, "small")
    word = "full" if kind == "full" else "inodes"
    assert word in said["pause"]["reason"] and str(disk.folder) in said["pause"]["reason"]
    assert said["pause"]["until"] is not None
    until(lambda: deployment.pools()[0]["paused"], "the pause, in `pools`")
    until(lambda: word in deployment.why(run_id, "t0"), "the pause, in `why`")

    def shown() -> list[str]:
        return [note for note in deployment.run(run_id)["notes"] if word in note]

    until(lambda: ["100 tasks wait for the end of a pause: " in note for note in shown()] == [True], "the pause, in `show`, once")
    until(lambda: "takes nothing for" in farm.coordinator.said(), "the pause, in the server's log")
    assert "nothing is started for" in deployment.programs[-1].said()
    assert deployment.daggyr("agents").out.count("is paused until") == 1
    assert set(deployment.states(run_id).values()) == {"QUEUED"}
    disk.clear()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    assert_all_written(farm, run_id, names)
    until(lambda: deployment.agents()[0]["state"] == "CONNECTED", "the end of the pause, in `agents`")


def test_a_disk_that_fills_while_tasks_run(farm: Farm, disk: SmallDisk) -> None:
    """Those that have written go on; none that comes later is FAILED for a lack of room."""
    deployment = farm.deployment
    deployment.start_agent("small", "--resource", f"cores={SLOTS}", "--state-dir", str(disk.folder / "state"))
    run_id = deployment.submit({f"t{number}": shell(f"sleep 0.0{number % 9}; {WRITES}") for number in range(1_000)})
    farm.wait_for(100)
    disk.fill()
    paused(deployment, "small")
    disk.clear()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    assert_all_written(farm, run_id, [f"t{number}" for number in range(1_000)])


@pytest.mark.parametrize("kind", ["full", "without inodes", "read-only"])
def test_a_host_that_cannot_keep_anything_beside_one_that_works(farm: Farm, disk: SmallDisk, kind: str) -> None:
    deployment = farm.deployment
    state = disk.folder / "state"
    deployment.start_agent("bad", "--resource", f"cores={SLOTS}", "--state-dir", str(state))
    farm.agents("good", cores=2)
    if kind == "read-only":
        # Another file system on top, because one with open files cannot be made read-only.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(state / "output")], check=True)
    elif kind == "full":
        disk.fill()
    else:
        disk.take_inodes()
    try:
        run_id = deployment.submit(writing(200))
        assert deployment.watch(run_id)["state"] == "COMPLETED"
        assert_all_written(farm, run_id, list(writing(200)))
    finally:
        if kind == "read-only":
            subprocess.run(["umount", "--lazy", str(state / "output")], check=True)


def test_what_was_completed_without_its_output_says_so(farm: Farm, disk: SmallDisk) -> None:
    deployment = farm.deployment
    deployment.start_agent("small", "--resource", "cores=2", "--state-dir", str(disk.folder / "state"))
    gate = deployment.gate("filled")
    run_id = deployment.submit({"a": shell(f"{gate.hold}; echo important; true")})
    gate.reached()
    disk.fill()
    gate.open()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    (attempt,) = deployment.task(run_id, "a")["attempts"]
    assert attempt["outcome"] == "SUCCEEDED"
    assert "may not have been kept" in " ".join(attempt["executor"])
    assert "may not have been kept" in deployment.daggyr("logs", str(run_id), "a").out


def test_a_document_that_could_not_be_kept_is_the_hosts_fault(farm: Farm, disk: SmallDisk) -> None:
    deployment = farm.deployment
    deployment.start_agent("small", "--resource", "cores=2", "--state-dir", str(disk.folder / "state"))
    gate = deployment.gate("filled")
    document = '{"made": {"details": {"command": ["true"]}}}'
    run_id = deployment.submit(
        {"a": shell(f"[ -e filled.pid ] || {{ {gate.hold}; }}; echo '{document}'; true", is_generator=True)}
    )
    gate.reached()
    disk.fill()
    gate.open()
    paused(deployment, "small")
    disk.clear()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    assert deployment.states(run_id)["made"] == "COMPLETED"
    outcomes = [outcome(attempt) for attempt in farm.tasks(run_id, ["a"])["a"].attempts]
    assert (outcomes[-1], set(outcomes[:-1])) == ("SUCCEEDED", {"RETURNED"})


def test_an_agent_that_crashes_with_each_task_beside_one_that_works(farm: Farm) -> None:
    """It is started again each time, as a service manager does, and has much more room than the other one."""
    deployment = farm.deployment
    deployment.passed.append("HOST_KIND")
    agent = f'"{BIN}/daggyr-agent" --coordinator "{deployment.address}" --name bad --pool farm --resource cores={SLOTS}'
    again = deployment.work / "again"
    again.write_text(f"""#!/bin/sh
trap 'touch over; kill "$agent"' TERM
while [ ! -e over ]; do {agent} "$@" & agent=$!; wait "$agent"; done
wait
""")
    again.chmod(0o755)
    deployment.start(str(again), name="bad", HOST_KIND="bad")
    farm.agents("good", cores=1)
    until(lambda: len(deployment.agents()) == 2, "both agents")
    script = f'if [ "$HOST_KIND" = bad ]; then kill -9 $PPID; sleep 60; fi; {WRITES}'
    run_id = deployment.submit({f"t{number}": shell(script) for number in range(100)})
    try:
        assert deployment.watch(run_id)["state"] == "COMPLETED"
    finally:
        (deployment.work / "over").touch()
    assert sorted(name for name, _ in farm.performed()) == sorted(f"t{number}" for number in range(100))
