"""A run whose rows make no sense is named and left alone: the server starts, the others go on, and it can be deleted."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable

import grpc
import psycopg
import pytest
from farm import LEDGER, Farm
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.deployment import PATIENT, Deployment, shell, until
from support.metrics_scrape import address_said, scrape
from support.server_calls import ServerCalls

# What a flipped bit or a lost page leaves of a run that is in flight, as SQL that both databases take.
DAMAGE = {
    "no host": "DELETE FROM host WHERE run_id = {run}",
    "a document that is cut": "DELETE FROM document WHERE run_id = {run}",
    "a document that does not decode": "UPDATE document SET data = {text} WHERE run_id = {run}",
    "a list that is cut": "UPDATE assignment SET number_list = {three} WHERE run_id = {run}",
    "an attempt of a task that is not there": "UPDATE assignment SET number_list = {large} WHERE run_id = {run}",
    "tags that are no JSON": "UPDATE run SET tags = '{{\"a\": 1' WHERE run_id = {run}",
    "a state of an attempt that is none": "UPDATE attempt SET state = 77 WHERE run_id = {run}",
    "a growth of the graph that is missing": "UPDATE growth SET revision = 7 WHERE run_id = {run}",
}


def execute(tracker: str, run_id: int, statement: str) -> None:
    if tracker.startswith("sqlite:"):
        words = {"text": "x'7b22746173'", "three": "x'000000'", "large": "x'ffff0000'"}
        with contextlib.closing(sqlite3.connect(tracker.removeprefix("sqlite:"))) as connection:
            connection.execute(statement.format(run=run_id, **words))
            connection.commit()
        return
    words = {"text": r"'\x7b22746173'", "three": r"'\x000000'", "large": r"'\xffff0000'"}
    with psycopg.connect(tracker, options="-c search_path=daggyr") as database:
        database.execute(statement.format(run=run_id, **words).encode())


def is_undamaged(deployment: Deployment) -> bool:
    """What the health check says of the runs in the tracker."""
    with grpc.insecure_channel(deployment.address) as channel:
        asked = health_pb2.HealthCheckRequest(service="daggyr.v1.Runs/undamaged")
        answer = health_pb2_grpc.HealthStub(channel).Check(asked)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_damaged_runs_among_others(deployment: Deployment, tracker: str) -> None:
    """Each damage is another run's. The first run and the last one are sound."""
    farm = Farm(deployment, tracker, settings=f'{PATIENT}\nmetrics = "127.0.0.1:0"')
    farm.start()
    assert is_undamaged(deployment)
    sound, damaged = (1, len(DAMAGE) + 2), range(2, len(DAMAGE) + 2)
    farm.agents("one", cores=sound[1] + 1)
    gates = {run_id: deployment.gate(f"held{run_id}") for run_id in (sound[0], *damaged, sound[1])}
    for run_id, gate in gates.items():
        tasks = {
            gate.name: shell(f"{gate.hold}; {LEDGER}", children=["after"]),
            "after": shell(LEDGER),
            "done": shell("true"),
            "makes": {**shell("""echo '{"made": {"details": {"command": ["true"]}}}'"""), "is_generator": True},
        }
        assert deployment.submit(tasks) == run_id
        gate.reached()
        deployment.running(run_id, gate.name)
        until(lambda run_id=run_id: deployment.run(run_id)["task_states"].get("COMPLETED", 0) >= 3, "what is not held")
    farm.kill()
    for run_id, damage in zip(damaged, DAMAGE.values(), strict=True):
        execute(tracker, run_id, damage)
    farm.start()
    for run_id, damage in zip(damaged, DAMAGE, strict=True):
        said = f"run {run_id} is damaged in the tracker"
        until(lambda said=said: said in farm.coordinator.said(), f"{damage}, in the log")  # type: ignore[misc]
        assert "is damaged" in deployment.run(run_id)["damage"]
        assert_refused(deployment, run_id)
    shown = deployment.daggyr("show", "2")
    assert shown.code == 0 and "DAMAGED" in shown.out and "run 2 is damaged in the tracker" in shown.out, shown
    listed = deployment.daggyr("runs")
    assert listed.code == 0 and listed.out.count("DAMAGED") == len(DAMAGE), listed
    assert "is damaged" in deployment.run(2)["damage"]
    until(lambda: not is_undamaged(deployment), "the health check to tell")
    assert scrape(address_said(farm.coordinator.said()), deployment.token()).value("daggyr_damaged_runs") == len(DAMAGE)
    for command in ("tasks 2", "why 2 held2", "retry 2", "watch 2"):
        ended = deployment.daggyr(*command.split())
        assert ended.code == 2 and "daggyr delete 2" in ended.err, (command, ended)
    for run_id in sound:
        gates[run_id].open()
        assert deployment.watch(run_id)["task_states"]["COMPLETED"] >= 4
    last = deployment.complete({"new": shell("true")})["run_id"]
    assert last == sound[1] + 1
    farm.kill_and_start()
    until(
        lambda: [run["run_id"] for run in deployment.runs() if run["damage"]] == [*reversed(damaged)], "the damage, in the list"
    )
    assert deployment.daggyr("delete", "2").code == 0
    for run_id in damaged[1:]:
        deployment.delete(run_id)
    until(lambda: is_undamaged(deployment), "the health check to tell")
    assert [run["run_id"] for run in deployment.runs()] == [last, sound[1], sound[0]]
    farm.kill_and_start()
    assert "is damaged" not in farm.coordinator.said()
    assert [run["run_id"] for run in deployment.runs()] == [last, sound[1], sound[0]]
    performed = [name for name, _ in farm.performed()]
    assert not {gates[run_id].name for run_id in damaged}.intersection(performed), "an attempt of a damaged run went on"


