"""kill -9 of the coordinator while a large document is written before its commit: a change is there whole, or not at all.

The test looks into the tracker, so that it kills in the middle: a document is written in pieces of a mebibyte.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3

import psycopg
from farm import LEDGER, Farm
from support.deployment import Deployment, Task, shell, task
from support.waiting import until

TASKS = 10
BULK = 2 * 1024 * 1024  # bytes of each task
PIECES = (1, 7, 13, 18)  # that are written when the coordinator is killed
PIECES_WRITTEN = "SELECT count(*) FROM deposit_piece"
DEPOSITED = "SELECT count(*) FROM deposit_piece WHERE number NOT IN (SELECT number FROM deposit)"


def rows(tracker: str, statement: str) -> int:
    """The number that a statement gives."""
    if tracker.startswith("sqlite:"):
        with contextlib.closing(sqlite3.connect(tracker.removeprefix("sqlite:"), timeout=10)) as file:
            return int(file.execute(statement).fetchone()[0])
    with psycopg.connect(tracker, options="-c search_path=daggyr") as database:
        return int((database.execute(statement.encode()).fetchone() or (0,))[0])


def tasks(mark: str) -> dict[str, Task]:
    return {f"t{number}": task("echo", mark, stdin=mark * (BULK // len(mark))) for number in range(TASKS)}


def killed_at(farm: Farm, pieces: int, *arguments: str) -> None:
    """Kill the coordinator, and the command that asks it, once so many pieces are written. Start it again."""
    command = farm.deployment.command(*arguments)
    until(lambda: rows(farm.tracker, DEPOSITED) >= pieces or command.poll() is not None, f"{pieces} pieces")
    farm.kill()
    command.kill()
    command.communicate()
    farm.start()
    until(lambda: rows(farm.tracker, DEPOSITED) == 0, "nothing left of what came to nothing")


def marks(deployment: Deployment, run_id: int) -> set[str]:
    """The words of the run's first and last tasks, and of the document that the run is made of again."""
    found = {deployment.task(run_id, f"t{number}")["details"]["command"][1] for number in (0, TASKS - 1)}
    assert len(deployment.tasks(run_id)) == TASKS
    return found


def test_a_run_is_submitted_whole_or_not_at_all(deployment: Deployment, tracker: str) -> None:
    farm = Farm(deployment, tracker)
    farm.start()
    document = deployment.spec(tasks("new"))
    for pieces in PIECES:
        before = len(deployment.runs())
        killed_at(farm, pieces, "submit", document)
        runs = [int(run["run_id"]) for run in deployment.runs()]
        assert len(runs) - before in (0, 1)
        assert all(marks(deployment, run_id) == {"new"} for run_id in runs)
    run_id = deployment.submit(tasks("new"))
    farm.kill_and_start()
    assert marks(deployment, run_id) == {"new"}
    farm.agents("one")
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": TASKS}


def test_a_run_is_edited_whole_or_not_at_all(deployment: Deployment, tracker: str) -> None:
    farm = Farm(deployment, tracker)
    farm.start()
    run_id = deployment.submit(tasks("0"))
    mark = "0"
    for number, pieces in enumerate(PIECES, 1):
        killed_at(farm, pieces, "edit", str(run_id), deployment.spec(tasks(str(number))))
        (found,) = marks(deployment, run_id)
        assert found in (mark, str(number))
        mark = found
    assert deployment.daggyr("edit", str(run_id), deployment.spec(tasks("last"))).code == 0
    farm.kill_and_start()
    assert marks(deployment, run_id) == {"last"}
    farm.agents("one")
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": TASKS}
    deployment.delete(run_id)
    assert rows(tracker, "SELECT count(*) FROM deposit_piece") == rows(tracker, "SELECT count(*) FROM deposit") == 0


def test_a_generator_that_has_ended_is_not_repeated(deployment: Deployment, tracker: str) -> None:
    """Its agent tells the end again, because nobody has acknowledged it, and its tasks come with it or not at all."""
    farm = Farm(deployment, tracker)
    farm.start()
    farm.agents("one")
    printed = deployment.folder / "printed.json"
    printed.write_text(json.dumps(tasks("made")))
    run_id = deployment.submit({"g": shell(f"{LEDGER}; cat {printed}", is_generator=True)})
    for pieces in PIECES[1::2]:
        until(lambda pieces=pieces: rows(tracker, PIECES_WRITTEN) >= pieces, f"{pieces} pieces")  # type: ignore[misc]
        farm.kill_and_start()
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 1 + TASKS}
    assert farm.performed() == [("g", 1)]
    until(lambda: rows(tracker, DEPOSITED) == 0, "nothing left of what came to nothing")
