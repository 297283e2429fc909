"""What people are told is durable: no answer tells of anything that a crash could undo."""

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
    """Let the coordinator's next commit wait: the Postgres process of the session that holds the tracker's lock is stopped.

    A lock would hold the commit as well, but only for as long as a coordinator lets a commit wait for a lock.
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
    """While the end of a run is being committed, no command tells of it. Commands about other things are answered."""
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
        # Running attempts are counted when they are decided on, which is before the commit.
        until(lambda: [pool["running"] for pool in deployment.pools()] == [0], "the end of the task")
        asked = [deployment.command("--output", "json", command, str(run_id)) for command in ("show", "tasks")]
        # If the commands above were answered, they would have ended by the time these calls have.
        assert deployment.run(other)["state"] == "QUEUED"
        assert [pool["running"] for pool in deployment.pools()] == [0]
        assert [process.poll() for process in (*asked, watching)] == [None, None, None]
    show, tasks = (deployment.ended(process).json for process in asked)
    assert show["state"] == "COMPLETED"
    assert [each["state"] for each in tasks] == ["COMPLETED"]
    assert deployment.ended(watching).code == 0