def assert_refused(deployment: Deployment, run_id: int) -> None:
    """Whoever wants more of a damaged run than to see it is told to delete it."""
    calls: tuple[Callable[[ServerCalls], object], ...] = (
        lambda server: server.tasks(run_id),
        lambda server: server.why(run_id, f"held{run_id}"),
        lambda server: server.retry(run_id),
        lambda server: server.ended(run_id),
    )
    for call in calls:
        with pytest.raises(grpc.RpcError) as refused:
            deployment.ask(call)
        assert f"daggyr delete {run_id}" in refused.value.details()  # type: ignore[attr-defined]


def test_an_ended_run_of_which_attempts_are_damaged(deployment: Deployment, tracker: str) -> None:
    """Nobody looks for it. Once somebody has met it, the run, the health check and the metrics tell, and the rest can be read."""
    farm = Farm(deployment, tracker, settings=f'{PATIENT}\nmetrics = "127.0.0.1:0"')
    farm.start()
    farm.agents("one")
    for _ in range(2):
        deployment.complete({"a": shell("echo a"), "b": shell("echo b")})
    farm.kill()
    execute(tracker, 2, "UPDATE attempt SET result = {text} WHERE run_id = {run} AND number = 0")
    farm.start()
    assert not [note for note in deployment.run(2)["notes"] if "damaged" in note] and is_undamaged(deployment)
    # A list that is to tell sizes meets it, and is a list all the same.
    assert [(task["state"], task["stdout_bytes"]) for task in deployment.json("tasks", "2")] == [("COMPLETED", None)] * 2
    ended = deployment.daggyr("task", "2", "a")
    assert ended.code == 2 and "a part of run 2 is damaged in the tracker" in ended.err, ended
    (note,) = [note for note in deployment.run(2)["notes"] if "damaged" in note]
    assert note.startswith("a part of run 2 is damaged in the tracker") and "daggyr delete 2" in note
    assert deployment.run(2)["damage"] is None and deployment.run(2)["state"] == "COMPLETED"
    assert note in next(run for run in deployment.runs() if run["run_id"] == 2)["notes"]
    assert deployment.task(2, "b")["attempts"][0]["stdout"] == "b\n"
    assert deployment.task(1, "a")["attempts"][0]["stdout"] == "a\n"
    until(lambda: not is_undamaged(deployment), "the health check to tell")
    assert scrape(address_said(farm.coordinator.said()), deployment.token()).value("daggyr_damaged_runs") == 1
    assert farm.coordinator.said().count("a part of run 2 is damaged") == 1, "one line of the log, however often it is met"
    assert deployment.daggyr("delete", "2").code == 0
    until(lambda: is_undamaged(deployment), "the health check to tell")
    assert [run["run_id"] for run in deployment.runs()] == [1]
