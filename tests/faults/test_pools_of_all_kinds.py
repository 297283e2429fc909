"""One run on a local, an SSH and a Slurm pool, with a real sshd and a real cluster; the coordinator is killed meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm import LEDGER, Farm
from support import slurm_cluster
from support.deployment import Deployment, shell
from support.slurm_cluster import SlurmCluster
from support.sshd_server import SshdServer, sshd_server
from support.waiting import is_gone, until


@pytest.fixture
def host(deployment: Deployment) -> Iterator[SshdServer]:
    """A host that is reached by SSH."""
    with sshd_server({"HOME": str(deployment.work)}) as server:
        yield server


@pytest.fixture
def cluster(deployment: Deployment) -> Iterator[SlurmCluster]:
    """The session's cluster, which the deployment's programs know."""
    found = slurm_cluster.running()
    deployment.environment["SLURM_CONF"] = str(found.configuration)
    yield found
    for job, _, _ in found.unfinished():
        found.ask("scancel", job)
    until(lambda: not found.unfinished(), "the end of all jobs")


def pools(work: Path, host: SshdServer) -> str:
    target = f'host = "127.0.0.1", port = {host.port}, user = "{host.user}", private_key_file = "{host.private_key}"'
    return "\n".join(
        (
            '[pools.farm]\nexecutor = "local"\nworkers = 1',
            f'[pools.hosts]\nexecutor = "ssh"\nknown_hosts = "{host.known_hosts}"\ndirectory = "{work}/ssh"',
            f'working_directory = "{work}"\ntargets = [{{ {target}, resources = {{ cores = 2 }} }}]',
            f'[pools.hpc]\nexecutor = "slurm"\ndirectory = "{work}"\npoll_interval = 0.2',
        )
    )


def test_a_run_on_all_of_them_goes_on_where_it_was(deployment: Deployment, host: SshdServer, cluster: SlurmCluster) -> None:
    """Tasks that ended are not repeated. Attempts on SSH and Slurm are taken up, and those of the local pool run again."""
    farm = Farm(deployment, f"sqlite:{deployment.folder}/state.db", pools=pools(deployment.work, host))
    farm.start()
    gates = {pool: deployment.gate(pool) for pool in ("farm", "hosts", "hpc")}
    tasks = {}
    for pool, gate in gates.items():
        held = f'if test "$DAGGYR_ATTEMPT" = 1; then {gate.hold}; fi; ' if pool == "farm" else f"{gate.hold}; "
        tasks[f"before-{pool}"] = shell(f"cd {deployment.work}; {LEDGER}", pool=pool, children=[f"held-{name}" for name in gates])
        tasks[f"held-{pool}"] = shell(f"cd {deployment.work}; {held}echo {pool} went on; {LEDGER}", pool=pool, children=["end"])
    tasks["end"] = shell(LEDGER)
    run_id = deployment.submit(tasks)
    pids = {pool: gate.reached() for pool, gate in gates.items()}
    for pool in gates:
        deployment.running(run_id, f"held-{pool}")
    farm.kill_and_start()
    assert not is_gone(pids["hosts"])
    assert not is_gone(pids["hpc"])
    gates["hosts"].open()
    gates["hpc"].open()
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 7}
    once = [(f"{when}-{pool}", 1) for when in ("before", "held") for pool in ("hosts", "hpc")]
    assert farm.performed()[-1] == ("end", 1)
    assert sorted(farm.performed()) == sorted([*once, ("before-farm", 1), ("held-farm", 2), ("end", 1)])
    for pool in gates:
        assert deployment.daggyr("logs", str(run_id), f"held-{pool}").out == f"{pool} went on\n"
    executors = {pool["name"]: pool["executor"] for pool in json.loads(deployment.daggyr("--output", "json", "pools").out)}
    assert executors == {"farm": "local", "hosts": "ssh", "hpc": "slurm"}
