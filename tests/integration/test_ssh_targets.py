"""A server with SSH targets that cannot be reached: people are told which, and why."""

from __future__ import annotations

from support.deployment import PATIENT, Deployment, task
from support.waiting import until


def test_what_waits_for_a_target_names_it_and_the_reason(deployment: Deployment) -> None:
    """Of one that was never reached nobody knows the cores, but what its settings say is known."""
    targets = ", ".join(
        f'{{ name = "{name}", host = "127.0.0.1", port = 1, resources = {{ {resources} }} }}'
        for name, resources in (("with", "X = 1"), ("without", "Y = 1"))
    )
    deployment.start_server(
        config=f"[server]\n{PATIENT}\n[pools.default]\nexecutor = 'ssh'\nknown_hosts = '/dev/null'\nssh_config = '/dev/null'\n"
        f"targets = [{targets}]\n"
    )
    run_id = deployment.submit({"one": task("true", resources={"X": 1}), "none": task("true", resources={"X": 1, "Y": 1})})
    until(lambda: "host with is paused" in deployment.why(run_id, "one"), "the pause of the target")
    words = deployment.why(run_id, "one")
    assert "127.0.0.1:1: Connection refused" in words
    assert "host without" not in words
    assert "a host with X=1, Y=1" in deployment.why(run_id, "none").replace("cores=1, ", "")
    (pool,) = deployment.pools()
    assert {pause["host"] for pause in pool["paused"]} == {"with", "without"}
    assert all("Connection refused" in pause["reason"] for pause in pool["paused"])
    assert deployment.daggyr("kill", str(run_id)).code == 0
