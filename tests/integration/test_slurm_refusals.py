"""Slurm does not take all that a run has: what it takes of others goes on, however much it refuses."""

from __future__ import annotations

from slurm_pools import pool
from support.deployment import Deployment, task
from support.slurm_cluster import SlurmCluster
from support.waiting import until

REFUSED = "QOSMaxCpuPerJobLimit"


def test_what_slurm_refuses_of_one_run_keeps_no_later_run_out(deployment: Deployment, cluster: SlurmCluster) -> None:
    """There is more of it than a pool offers, and more than one host may have in flight."""
    cluster.account()
    deployment.start_server(config=pool(deployment, qos="narrow", max_jobs=4_000, resources={"cores": 8_000}))
    numbers = [str(number) for number in range(6_500)]
    wide = {"wide": task("true", "{{N}}", resources={"cores": 2})}
    run_id = deployment.submit(wide, parameters={"{{N}}": numbers})
    until(lambda: REFUSED in " ".join(deployment.pools()[0]["notes"]), "the reason in `pools`")
    assert deployment.complete({"narrow": task("true", resources={"cores": 1})})["state"] == "COMPLETED"
    assert f"waits for Slurm to take more tasks of this kind: Slurm does not let it in for now: sbatch: error: {REFUSED}" in (
        deployment.why(run_id, f"wide.{{{{N}}}}:{numbers[-1]}")
    )
    assert not deployment.pools()[0]["paused"]
    attempts = deployment.attempts(run_id).values()
    assert max(attempts) == 1, "what went back is not sent again, as long as others of its kind are tried"
    assert deployment.daggyr("kill", str(run_id)).code == 0
    assert deployment.watch(run_id, code=1)["state"] == "KILLED"
