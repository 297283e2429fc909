"""A coordinator that is killed while runs are pruned: each run is whole or gone, and nothing is left of those that are gone."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import psycopg
from farm import Farm
from support.deployment import Deployment, shell, until
from support.server_calls import ServerCalls

RUNS = 300  # more than are deleted together
TABLES = ("run", "document", "assignment", "attempt", "change", "host")


def run_ids(tracker: str, table: str) -> set[int]:
    """The runs of which a table of the tracker has rows."""
    statement = f"SELECT DISTINCT run_id FROM {table}"
    if tracker.startswith("sqlite:"):
        with contextlib.closing(sqlite3.connect(tracker.removeprefix("sqlite:"))) as connection:
            return {run_id for (run_id,) in connection.execute(statement)}
    with psycopg.connect(tracker, options="-c search_path=daggyr") as database:
        return {run_id for (run_id,) in database.execute(statement.encode())}


def test_a_prune_in_the_middle_of_which_the_coordinator_is_killed(deployment: Deployment, tracker: str) -> None:
    farm = Farm(deployment, tracker, pools='[pools.farm]\nexecutor = "noop"')
    farm.start()
    document = Path(deployment.spec({"a": shell("true", children=["b"]), "b": shell("true")}))

    def submit_all(server: ServerCalls) -> None:
        for _ in range(RUNS):
            server.submit(document)

    deployment.ask(submit_all)
    until(lambda: {run["state"] for run in deployment.runs()} == {"COMPLETED"}, "the end of all runs")
    pruning = deployment.command("prune", "--older-than", "0s")
    until(lambda: len(deployment.runs()) < RUNS, "the first runs to go")
    farm.kill()
    pruning.kill()
    pruning.communicate()
    farm.start()
    left = {run["run_id"] for run in deployment.runs()}
    until(lambda: all(run_ids(tracker, table) == left for table in TABLES), "what is left of the others to go")
    for run_id in sorted(left)[::10]:
        assert deployment.states(run_id) == {"a": "COMPLETED", "b": "COMPLETED"}
        assert deployment.task(run_id, "b")["attempts"][0]["outcome"] == "SUCCEEDED"
    assert deployment.complete({"a": shell("true")})["run_id"] == RUNS + 1
    assert deployment.json("prune", "--older-than", "0s") == {"runs": len(left) + 1}
    assert not any(run_ids(tracker, table) for table in TABLES)
