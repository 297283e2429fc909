"""A server with a pool on a real Slurm cluster: killed in the middle of a run, its pilots, and the batch script of deploy/."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import slurm_cluster
from support.deployment import PATIENT, Deployment, own_address, shell, task, words
from support.slurm_cluster import SlurmCluster
from support.waiting import until

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
COUNTED = 'echo "$DAGGYR_TASK_ID" >> "$LOG"'


@pytest.fixture
def cluster(deployment: Deployment) -> Iterator[SlurmCluster]:
    """The session's cluster, which the deployment's programs know; its tasks write to $LOG."""
    found = slurm_cluster.running()
    deployment.environment["SLURM_CONF"] = str(found.configuration)
    deployment.passed.append("LOG")
    deployment.environment["LOG"] = str(deployment.work / "log")
    yield found
    for job, _, _ in found.unfinished():
        found.ask("scancel", job)
    until(lambda: not found.unfinished(), "the end of all jobs")


def pool(deployment: Deployment, **settings: Any) -> str:
    """A configuration with one Slurm pool."""
    given = {"executor": "slurm", "directory": str(deployment.work), "poll_interval": 0.2, **settings}
    table = "".join(f"{name} = {_toml(value)}\n" for name, value in given.items())
    return f"[server]\nkill_grace = 0.5\n{PATIENT}\n[pools.hpc]\n{table}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def test_a_server_that_is_killed_repeats_nothing(deployment: Deployment, cluster: SlurmCluster) -> None:
    tracker = f"sqlite:{deployment.folder / 'state.db'}"
    server = deployment.start_server("--tracker", tracker, config=pool(deployment))
    gate = deployment.gate()
    run_id = deployment.submit(
        {
            "first": shell(COUNTED, children=["running"]),
            "running": shell(f"{COUNTED}; {gate.hold}; echo went on", children=["last"]),
            "last": shell(COUNTED),
        }
    )
    gate.reached()
    deployment.running(run_id, "running")
    server.end(signal.SIGKILL)
    deployment.killed = True
    gate.open()
    deployment.start_server("--tracker", tracker, config=pool(deployment))
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 3}
    assert deployment.read("log").split() == ["first", "running", "last"]
    assert deployment.attempts(run_id) == {"first": 1, "running": 1, "last": 1}
    assert deployment.task(run_id, "running")["attempts"][0]["stdout"] == "went on\n"


def test_a_run_of_everything(deployment: Deployment, cluster: SlurmCluster) -> None:
    """The run has parameters, a failure and its retry, and a kill, all on jobs."""
    deployment.start_server(config=pool(deployment))
    again = 'if [ -e once ]; then echo again; else touch once; echo "no" >&2; exit 3; fi'
    run = deployment.complete(
        {
            "each": shell('echo "$X" >> "$LOG"', environment={"X": "{{X}}"}, children=["flaky"]),
            "flaky": shell(again, max_retries=1),
        },
        parameters={"{{X}}": ["1", "2", "3"]},
    )
    assert run["state"] == "COMPLETED"
    assert sorted(deployment.read("log").split()) == ["1", "2", "3"]
    first, second = deployment.task(run["run_id"], "flaky")["attempts"]
    assert (first["outcome"], first["exit_code"], first["stderr"]) == ("FAILED", 3, "no\n")
    assert (second["outcome"], second["stdout"]) == ("SUCCEEDED", "again\n")
    run_id = deployment.submit({"long": shell("sleep 1000")})
    deployment.running(run_id, "long")
    assert deployment.daggyr("kill", str(run_id)).code == 0
    assert deployment.watch(run_id, code=1)["state"] == "KILLED"


class TestPilots:
    def test_as_many_as_there_is_work_for(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        """Tasks that wait for others start no pilots. Pilots that have nothing to do leave."""
        settings = pool(deployment, mode="pilot", max_pilots=2, pilot_resources={"cores": 1}, idle_seconds=2)
        deployment.start_server(config=settings)
        assert cluster.unfinished() == []
        gate = deployment.gate()
        waiting = {f"waiting-{number}": shell(COUNTED) for number in range(5)}
        run_id = deployment.submit({"first": shell(gate.hold, children=list(waiting)), **waiting})
        gate.reached()
        assert len(cluster.unfinished()) == 1, "the other five cannot run yet"
        gate.open()
        assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 6}
        until(lambda: not cluster.unfinished(), "the end of the pilots")
        until(lambda: deployment.agents() == [], "the end of their sessions")
        assert deployment.complete({"later": shell(COUNTED)})["state"] == "COMPLETED"

    def test_no_more_than_it_may(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        settings = pool(deployment, mode="pilot", max_pilots=2, pilot_resources={"cores": 1})
        deployment.start_server(config=settings)
        run_id = deployment.submit({f"t{number}": shell("until [ -e gate ]; do sleep 0.02; done") for number in range(5)})
        until(lambda: list(deployment.states(run_id).values()).count("RUNNING") == 2, "two running tasks")
        assert len(cluster.unfinished()) == 2
        (deployment.work / "gate").touch()
        assert deployment.watch(run_id)["state"] == "COMPLETED"

    def test_address_and_token_show_nowhere(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        deployment.start_server(config=pool(deployment, mode="pilot"))
        gate = deployment.gate()
        run_id = deployment.submit({"held": shell(gate.hold)})
        gate.reached()
        ((job, _, _),) = cluster.unfinished()
        shown = cluster.ask("scontrol", "show", "job", "-dd", job) + cluster.ask("scontrol", "write", "batch_script", job, "-")
        pilots = [process for process in psutil.process_iter() if f"pilot-{job}" in " ".join(words(process))]
        assert pilots, "the agent runs"
        shown += " ".join(" ".join(words(process)) for process in psutil.process_iter())
        assert deployment.token("agent") not in shown
        assert deployment.address not in " ".join(" ".join(words(process)) for process in pilots)
        (settings,) = deployment.work.glob("*/pilots-*/agent.toml")
        assert deployment.address in settings.read_text()
        for path in (settings, settings.with_name("token")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        gate.open()
        assert deployment.watch(run_id)["state"] == "COMPLETED"

    def test_pilots_hear_that_the_network_is_trusted_and_of_a_new_token(
        self, deployment: Deployment, cluster: SlurmCluster
    ) -> None:
        settings = pool(deployment, mode="pilot", max_pilots=1).replace("[server]\n", "[server]\ninsecure = true\n")
        server = deployment.start_server(config=settings)
        assert deployment.complete({"before": shell("true")})["state"] == "COMPLETED"
        (told,) = deployment.work.glob("*/pilots-*/agent.toml")
        assert "insecure = true\n" in told.read_text()
        token = deployment.state / "daggyr" / "agent.token"
        token.write_text("daggyr-agent-another-one\n")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "daggyr-agent-another-one" in told.with_name("token").read_text(), "the new token")
        assert deployment.complete({"after": shell("true")})["state"] == "COMPLETED"

    def test_a_server_that_is_killed_finds_its_pilots_again(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        tracker = f"sqlite:{deployment.folder / 'state.db'}"
        settings = pool(deployment, mode="pilot", max_pilots=1)
        server = deployment.start_server("--tracker", tracker, config=settings, listen=own_address())
        address = deployment.address
        gate = deployment.gate()
        run_id = deployment.submit({"running": shell(f"{COUNTED}; {gate.hold}", children=["last"]), "last": shell(COUNTED)})
        gate.reached()
        deployment.running(run_id, "running")
        before = cluster.unfinished()
        server.end(signal.SIGKILL)
        deployment.killed = True
        deployment.start_server("--tracker", tracker, config=settings, listen=address)
        gate.open()
        assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 2}
        assert deployment.read("log").split() == ["running", "last"]
        assert cluster.unfinished() == before, "one pilot, and the same"

    def test_pilots_without_a_coordinator_end(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        server = deployment.start_server(config=pool(deployment, mode="pilot", orphan_seconds=15))
        assert deployment.complete({"one": shell(COUNTED)})["state"] == "COMPLETED"
        assert len(cluster.unfinished()) == 1
        server.end()
        (sign_of_life,) = deployment.work.glob("*/pilots-*/alive")
        os.utime(sign_of_life, (0, 0))  # moved rather than waited for
        until(lambda: not cluster.unfinished(), "the end of a pilot that nobody cares for")

    def test_what_no_pilot_could_run_is_refused(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        deployment.start_server(config=pool(deployment, mode="pilot", pilot_resources={"cores": 2}))
        ended = deployment.daggyr("submit", deployment.spec({"wide": task("true", resources={"cores": 3})}))
        assert ended.code == 2
        assert "pilot_resources" in ended.err


class TestBatchScript:
    """deploy/slurm/pilot.sbatch"""

    def test_it_joins_a_pool_of_agents(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        deployment.start_server(config=f'[server]\n{PATIENT}\n[pools.farm]\nexecutor = "agent"\n')
        token = deployment.work / "agent.token"
        token.touch(mode=0o600)
        token.write_text(deployment.token("agent"))
        settings = deployment.work / "agent.toml"
        settings.write_text(f'coordinator = "{deployment.address}"\npool = "farm"\ntoken_file = "{token}"\n')
        options = ["--cpus-per-task=2", "--mem=500", "--time=10", str(DEPLOY / "slurm/pilot.sbatch"), str(settings)]
        checked = subprocess.run(
            ["sbatch", "--test-only", *options], env=deployment.environment, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        job = subprocess.run(
            ["sbatch", "--parsable", *options],
            cwd=deployment.work,
            env=deployment.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        assert deployment.complete({"on it": shell("true", resources={"cores": 2, "memory_mb": 500})})["state"] == "COMPLETED"
        (agent,) = deployment.agents()
        assert agent["name"] == f"pilot-{job}"
        assert deployment.daggyr("agent", "drain", f"pilot-{job}").code == 0
        until(lambda: not cluster.unfinished(), "the end of the pilot")
        assert (job, "daggyr-pilot", "COMPLETED") in cluster.jobs()
