"""A copy of a tracker is put back while what was started after it was taken still runs, on every executor.

The lost life of the tracker goes on after the copy: it gives out the numbers of a run that the copy does not know, and the new
life gives out the same numbers. What runs of the lost life is ended, and its results are nobody's. Each task of the new life
writes a line of its own into `effects`, so that a task that is COMPLETED and did not run is found.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from faults_tracker import new_tracker
from place import Place, copy_of, place
from support import preloaded, slurm_cluster
from support.deployment import BIN, SHORT_LEASE, Deployment, shell
from support.waiting import is_gone, until

SLURM = pytest.mark.xdist_group(slurm_cluster.COPIES_GROUP)
KINDS = [
    "agents",
    "local",
    "ssh",
    *(pytest.param(kind, marks=SLURM) for kind in ("slurm jobs", "slurm pilots")),
]  # of places
EFFECT = 'echo "{who} $DAGGYR_RUN_ID $DAGGYR_TASK_ID $DAGGYR_ATTEMPT $DAGGYR_LIFE" >> effects'
OUTCOMES = {"SUCCEEDED", "LOST", "RETURNED"}


def script(work: Path, who: str, until_file: str = "") -> str:
    """A task that writes its line and says whose it is; with `until_file`, it is held until that file is there."""
    hold = f"echo $$ > {who}-{until_file}.pid; until [ -e {until_file} ]; do sleep 0.05; done; " if until_file else ""
    return f"cd {work}; {hold}{EFFECT.format(who=who)}; echo of the {who}"


def effects(deployment: Deployment) -> list[list[str]]:
    """The lines in the ledger: who, run, task, attempt and life."""
    return [line.split() for line in deployment.read("effects").splitlines()]


def pid_of(deployment: Deployment, name: str) -> int:
    return int(until(lambda: deployment.read(f"{name}.pid").strip(), f"{name} to run"))


class Life:
    """The lost life of a tracker: a run that the copy knows, and one that it does not."""

    def __init__(self, at: Place, deployment: Deployment) -> None:
        self.at, self.deployment = at, deployment
        self.first = 0
        self.lost: list[int] = []  # pids of what it runs when it ends

    def begin(self) -> None:
        """Up to the copy: a run with a task that has ended, and one that runs."""
        deployment, work = self.deployment, self.deployment.work
        self.at.start()
        self.first = deployment.submit(
            {
                "done": shell(script(work, "first"), children=["held"]),
                "held": shell(script(work, "first", "held.go"), children=["after"]),
                "after": shell(script(work, "first")),
            }
        )
        pid_of(deployment, "first-held.go")
        deployment.running(self.first, "held")

    def go_on(self) -> None:
        """After the copy: a run of which one task has ended, one runs, and one ends while nobody is there to be told."""
        deployment, work = self.deployment, self.deployment.work
        tasks = {"a": shell(script(work, "old"), children=["b", "c"]), "b": shell(script(work, "old", "never.go"))}
        run = deployment.submit({**tasks, "c": shell(script(work, "old", "c.go"))})
        until(lambda: deployment.states(run)["a"] == "COMPLETED", "the end of a")
        held = ["b", "c"] if self.at.cores > 2 else ["b"]
        pids = {"b": "old-never.go", "c": "old-c.go"}
        if self.at.cores > 2:
            self.lost = [pid_of(deployment, pids[name]) for name in held]
        else:  # one of the two runs, and the other waits for it
            found = until(lambda: [name for name in pids.values() if deployment.read(f"{name}.pid").strip()], "b or c to run")
            self.lost = [pid_of(deployment, name) for name in found]

    def end(self) -> None:
        """Kill the coordinator; where what it left goes on by itself, one task ends after that."""
        self.at.farm.kill()
        (self.deployment.work / "c.go").touch()
        if self.at.cores > 2 and self.at.kind != "local":
            until(lambda: any(line[0] == "old" and line[2] == "c" for line in effects(self.deployment)), "the end of c")


def assert_right(deployment: Deployment, run_id: int, who: str) -> int:
    """Each task is COMPLETED, in the attempt that says it is, and had its effect again only where an attempt was LOST.

    Returns how often a task had its effect again, each time with a LOST attempt to show for it.
    """
    lines = [line for line in effects(deployment) if line[0] == who and line[1] == str(run_id)]
    done = Counter((line[2], int(line[3])) for line in lines)
    again = 0
    for name, state in deployment.states(run_id).items():
        attempts: list[Any] = deployment.task(run_id, name)["attempts"]
        outcomes = [each["outcome"] for each in attempts]
        assert state == "COMPLETED" and outcomes[-1] == "SUCCEEDED" and set(outcomes) <= OUTCOMES, (name, outcomes)
        assert attempts[-1]["stdout"] == f"of the {who}\n", "its output is another's"
        assert done[name, attempts[-1]["attempt"]] == 1, "it is COMPLETED and did not run, or ran twice"
        times = sum(count for (task, _), count in done.items() if task == name)
        assert times <= 1 + outcomes.count("LOST"), f"{name} ran {times} times: {outcomes}"
        again += times - 1
    return again


def new_run(deployment: Deployment) -> int:
    work = deployment.work
    return deployment.submit({name: shell(script(work, "new")) for name in ("a", "b", "c")})


def settled(deployment: Deployment, life: Life, run: int, how: str) -> None:
    """Both runs come to their ends, and what the lost life ran has ended. `how` names the case in the row that is printed."""
    assert deployment.watch(run)["task_states"] == {"COMPLETED": 3}
    (deployment.work / "held.go").touch()
    assert deployment.watch(life.first)["task_states"] == {"COMPLETED": 3}
    again = assert_right(deployment, run, "new") + assert_right(deployment, life.first, "first")
    for pid in life.lost:
        until(lambda pid=pid: is_gone(pid), "the end of what the lost life ran")  # type: ignore[misc]
    assert not any(line[2] == "b" for line in effects(deployment) if line[0] == "old"), "what was to be ended went on"
    row(life, how, f"6 tasks COMPLETED, 0 of them falsely, 0 hung, 0 repeated without a LOST attempt ({again} with one)")


def row(life: Life, how: str, what: str) -> None:
    """Print a row of the table of all cases, for `pytest -s`."""
    kind = "Postgres" if life.at.farm.tracker.startswith("postgresql") else "sqlite"
    print(f"\n| {life.at.kind} | {kind} | {how} | {what} |")


def put_back_is_refused(deployment: Deployment, life: Life) -> None:
    """The copy is used as it is. This host refuses it; where this host knows nothing, what carries tasks out does."""
    at = life.at
    way = "daggyr-server restore"
    config = ("--config", str(deployment.folder / "server.toml"), "--listen", "127.0.0.1:0")
    refused = server_command(deployment, *config)
    assert refused.returncode == 2 and "is an older copy of itself" in refused.stderr and way in refused.stderr, refused.stderr
    row(life, "older by three starts, as it is", "refused by the host, saying `restore`")
    if at.kind == "local":
        return  # it has the host alone
    shutil.rmtree(deployment.state / "daggyr" / "trackers")  # as another host
    if at.kind.startswith("slurm"):
        refused = server_command(deployment, *config)
        assert refused.returncode == 2 and "the directory" in refused.stderr and way in refused.stderr, refused.stderr
    else:
        at.start()
        until(lambda: way in str(deployment.pools()), "the refusal")
        at.farm.kill()
    row(life, "the same, on another host", f"refused by what is there for {at.kind}, saying `restore`")


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_taken_at_the_same_start(deployment: Deployment, tracker: str, kind: str, request: pytest.FixtureRequest) -> None:
    """What both lives know is taken up where it outlives its coordinator. The others are nobody's."""
    with place(kind, deployment, tracker) as at:
        life = Life(at, deployment)
        life.begin()
        put_back = copy_of(tracker, request, deployment.folder)
        life.go_on()
        life.end()
        put_back()
        at.start()
        run = new_run(deployment)
        assert run == 2, "the new life has given out the same numbers"
        settled(deployment, life, run, "same start, as it is")
        (held,) = (entry for entry in [deployment.task(life.first, "held")["attempts"]])
        assert [each["outcome"] for each in held] == (["LOST", "SUCCEEDED"] if kind == "local" else ["SUCCEEDED"])


