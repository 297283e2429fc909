"""Trackers that take nothing for a while, or for good: nothing new is started, nothing is lost, and people are told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from farm import LEDGER, Farm, layers
from faults_tracker import new_tracker
from support.deployment import Deployment, Task, shell, task, until
from support.metrics_scrape import address_said, scrape
from support.postgres_server import PostgresServer
from support.small_disk import SmallDisk, small_disk
from support.waiting import Gate
from test_coordinator_ends import stop

CHATTY = f"head -c 100000 /dev/zero | tr '\\0' x; {LEDGER}"  # a full disk has no room for this output


HEARTBEAT = 3  # seconds; an agent is given up after four that were missed
SETTINGS = f"lease = 60\nheartbeat = {HEARTBEAT}\nmetrics = '127.0.0.1:0'"
HELD = 40  # tasks that end while nothing is durable: more messages than are taken from an agent at once


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def in_trouble(deployment: Deployment, run_id: int) -> str:
    """Wait until `show` tells of the trouble, and return its words."""

    def note() -> str:
        notes = deployment.run(run_id)["notes"]
        return next((note for note in notes if "cannot be made durable" in note), "")

    return until(note, "the trouble, in `show`")


def keeps_its_agents(deployment: Deployment, clock: str) -> None:
    """Return once a later heartbeat of the agent `clock` was heard. All agents stay connected meanwhile."""
    before = {agent["name"]: agent for agent in deployment.agents()}
    later = datetime.now(UTC) + timedelta(seconds=HEARTBEAT)

    def heard() -> bool:
        agents = {agent["name"]: agent for agent in deployment.agents()}
        for name, agent in agents.items():
            assert (agent["state"], agent["connect_time"]) == ("CONNECTED", before[name]["connect_time"]), name
        return datetime.fromisoformat(agents[clock]["last_seen"]) > later

    until(heard, "heartbeats")


@pytest.fixture
def on_disk(deployment: Deployment, disk: SmallDisk) -> Iterator[Farm]:
    farm = Farm(deployment, f"sqlite:{disk.folder}/state.db", SETTINGS)
    farm.start()
    yield farm
    farm.coordinator.end()


def half_way(deployment: Deployment, script: str, count: int, width: int) -> tuple[dict[str, Task], Gate]:
    """Start layers of tasks, one of which in the middle of the first chain is held until its gate opens."""
    tasks = layers(count, width, script)
    gate = deployment.gate("middle")
    held = f"t{count // 2 // width * width}"
    tasks[held] = {**tasks[held], **shell(f"{gate.hold}; {script}")}
    return tasks, gate


def test_a_disk_that_is_full_for_a_while(deployment: Deployment, disk: SmallDisk, on_disk: Farm) -> None:
    farm = on_disk
    farm.agents("one", cores=HELD + 1)
    gates = {f"held{number}": deployment.gate(f"gate{number}") for number in range(HELD)}
    held = deployment.submit(
        {
            **{name: shell(f"{gate.hold}; {LEDGER}; echo done", children=["after"]) for name, gate in gates.items()},
            "after": shell(LEDGER),
        }
    )
    until(lambda: deployment.agents()[0]["running"] == HELD, "all that are held")
    farm.agents("two")
    tasks, middle_gate = half_way(deployment, CHATTY, 40, 1)
    run_id = deployment.submit(tasks)
    middle_gate.reached()
    disk.fill()
    middle_gate.open()
    said = in_trouble(deployment, run_id)
    assert "is full" in said and str(disk.folder) in said
    until(lambda: "is full" in farm.coordinator.said(), "the trouble, in the log")
    metrics = address_said(farm.coordinator.said())
    assert scrape(metrics, deployment.token()).value("daggyr_tracker_trouble") == 1
    performed = farm.performed()
    assert 20 < len(performed) < 40
    # The agents keep the results that come meanwhile, however many. No task that waits for them starts, and no new run.
    for number, gate in enumerate(gates.values(), 1):
        gate.open()
        farm.wait_for(len(performed) + number)
    submitting = deployment.command("submit", deployment.spec({"new": shell(LEDGER)}))
    keeps_its_agents(deployment, "two")
    assert submitting.poll() is None
    assert sorted(farm.performed()[len(performed) :]) == sorted((name, 1) for name in gates)
    assert deployment.run(run_id)["state"] == "RUNNING"
    disk.clear()
    ended = deployment.ended(submitting)
    assert ended.code == 0, ended.err
    for each in (held, run_id, int(ended.out)):
        assert deployment.watch(each)["state"] == "COMPLETED"
    assert not deployment.run(run_id)["notes"]
    until(lambda: "can be made durable again" in farm.coordinator.said(), "the end of the trouble, in the log")
    until(lambda: scrape(metrics, deployment.token()).value("daggyr_tracker_trouble") == 0, "the end of the trouble, as a metric")
    assert sorted(name for name, _ in farm.performed()) == sorted([*tasks, *gates, "after", "new"])
    assert deployment.daggyr("logs", str(held), "held7").out == "done\n"
    deployment.was_started_once(run_id)


@pytest.mark.parametrize("end", [stop, lambda coordinator: coordinator.end(signal.SIGKILL)], ids=["SIGTERM", "SIGKILL"])
def test_a_coordinator_that_ends_while_its_disk_is_full(
    deployment: Deployment, disk: SmallDisk, on_disk: Farm, end: Callable[[object], object]
) -> None:
    """The coordinator told nobody of what it could not keep. The next one gets it from the agent."""
    farm = on_disk
    farm.agents("one")
    tasks, gate = half_way(deployment, CHATTY, 40, 1)
    run_id = deployment.submit(tasks)
    gate.reached()
    disk.fill()
    gate.open()
    in_trouble(deployment, run_id)
    end(farm.coordinator)
    disk.clear()
    farm.start()
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 40}
    assert [name for name, _ in farm.performed()] == list(tasks)


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "crashed"])
def test_a_postgres_that_is_gone_for_a_while(
    deployment: Deployment, postgres: PostgresServer, request: pytest.FixtureRequest, crash: bool
) -> None:
    """Postgres is gone in the middle of a run. Commands that need it say so, and others go on."""
    farm = Farm(deployment, new_tracker("postgresql", request), SETTINGS)
    farm.start()
    farm.agents("one", "two")
    tasks, gate = half_way(deployment, LEDGER, 400, 20)
    run_id = deployment.submit(tasks)
    watching = farm.watching(run_id)
    farm.wait_for(100)
    gate.reached()
    if crash:
        postgres.kill()
    else:
        postgres.stop()
    gate.open()
    try:
        in_trouble(deployment, run_id)
        keeps_its_agents(deployment, "one")
        for arguments in (("task", str(run_id), "t0"), ("why", str(run_id), "t0"), ("logs", str(run_id), "t0"), ("runs",)):
            ended = deployment.daggyr(*arguments)
            assert (ended.code, len(ended.err.splitlines())) == (3, 1), ended.err
        performed = len(farm.performed())
        assert performed < 400
        assert sum(deployment.attempts(run_id).values()) >= performed  # nothing was sent that was not assigned before
    finally:
        postgres.start()
    assert deployment.ended(watching).code == 0
    assert deployment.run(run_id)["task_states"] == {"COMPLETED": 400}
    farm.assert_each_once(run_id, tasks)
    deployment.was_started_once(run_id)
    assert "psycopg" not in farm.coordinator.said(), "the library's own words, with addresses of objects"


def test_a_tracker_that_is_taken_away_ends_its_coordinator(deployment: Deployment, sqlite_tracker: str) -> None:
    """What is in the tracker's place is not touched. The agent waits for a coordinator that has the tracker back."""
    farm = Farm(deployment, sqlite_tracker)
    farm.start()
    gate = deployment.gate()
    farm.agents("one")
    run_id = deployment.submit({"a": shell(f"{gate.hold}; {LEDGER}")})
    gate.reached()
    until(lambda: deployment.states(run_id)["a"] == "RUNNING", "the task")
    path = Path(sqlite_tracker.removeprefix("sqlite:"))
    for each in (path, path.with_name(path.name + "-wal")):
        each.rename(each.with_name(f"away-{each.name}"))
    gate.open()
    assert farm.coordinator.wait() == 2
    assert "was taken away" in farm.coordinator.said()
    assert not path.exists()
    for each in (path, path.with_name(path.name + "-wal")):
        each.with_name(f"away-{each.name}").rename(each)
    farm.start()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    assert farm.performed() == [("a", 1)]


def beginning(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"not what a database begins with")


def middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes([0x5A]) * (path.stat().st_size - 8192))


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 8192 * 4096)


@pytest.mark.parametrize("damage", [beginning, middle, half])
def test_a_damaged_file_is_refused_and_left_as_it_is(
    deployment: Deployment, sqlite_tracker: str, damage: Callable[[Path], None]
) -> None:
    farm = Farm(deployment, sqlite_tracker)
    farm.start()
    farm.agents("one")
    deployment.complete({f"t{number}": task("echo", "x" * 500) for number in range(50)})
    stop(farm.coordinator)
    path = Path(sqlite_tracker.removeprefix("sqlite:"))
    damage(path)
    before = path.read_bytes()
    config = str(deployment.folder / "server.toml")
    refused = deployment.start("daggyr-server", "--config", config, "--listen", farm.listen)
    assert refused.wait() == 2
    assert "left as it is" in refused.said()
    assert "bring back a copy" in refused.said() or "Name another file" in refused.said()
    assert path.read_bytes() == before
