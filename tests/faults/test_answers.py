"""What people are told is durable: nobody hears of anything that a crash could undo."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from farm import LEDGER, Farm
from faults_tracker import new_tracker
from support.deployment import Deployment, shell, until


@contextmanager
def held_commits(tracker: str) -> Iterator[None]:
    """Within, the coordinator's next commit waits: the process of Postgres that serves who holds the tracker's lock is stopped.

    A lock would do as well, but for no longer than a coordinator lets a commit wait for one.
    """
    with psycopg.connect(tracker) as connection:
        (row,) = connection.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted").fetchall()
    os.kill(row[0], signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(row[0], signal.SIGCONT)


@pytest.mark.xdist_group("postgres")
def test_nothing_is_told_before_it_is_durable(deployment: Deployment, request: pytest.FixtureRequest) -> None:
    """While the end of a run is being committed, no command tells of it; commands about other things are answered."""
    farm = Farm(deployment, new_tracker("postgresql", request))
    farm.start()
    gate = deployment.gate()
    farm.agents("one")
    run_id = deployment.submit({"a": shell(f"{gate.hold}; {LEDGER}")})
    other = deployment.submit({"b": shell("true", resources={"gpus": 1})})
    gate.reached()
    deployment.running(run_id, "a")
    watching = farm.watching(run_id)
    with held_commits(farm.tracker):
        gate.open()
        # What runs is counted when it is decided on, which is before the commit.
        until(lambda: [pool["running"] for pool in deployment.pools()] == [0], "the end of the task")
        asked = [deployment.command("--output", "json", command, str(run_id)) for command in ("show", "tasks")]
        # These take longer than the others would if they were answered.
        assert deployment.run(other)["state"] == "QUEUED"
        assert [pool["running"] for pool in deployment.pools()] == [0]
        assert [process.poll() for process in (*asked, watching)] == [None, None, None]
    show, tasks = (deployment.ended(process).json for process in asked)
    assert show["state"] == "COMPLETED"
    assert [each["state"] for each in tasks] == ["COMPLETED"]
    assert deployment.ended(watching).code == 0