@pytest.mark.parametrize("how", ["stopped", "ended"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_put_back_while_what_works_there_is_away(
    deployment: Deployment, sqlite_tracker: str, kind: str, how: str, request: pytest.FixtureRequest
) -> None:
    """The new life has given out its numbers before what the lost one left comes back."""
    if how == "ended" and kind not in ("agents", "slurm pilots"):
        pytest.skip("nothing but the coordinator ends there")
    with place(kind, deployment, sqlite_tracker) as at:
        if how == "ended" and kind == "slurm pilots":
            at.farm.settings = SHORT_LEASE  # a pilot that was killed never comes back
        life = Life(at, deployment)
        life.begin()
        put_back = copy_of(sqlite_tracker, request, deployment.folder)
        life.go_on()
        if kind == "local":
            at.stop()
        life.end()
        if how == "ended":
            at.end()
        elif kind != "local":
            at.stop()
        put_back()
        at.start()
        run = new_run(deployment)
        if how == "ended":
            at.start_again()
        else:
            at.go_on()
        settled(deployment, life, run, f"same start, as it is, {what_is_away(kind)} {how}")


def what_is_away(kind: str) -> str:
    """What `Place.stop` stops."""
    return {"ssh": "sshd", "slurm jobs": "slurmctld"}.get(kind, "agent")


@pytest.mark.parametrize("kind", KINDS[2:])  # agents: test_restored_copies.py
def test_a_copy_that_is_restored_while_what_works_there_is_away(
    deployment: Deployment, kind: str, request: pytest.FixtureRequest
) -> None:
    """What comes back is of a former life, and is ended."""
    tracker = new_tracker("postgresql", request)
    with place(kind, deployment, tracker) as at:
        life = Life(at, deployment)
        life.begin()
        put_back = copy_of(tracker, request, deployment.folder)
        life.go_on()
        life.end()
        at.stop()
        put_back()
        restored = server_command(deployment, "restore", "--tracker", tracker)
        assert restored.returncode == 0, restored.stderr
        at.start()
        run = new_run(deployment)
        at.go_on()
        settled(deployment, life, run, f"same start, restored, {what_is_away(kind)} stopped")


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_older_by_three_starts(deployment: Deployment, tracker: str, kind: str, request: pytest.FixtureRequest) -> None:
    """As it is, it is refused; by `daggyr-server restore`, it goes on as another life."""
    with place(kind, deployment, tracker) as at:
        life = Life(at, deployment)
        life.begin()
        put_back = copy_of(tracker, request, deployment.folder)
        for _ in range(3):
            at.farm.kill_and_start()
        life.go_on()
        life.end()
        put_back()
        put_back_is_refused(deployment, life)
        restored = server_command(deployment, "restore", "--tracker", tracker)
        assert restored.returncode == 0, restored.stderr
        at.start()
        settled(deployment, life, new_run(deployment), "older by three starts, restored")


def server_command(deployment: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "daggyr-server"), *arguments]
    return preloaded.run(
        command, env=deployment.environment, cwd=deployment.work, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
