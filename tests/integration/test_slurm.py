"""A server with a pool on a real Slurm cluster: killed in the middle of a run, its pilots, and the batch script of deploy/."""

from __future__ import annotations

import signal
import stat
import subprocess
from pathlib import Path

import psutil
from slurm_pools import COUNTED, pool
from support.deployment import PATIENT, Deployment, own_address, shell, task, words
from support.slurm_cluster import SlurmCluster
from support.waiting import until

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"


def _prefix(deployment: Deployment) -> str:
    """What the names of the pool's pilots begin with."""
    (folder,) = deployment.work.glob("*/pilots-*")
    return f"daggyr-{folder.name.removeprefix('pilots-')}-"


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


def test_a_server_in_a_job_hands_nothing_of_it_on_and_tells_where_jobs_are(deployment: Deployment, cluster: SlurmCluster) -> None:
    """In an array job with --mem-per-cpu, each task took the server's index for its own."""
    strange = {
        "SLURM_JOB_ID": "1",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_STEP_NODELIST": "elsewhere",
        "SBATCH_QOS": "none",
        "PMI_RANK": "3",
    }
    deployment.environment.update(strange)
    deployment.start_server(config=pool(deployment))
    run = deployment.complete({"one": shell("env")})
    assert run["state"] == "COMPLETED"
    (attempt,) = deployment.task(run["run_id"], "one")["attempts"]
    found = dict(line.split("=", 1) for line in attempt["stdout"].splitlines() if "=" in line)
    assert {name: value for name, value in strange.items() if found.get(name) == value} == {}
    assert (attempt["placement"]["job"], attempt["placement"]["node"]) == (found["SLURM_JOB_ID"], cluster.node)
    why = deployment.daggyr("why", str(run["run_id"]), "one").out
    assert f"Its job was {found['SLURM_JOB_ID']}, on {cluster.node}" in why


def test_a_partition_that_is_drained_is_waited_for_and_told(deployment: Deployment, cluster: SlurmCluster) -> None:
    deployment.start_server(config=pool(deployment, poll_interval=0.5))
    refused = "Required partition not available"
    cluster.ask("scontrol", "update", "partition=main", "state=drain")
    try:
        run_id = deployment.submit({"one": shell(COUNTED)})
        until(lambda: refused in deployment.daggyr("why", str(run_id), "one").out, "the reason in `why`")
        until(lambda: refused in deployment.daggyr("pools").out, "the reason in `pools`")
    finally:
        cluster.ask("scontrol", "update", "partition=main", "state=up")
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    *given_back, last = deployment.task(run_id, "one")["attempts"]
    assert last["outcome"] == "SUCCEEDED"
    assert all(each["outcome"] == "RETURNED" and refused in " ".join(each["executor"]) for each in given_back)


def test_what_waits_and_why_is_told_where_people_look(deployment: Deployment, cluster: SlurmCluster) -> None:
    """A resource that Slurm cannot have, and a partition that is down, were told nowhere but in Slurm."""
    cluster.ask("scontrol", "update", "partition=aside", "state=down")
    try:
        deployment.start_server(config=pool(deployment, partition="aside"))
        run_id = deployment.submit({"odd": task("true", resources={"tpus": 2}), "plain": task("true")})
        never = "1 task needs tpus, which Slurm does not have: on a Slurm pool, resources are cores, memory_mb, gpus"
        down = "1 job waits in Slurm, which says PartitionDown"
        for words in (never, down):
            until(lambda words=words: words in " ".join(deployment.run(run_id)["notes"]), "the note, in show")  # type: ignore[misc]
            assert words in deployment.daggyr("pools").out
            assert words in deployment.why(run_id, "odd")
    finally:
        cluster.ask("scontrol", "update", "partition=aside", "state=up")
    until(lambda: deployment.states(run_id) == {"odd": "QUEUED", "plain": "COMPLETED"}, "the end of the job")
    assert deployment.daggyr("kill", str(run_id)).code == 0


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
        (address,) = deployment.work.glob("*/pilots-*/coordinator")
        assert deployment.address in address.read_text()
        for path in (address, address.with_name("agent.toml"), address.with_name("token")):
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

    def test_a_server_that_moved_is_found_by_its_pilots(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        """It was killed, and comes back at another port."""
        tracker = f"sqlite:{deployment.folder / 'state.db'}"
        settings = pool(deployment, mode="pilot", max_pilots=1)
        server = deployment.start_server("--tracker", tracker, config=settings)
        gate = deployment.gate()
        run_id = deployment.submit({"running": shell(f"{COUNTED}; {gate.hold}", children=["last"]), "last": shell(COUNTED)})
        gate.reached()
        deployment.running(run_id, "running")
        before = cluster.unfinished()
        server.end(signal.SIGKILL)
        deployment.killed = True
        deployment.start_server("--tracker", tracker, config=settings)
        gate.open()
        assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 2}
        assert deployment.read("log").split() == ["running", "last"]
        assert cluster.unfinished() == before, "one pilot, and the same"

    def test_pilots_without_a_coordinator_end(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        server = deployment.start_server(config=pool(deployment, mode="pilot", orphan_seconds=1))
        assert deployment.complete({"one": shell(COUNTED)})["state"] == "COMPLETED"
        assert len(cluster.unfinished()) == 1
        server.end(signal.SIGKILL)
        deployment.killed = True
        until(lambda: not cluster.unfinished(), "the end of a pilot that nobody cares for")

    def test_a_run_of_its_own_takes_its_pilots_with_it(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        config = deployment.folder / "run.toml"
        config.write_text(pool(deployment, mode="pilot"))
        spec = deployment.spec({"one": shell(COUNTED)})
        address = own_address()
        config.write_text(config.read_text().replace("[server]\n", f'[server]\nlisten = "{address}"\n'))
        # Its server listens at a socket, which jobs on this host reach as well.
        ended = deployment.daggyr("run", "--config", str(config), spec)
        assert ended.code == 0, ended.err
        until(lambda: not cluster.unfinished(), "the end of its pilots")
        assert not list(deployment.work.glob("*/pilots-*"))

    def test_pilots_that_cannot_join_are_no_capacity_and_why_is_told(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        deployment.start_server(config=pool(deployment, mode="pilot", coordinator="127.0.0.1:1", orphan_seconds=1))
        run_id = deployment.submit({"one": shell(COUNTED)})
        until(lambda: "did not reach this server at 127.0.0.1:1" in deployment.why(run_id, "one"), "the reason")
        expected = deployment.agents()
        assert {agent["state"] for agent in expected} <= {"EXPECTED"}
        (notes,) = (each["notes"] for each in deployment.pools())
        told = " ".join(notes)
        assert "; the last that it said: " in told or "/log-" in told  # it may not have come to say anything
        assert len(cluster.jobs(_prefix(deployment))) <= 2, "the next one waits"

    def test_what_cannot_be_done_in_time_is_not_begun(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        deployment.start_server(config=pool(deployment, mode="pilot", time_limit="1"))
        run_id = deployment.submit({"long": shell(COUNTED, timeout=90)})
        until(lambda: "may take 90 s" in deployment.why(run_id, "long"), "the reason")
        assert deployment.complete({"short": shell(COUNTED, timeout=5)})["state"] == "COMPLETED"
        assert deployment.attempts(run_id) == {"long": 0}
        assert len(cluster.jobs(_prefix(deployment))) == 1
        assert deployment.daggyr("kill", str(run_id)).code == 0

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
