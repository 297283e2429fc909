"""A run whose tasks are all different: their commands are on the tracker's disk, through restarts and edits."""

from __future__ import annotations

from pathlib import Path

from farm import Farm
from support.deployment import Deployment, Task, task
from support.open_files import nameless
from support.waiting import until

TASKS = 3_000
BULK = "x" * 600  # bytes of each task; together they are more than stays in memory


def tasks(mark: str) -> dict[str, Task]:
    """Return tasks of which each has words of its own."""
    return {f"t{number}": task("echo", f"{mark}-{number}", BULK) for number in range(TASKS)}


def test_they_are_on_disk_through_restarts_and_edits(deployment: Deployment, sqlite_tracker: str) -> None:
    folder = Path(sqlite_tracker.removeprefix("sqlite:")).resolve().parent
    farm = Farm(deployment, sqlite_tracker)
    farm.start()
    run_id = deployment.submit(tasks("old"))
    assert len(nameless(farm.coordinator.pid, folder)) == 1
    farm.kill_and_start()
    until(lambda: len(nameless(farm.coordinator.pid, folder)) == 1, "the specifications on disk again")
    edited = deployment.daggyr("edit", str(run_id), deployment.spec(tasks("new")))
    assert edited.code == 0, edited.err
    assert deployment.task(run_id, "t1234")["details"]["command"] == ["echo", "new-1234", BULK]
    farm.kill_and_start()
    assert deployment.task(run_id, "t2999")["details"]["command"] == ["echo", "new-2999", BULK]
    deployment.start_agent("noop", "--noop")
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": TASKS}
    assert deployment.task(run_id, "t0")["attempts"][0]["outcome"] == "SUCCEEDED"
