"""Which of the daemons' variables tasks get: a short list and those that were named. With `daggyr run`, all of the user's own."""

from __future__ import annotations

from support.deployment import Deployment, task

SECRETS = {"PGPASSWORD": "secret", "OTHER_A": "a", "OTHER_B": "b", "LIBRARY": "/lib", "TZ": "UTC", "LC_TIME": "C"}


def environment(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def of_a_task(deployment: Deployment) -> dict[str, str]:
    run_id = deployment.submit({"a": task("env")})
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    (attempt,) = deployment.task(run_id, "a")["attempts"]
    return environment(attempt["stdout"])


def test_a_local_pool_passes_what_is_named(deployment: Deployment) -> None:
    deployment.environment.update(SECRETS)
    deployment.start_server(config='[pools.default]\nexecutor = "local"\nworkers = 1\npass_environment = ["OTHER_*"]\n')
    found = of_a_task(deployment)
    assert {name: found.get(name) for name in SECRETS} == {**SECRETS, "PGPASSWORD": None, "LIBRARY": None}
    assert found["PATH"] == deployment.environment["PATH"]
    assert {name for name in found if name.startswith("DAGGYR_")} == {
        *("DAGGYR_RUN_ID", "DAGGYR_TASK_ID", "DAGGYR_ATTEMPT", "DAGGYR_LIFE", "DAGGYR_AGENT_ID"),
    }


def test_an_agent_passes_what_is_named(farm: Deployment) -> None:
    farm.environment.update(SECRETS)
    farm.start_agent("one", "--pass-environment", "LIBRARY", "--pass-environment=OTHER_B")
    found = of_a_task(farm)
    assert {name: found.get(name) for name in SECRETS} == {**SECRETS, "PGPASSWORD": None, "OTHER_A": None}


def test_a_run_of_ones_own_passes_everything(deployment: Deployment) -> None:
    spec = deployment.spec({"a": task("sh", "-c", "env > found")})
    assert deployment.daggyr("run", spec, **SECRETS).code == 0
    found = environment(deployment.read("found"))
    assert {name: found.get(name) for name in SECRETS} == SECRETS


def test_a_pattern_that_names_nothing_is_refused(deployment: Deployment) -> None:
    for pattern in ("", "A=B", "*_A", "A*B"):
        agent = deployment.start("daggyr-agent", "--coordinator", "127.0.0.1:1", f"--pass-environment={pattern}")
        assert (agent.wait(), "NAME, PREFIX_* or *" in agent.said()) == (2, True), agent.said()
    (deployment.folder / "bad.toml").write_text('[pools.default]\nexecutor = "local"\npass_environment = ["*_A"]\n')
    server = deployment.start("daggyr-server", "--config", str(deployment.folder / "bad.toml"))
    assert server.wait() == 2
    assert "pools.default" in server.said() and "`pass_environment`: '*_A' names no variable" in server.said()
