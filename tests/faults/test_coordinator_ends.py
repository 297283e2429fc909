"""Coordinators that end, and those that come after them: after SIGTERM, beside another coordinator, with children that stay."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil
import psycopg
import pytest
from farm import LEDGER, Farm, layers
from faults_tracker import new_tracker
from support.deployment import Deployment, Program, is_gone, shell, task, until
from support.open_files import open_files


def stop(coordinator: Program) -> None:
    """Send SIGTERM. It fails unless the coordinator exits with 0."""
    assert coordinator.end() == 0, coordinator.said()


def waits_for_the_lock(coordinator: Program, tracker: str) -> bool:
    """Whether a coordinator waits for the lock of the tracker that another coordinator has."""
    if tracker.startswith("sqlite:"):
        return any(file.endswith("/state.db-lock") for file in open_files(coordinator.pid).values())
    with psycopg.connect(tracker) as connection:
        waiting = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
        return waiting is not None and waiting[0] > 0


def test_a_coordinator_that_is_stopped_leaves_work_to_agents(deployment: Deployment, tracker: str) -> None:
    """Agents keep what they run and what has ended. The next coordinator takes both up."""
    farm = Farm(deployment, tracker)
    farm.start()
    ends, runs = deployment.gate("ends"), deployment.gate("runs")
    farm.agents("one")
    run_id = deployment.submit(
        {
            "ends": shell(f"{ends.hold}; {LEDGER}; echo done", children=["after"]),
            "runs": shell(f"{runs.hold}; {LEDGER}", children=["after"]),
            "after": shell(LEDGER),
        }
    )
    pids = [ends.reached(), runs.reached()]
    watching = farm.watching(run_id)
    stop(farm.coordinator)
    assert not any(map(is_gone, pids))
    ends.open()
    farm.wait_for(1)
    farm.start()
    runs.open()
    assert deployment.ended(watching).code == 0
    assert sorted(farm.performed()) == [("after", 1), ("ends", 1), ("runs", 1)]
    assert deployment.task(run_id, "ends")["attempts"][0]["stdout"] == "done\n"


def test_coordinators_that_are_stopped_while_much_goes_on(deployment: Deployment, sqlite_tracker: str) -> None:
    farm = Farm(deployment, sqlite_tracker)
    farm.start()
    farm.agents("one", "two")
    tasks = layers(600, 20)
    run_id = deployment.submit(tasks)
    for lines in (50, 200, 350):
        farm.wait_for(lines)
        stop(farm.coordinator)
        farm.start()
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 600}
    farm.assert_each_once(run_id, tasks)


@pytest.mark.xdist_group("postgres")
def test_a_second_coordinator_waits_and_is_refused(deployment: Deployment, request: pytest.FixtureRequest) -> None:
    """The second one is told which coordinator has the tracker, of each kind, and the first one goes on undisturbed."""
    farms: list[Farm] = []
    seconds: list[Program] = []
    for kind in ("sqlite", "postgresql"):
        farm = Farm(deployment, new_tracker(kind, request), listen=f"unix:{deployment.folder}/s/{kind}.sock")
        farm.start()
        other = f"unix:{deployment.folder}/s/{kind}-2.sock"
        seconds.append(deployment.start("daggyr-server", "--tracker", farm.tracker, "--listen", other, name=f"second-{kind}"))
        farms.append(farm)
    for farm, second in zip(farms, seconds, strict=True):
        assert second.wait() == 2
        assert "another coordinator uses the tracker" in second.said()
        assert f"process {farm.coordinator.pid} on host {os.uname().nodename}" in second.said()
        deployment.address = farm.listen
        deployment.start_agent("one", "--state-dir", f"{deployment.folder}/{farm.tracker[:6]}")
        deployment.goes_on()


def test_a_coordinator_that_waits_takes_over(deployment: Deployment, tracker: str) -> None:
    """A coordinator that was started too early begins once the other one has ended."""
    farm = Farm(deployment, tracker)
    first = farm.start()
    run_id = deployment.submit({"a": task("true")})
    ready = deployment.folder / "ready-second"
    config = str(deployment.folder / "server.toml")
    second = deployment.start("daggyr-server", "--config", config, "--listen", farm.listen, "--ready-file", str(ready))
    until(lambda: waits_for_the_lock(second, tracker), "the second to wait")
    first.end(signal.SIGKILL)
    until(lambda: ready.exists() or second.process.poll() is not None, "the second")
    farm.agents("one")
    assert deployment.watch(run_id)["state"] == "COMPLETED"


def test_children_do_not_inherit_the_lock(deployment: Deployment, tracker: str) -> None:
    """The next coordinator begins at once, though the stopped local agent and its task outlive the last one."""
    farm = Farm(deployment, tracker, pools='[pools.farm]\nexecutor = "local"\nworkers = 1')
    first = farm.start()
    gate = deployment.gate()
    run_id = deployment.submit({"a": shell(f'if [ "$DAGGYR_ATTEMPT" = 1 ]; then {gate.hold}; fi; {LEDGER}')})
    gate.reached()
    below = psutil.Process(first.pid).children(recursive=True)
    assert len(below) >= 2
    for child in below:
        child.suspend()
    try:
        farm.kill()
        farm.start()
        assert not any(is_gone(child.pid) for child in below)
        assert deployment.watch(run_id)["state"] == "COMPLETED"
        assert farm.performed() == [("a", 2)]
    finally:
        for child in below:
            with contextlib.suppress(psutil.NoSuchProcess):  # the agent that was resumed first may have ended it
                child.resume()
    until(lambda: all(is_gone(child.pid) for child in below), "the end of the first coordinator's agent")
    assert farm.performed() == [("a", 2)]
