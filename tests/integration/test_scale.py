"""300 real agents at once, a process each. They start real processes for one run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.deployment import PATIENT, Deployment, shell, task
from support.waiting import DEADLINE, until

AGENTS = 300
TASKS = 1_200


@pytest.fixture
def crowded(deployment: Deployment) -> Deployment:
    """A server with an empty pool of agents."""
    deployment.start_server("--log-level", "warning", config=f'[server]\n{PATIENT}\n[pools.farm]\nexecutor = "agent"\n')
    return deployment


async def hosts(deployment: Deployment, run_id: int) -> Counter[str]:
    """Return how many tasks each agent carried out."""
    found: Counter[str] = Counter()
    async with deployment.client() as client:
        async for page in client.tasks(run_id):
            names = [each.task_id for each in page if each.attempt_count]
            for start in range(0, len(names), 100):
                tasks = await asyncio.gather(*(client.task(run_id, name) for name in names[start : start + 100]))
                found.update(each.attempts[-1].host for each in tasks)
    return found


def states(deployment: Deployment) -> dict[str, str]:
    """Return the states of the agents, by name."""
    return {agent["name"]: agent["state"] for agent in deployment.agents()}


def test_a_run_on_300_agents(crowded: Deployment) -> None:
    log = crowded.folder / "fleet.log"
    arguments = ["--coordinator", crowded.address, "--pool", "farm", "--resource", "cores=1", "--log-level", "warning"]
    with log.open("wb") as stderr:
        fleet = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fleet.py"), str(AGENTS), str(crowded.folder), *arguments],
            cwd=crowded.work,
            env=crowded.environment,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        everyone = {f"agent-{number}": "CONNECTED" for number in range(AGENTS)}
        until(lambda: fleet.poll() is not None or states(crowded) == everyone, "all agents")
        assert fleet.poll() is None, log.read_text()
        (pool,) = crowded.pools()
        assert (pool["hosts"], pool["resources"]["cores"]) == (AGENTS, AGENTS)

        # There are as many tasks as agents. No task ends before all have begun: each then reads a line from a fifo.
        os.mkfifo(crowded.work / "go")
        lines = os.open(crowded.work / "go", os.O_RDWR)  # so nobody waits for a writer (fifo(7))
        together = "echo >> here; read line < go; : {{N}}"
        run_id = crowded.submit({"a": shell(together)}, parameters={"{{N}}": [str(number) for number in range(AGENTS)]})
        until(lambda: crowded.read("here").count("\n") >= AGENTS, "a task on each agent")
        os.write(lines, b"\n" * AGENTS)
        assert crowded.watch(run_id)["task_states"] == {"COMPLETED": AGENTS + 2}
        os.close(lines)
        assert asyncio.run(hosts(crowded, run_id)) == Counter(everyone.keys())

        parameters = {"{{N}}": [str(number) for number in range(TASKS)]}
        run = crowded.complete({"a": task("true", "{{N}}")}, parameters=parameters)
        assert run["task_states"] == {"COMPLETED": TASKS + 2}
        crowded.was_started_once(run["run_id"])

        listed = crowded.daggyr("agents").out
        assert all(f"agent-{number} " in listed for number in range(AGENTS))
    finally:
        fleet.terminate()
        try:
            unwell = fleet.wait(DEADLINE)
        finally:
            fleet.kill()
    assert unwell == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    until(lambda: crowded.agents() == [], "the end of all sessions")
    crowded.start_agent("late")
    crowded.goes_on()
