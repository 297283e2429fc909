"""kill -9 of agents at any moment: every task is completed, and only what a killed agent had begun is done again."""

from __future__ import annotations

import signal
from random import Random

from farm import LEDGER, Farm, layers
from support.deployment import SHORT_LEASE, Deployment, shell

TASKS = 600
KILLS = 6
NAMES = ("one", "two", "three")


def test_agents_that_are_killed_at_random(deployment: Deployment, tracker: str) -> None:
    """Some agents are started again at once, others only when the next one dies."""
    farm = Farm(deployment, tracker, SHORT_LEASE)
    random = Random(f"{KILLS} agents, {tracker[:6]}")
    farm.start()
    alive = dict(zip(NAMES, farm.agents(*NAMES), strict=True))
    tasks = layers(TASKS, 30, f"{LEDGER}; sleep 0.01")
    run_id = deployment.submit(tasks)
    killed: set[str] = set()
    durable: dict[str, int] = {}  # attempts of the tasks that were COMPLETED before an agent died
    for moment in farm.moments(random, KILLS, of=TASKS):
        farm.wait_for(moment)
        durable |= {
            task["task_id"]: task["attempt_count"] for task in deployment.json("tasks", str(run_id), "--state", "COMPLETED")
        }
        victim = random.choice(sorted(alive))
        alive.pop(victim).end(signal.SIGKILL)
        killed.add(victim)
        if len(alive) == 1 or random.random() < 0.5:
            missing = sorted(set(NAMES) - set(alive))
            alive |= dict(zip(missing, farm.agents(*missing), strict=True))
    run = deployment.watch(run_id)
    assert (run["state"], run["task_states"]) == ("COMPLETED", {"COMPLETED": TASKS})
    assert durable
    attempts = deployment.attempts(run_id)
    assert {name: attempts[name] for name in durable} == durable, "what was durable is not done again"
    farm.assert_lost_with(killed, run_id, tasks)


def test_results_that_a_killed_agent_had_kept(deployment: Deployment, sqlite_tracker: str) -> None:
    """A result that came while no coordinator was there is on the agent's disk. The agent's next start delivers it."""
    farm = Farm(deployment, sqlite_tracker)
    farm.start()
    gate = deployment.gate()
    (agent,) = farm.agents("one", cores=1)
    run_id = deployment.submit({"a": shell(f"{gate.hold}; {LEDGER}; echo done"), "b": shell(LEDGER, parents=["a"])})
    gate.reached()
    deployment.running(run_id, "a")  # so that the result alone is still to be written down
    farm.kill()
    farm.result_kept("one", gate.open)
    agent.end(signal.SIGKILL)
    farm.start()
    farm.agents("one", cores=1)
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 2}
    assert farm.performed() == [("a", 1), ("b", 1)]
    assert deployment.task(run_id, "a")["attempts"][0]["stdout"] == "done\n"
