"""kill -9 of the coordinator at any moment of a run: the run is completed, and nothing is done or recorded twice."""

from __future__ import annotations

from random import Random

from farm import Farm, layers
from support.deployment import Deployment

TASKS = 1_000
KILLS = 20


def test_a_coordinator_that_is_killed_twenty_times(deployment: Deployment, tracker: str) -> None:
    """There are two agents and 1,000 short tasks in twenty chains. A command that watches sees the run to its end."""
    farm = Farm(deployment, tracker)
    random = Random(f"{KILLS} kills, {tracker[:6]}")
    farm.start()
    farm.agents("one", "two")
    tasks = layers(TASKS, 20)
    run_id = deployment.submit(tasks)
    watching = farm.watching(run_id)
    for moment in farm.moments(random, KILLS, of=TASKS):
        farm.wait_for(moment)
        farm.kill_and_start()
    farm.wait_for(TASKS)
    ended = deployment.ended(watching)
    assert ended.code == 0, ended.err
    run = deployment.run(run_id)
    assert (run["state"], run["task_states"]) == ("COMPLETED", {"COMPLETED": TASKS})
    farm.assert_each_once(run_id, tasks)
