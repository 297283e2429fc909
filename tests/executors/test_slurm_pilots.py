"""How many pilots a pool has use for, what it tells of them, and what their script leaves, without a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from daggyr_server.executors.base import Wanted
from daggyr_server.executors.slurm.client import JobStatus
from daggyr_server.executors.slurm.pilot_jobs import SHORTEST_PAUSE, PilotJobs, Place, misfits, missing_pilots

FOUR = {"cores": 4, "memory_mb": 8_000}


def wanted(count: int, seconds: float = 0.0, **needs: int) -> Wanted:
    return Wanted(tuple((name, units) for name, units in needs.items() if units), seconds, count)


@pytest.mark.parametrize(
    ("kinds", "there", "pilots"),
    [
        ([wanted(4, cores=4)], [], 4),
        ([wanted(4, cores=1)], [], 1),
        ([wanted(4, cores=1, memory_mb=8_000)], [], 4),
        ([wanted(2, cores=3), wanted(2, cores=1)], [], 2),
        ([wanted(3, cores=4)], [Place(FOUR, None)], 2),
        ([wanted(1, cores=4)], [Place({"cores": -2, "memory_mb": 8_000}, None)], 1),
        ([wanted(100, cores=4)], [], 10),
        ([wanted(9, cores=5)], [], 0),
        ([wanted(9, cores=1, gpus=1)], [], 0),
        ([wanted(9, cores=0)], [], 1),
        ([wanted(9, seconds=600, cores=1)], [], 0),
        ([wanted(9, seconds=90, cores=1)], [Place(FOUR, 60)], 3),
        ([wanted(3, seconds=30, cores=1)], [Place(FOUR, 60)], 0),
    ],
)
def test_pilots_are_counted_by_what_fits(kinds: list[Wanted], there: list[Place], pilots: int) -> None:
    assert missing_pilots(kinds, FOUR, 300.0, there, 10) == pilots


def test_demand_leaves_what_it_counts_as_it_is() -> None:
    place = Place(dict(FOUR), None)
    missing_pilots([wanted(3, cores=2)], FOUR, None, [place], 10)
    assert place.free == FOUR


def test_tasks_that_no_pilot_can_hold_are_told() -> None:
    kinds = [wanted(1, cores=5), wanted(2, seconds=600, cores=1), wanted(3, cores=4)]
    assert list(misfits(kinds, FOUR, 300.0)) == [
        "no pilot is submitted for 1 task that needs cores=5: a pilot has cores=4, memory_mb=8000",
        "no pilot is submitted for 2 tasks that may take 600 s (by timeout, or the mean of those before): "
        "a pilot has 300 s for a task",
    ]


def status(job_id: str, state: str, reason: str = "None", node: str = "") -> JobStatus:
    return JobStatus(job_id, 0, "pilots", state, reason, node)


def test_pilots_that_wait_start_and_end_are_told() -> None:
    jobs = PilotJobs()
    jobs.update(
        [status("1", "PENDING", "Resources"), status("2", "RUNNING", node="n1"), status("3", "RUNNING")], ["pilot-3"], 0.0
    )
    assert list(jobs.notes(["pilot-3"])) == [
        "pilot-1 waits in Slurm: Resources",
        "pilot-2 runs on n1, and its agent has not joined yet",
    ]
    jobs.update([status("1", "RUNNING"), status("2", "NODE_FAIL"), status("3", "TIMEOUT", "TimeLimit")], ["pilot-1"], 1.0)
    assert list(jobs.notes(["pilot-1"])) == ["pilot-2 has ended: NODE_FAIL", "pilot-3 has ended: TIMEOUT (TimeLimit)"]
    assert [pilot.job_id for pilot in jobs.never_joined] == ["2"]


def test_pilots_whose_agents_do_not_come_are_no_capacity() -> None:
    """The next ones wait, for twice as long each time, until one has joined."""
    jobs = PilotJobs()
    running = [status("1", "RUNNING"), status("2", "RUNNING")]
    jobs.update(running, ["pilot-2"], 0.0)
    assert jobs.in_vain(60.0, ["pilot-2"], 59.0) == []
    assert [pilot.job_id for pilot in jobs.in_vain(60.0, ["pilot-2"], 60.0)] == ["1"]
    assert [pilot.job_id for pilot in jobs.in_vain(60.0, [], 60.0)] == ["1", "2"], "one that is given up is none either"
    assert [jobs.failed("why", 60.0) for _ in range(2)] == [SHORTEST_PAUSE, 2 * SHORTEST_PAUSE]
    assert (jobs.not_before, list(jobs.notes([]))[-1]) == (60.0 + 2 * SHORTEST_PAUSE, "why")
    jobs.update([*running, status("3", "RUNNING")], ["pilot-3"], 61.0)
    assert (jobs.not_before, jobs.trouble) == (0.0, "")


@pytest.mark.parametrize("moment", ["squeue", "mktemp"])
def test_AJobThatIsEndedBeforeItHasAnAgentLeavesNothing(tmp_path: Path, moment: str) -> None:
    """The script is told to end by each program that it runs before there is an agent, after that program has done its work."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "node").mkdir()
    real = shutil.which(moment) or "true"  # there may be no squeue, whose output may be empty
    (tmp_path / "bin" / moment).write_text(f'#!/bin/sh\n{real} "$@"\nkill -s TERM "$(cat {tmp_path}/pid)"\n')
    (tmp_path / "bin" / moment).chmod(0o755)
    script = f"echo $$ > {tmp_path}/pid\nfolder={tmp_path}\nset -- sh -c 'echo started > {tmp_path}/started' agent\n"
    script += (files("daggyr_server.executors.slurm") / "pilot.sh").read_text()
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "node"), "SLURM_JOB_ID": "7"}
    ended = subprocess.run(["sh"], input=script, text=True, env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert not (tmp_path / "started").exists()
    assert list((tmp_path / "node").iterdir()) == []
