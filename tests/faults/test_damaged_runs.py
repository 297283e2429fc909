"""A run whose rows make no sense is named and left alone: the server starts, the others go on, and it can be deleted."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import grpc
import psycopg
import pytest
from farm import LEDGER, Farm
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.deployment import PATIENT, Deployment, shell, until
from support.metrics_scrape import address_said, scrape

# What a flipped bit or a lost page leaves of run 2, which is in flight, as SQL that both databases take.
DAMAGE = {
    "no host": "DELETE FROM host WHERE run_id = 2",
    "a document that is cut": "DELETE FROM document WHERE run_id = 2",
    "a document that does not decode": "UPDATE document SET data = {text} WHERE run_id = 2",
    "a list that is cut": "UPDATE assignment SET number_list = {three} WHERE run_id = 2",
    "an attempt of a task that is not there": "UPDATE assignment SET number_list = {large} WHERE run_id = 2",
    "tags that are no JSON": "UPDATE run SET tags = '{{\"a\": 1' WHERE run_id = 2",
    "a state of an attempt that is none": "UPDATE attempt SET state = 77 WHERE run_id = 2",
    "a growth of the graph that is missing": "UPDATE growth SET revision = 7 WHERE run_id = 2",
}


def execute(tracker: str, statement: str) -> None:
    if tracker.startswith("sqlite:"):
        words = {"text": "x'7b22746173'", "three": "x'000000'", "large": "x'ffff0000'"}
        with contextlib.closing(sqlite3.connect(tracker.removeprefix("sqlite:"))) as connection:
            connection.execute(statement.format(**words))
            connection.commit()
        return
    words = {"text": r"'\x7b22746173'", "three": r"'\x000000'", "large": r"'\xffff0000'"}
    with psycopg.connect(tracker, options="-c search_path=daggyr") as database:
        database.execute(statement.format(**words).encode())


def is_undamaged(deployment: Deployment) -> bool:
    """What the health check says of the runs in the tracker."""
    with grpc.insecure_channel(deployment.address) as channel:
        asked = health_pb2.HealthCheckRequest(service="daggyr.v1.Runs/undamaged")
        answer = health_pb2_grpc.HealthStub(channel).Check(asked)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_run(deployment: Deployment, tracker: str, damage: str) -> None:
    farm = Farm(deployment, tracker, settings=f'{PATIENT}\nmetrics = "127.0.0.1:0"')
    farm.start()
    assert is_undamaged(deployment)
    farm.agents("one", cores=8)
    gates = {name: deployment.gate(name) for name in ("first", "second", "third")}
    for name, gate in gates.items():
        tasks = {
            name: shell(f"{gate.hold}; {LEDGER}", children=["after"]),
            "after": shell(LEDGER),
            "done": shell("true"),
            "makes": {**shell("""echo '{"made": {"details": {"command": ["true"]}}}'"""), "is_generator": True},
        }
        run_id = deployment.submit(tasks)
        gate.reached()
        deployment.running(run_id, name)
        until(lambda run_id=run_id: deployment.run(run_id)["task_states"].get("COMPLETED", 0) >= 3, "what is not held")
    farm.kill()
    execute(tracker, damage)
    farm.start()
    until(lambda: "run 2 is damaged in the tracker" in farm.coordinator.said(), "the damaged run, in the log")
    shown = deployment.daggyr("show", "2")
    assert shown.code == 0 and "DAMAGED" in shown.out and "run 2 is damaged in the tracker" in shown.out, shown
    listed = deployment.daggyr("runs")
    assert listed.code == 0 and listed.out.count("DAMAGED") == 1, listed
    assert "is damaged" in deployment.run(2)["damage"]
    until(lambda: not is_undamaged(deployment), "the health check to tell")
    assert scrape(address_said(farm.coordinator.said()), deployment.token()).value("daggyr_damaged_runs") == 1
    for command in ("tasks 2", "why 2 second", "retry 2", "watch 2"):
        ended = deployment.daggyr(*command.split())
        assert ended.code == 2 and "daggyr delete 2" in ended.err, (command, ended)
    for name in ("first", "third"):
        gates[name].open()
    for run_id in (1, 3):
        assert deployment.watch(run_id)["task_states"]["COMPLETED"] >= 4
    assert deployment.complete({"new": shell("true")})["run_id"] == 4
    farm.kill_and_start()
    until(lambda: "DAMAGED" in deployment.daggyr("runs").out, "the damage, in the list")
    assert deployment.daggyr("delete", "2").code == 0
    until(lambda: is_undamaged(deployment), "the health check to tell")
    assert [run["run_id"] for run in deployment.runs()] == [4, 3, 1]
    farm.kill_and_start()
    assert "is damaged" not in farm.coordinator.said()
    assert [run["run_id"] for run in deployment.runs()] == [4, 3, 1]
    assert "second" not in [name for name, _ in farm.performed()], "its attempt went on"


def test_an_ended_run_that_is_damaged(deployment: Deployment, tracker: str, tmp_path: Path) -> None:
    farm = Farm(deployment, tracker)
    farm.start()
    farm.agents("one")
    for _ in range(2):
        deployment.complete({"a": shell("echo a")})
    farm.kill()
    execute(tracker, "UPDATE attempt SET result = {text} WHERE run_id = 2")
    farm.start()
    assert deployment.daggyr("show", "2").code == 0
    ended = deployment.daggyr("task", "2", "a")
    assert ended.code == 2 and "run 2 is damaged in the tracker" in ended.err, ended
    assert deployment.task(1, "a")["attempts"][0]["stdout"] == "a\n"
    assert deployment.daggyr("delete", "2").code == 0
    assert [run["run_id"] for run in deployment.runs()] == [1]
