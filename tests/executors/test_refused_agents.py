"""What is kept of agents that are refused: for some minutes, and with bounds, however many come and whatever they are called."""

from __future__ import annotations

import gc

from agent_by_hand import hello

from daggyr_server.executors.agents.refused import KEPT_SECONDS, MOST, MOST_RESOURCES, RefusedAgent, RefusedAgents


def objects() -> int:
    """How many of them there are in this process, listed or not."""
    return sum(isinstance(each, RefusedAgent) for each in gc.get_objects())


def test_those_that_have_given_up_are_forgotten() -> None:
    now = [0.0]
    refused = RefusedAgents(clock=lambda: now[0])
    for number in range(5):
        now[0] = float(number)
        refused.note(hello(agent_id=f"id-{number}"), "here", "it is ahead")
    refused.note(hello(agent_id="id-0"), "here", "it is ahead")
    now[0] = KEPT_SECONDS + 3
    assert [agent.agent_id for agent in refused] == ["id-4", "id-0"]
    now[0] = 2 * KEPT_SECONDS + 4
    refused.note(hello(agent_id="id-5"), "here", "it is ahead")
    assert [agent.agent_id for agent in refused] == ["id-5"]
    assert objects() == 1, "nothing is kept of those that are not listed"


def test_they_are_bounded_in_number_and_size() -> None:
    refused = RefusedAgents()
    resources = {f"{number:0>200}": 1 for number in range(1_000)} | {"cores": 3}
    for number in range(MOST + 50):
        refused.note(hello(agent_id=f"id-{number}", resources=resources), "here", "it is ahead")
    agents = list(refused)
    assert (len(agents), agents[0].agent_id) == (MOST, "id-50")
    assert all(len(agent.resources) == MOST_RESOURCES and agent.resources["cores"] == 3 for agent in agents)
