"""The agents of all pools that have some: which are known, and what people ask of one by its name.

The API lists them through `Reader`, and drains and forgets them through `Requests`. What an agent is sent, and what it has, are
its executor's; nothing here keeps anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from daggyr_server.core.step import Reason, Refusal
from daggyr_server.driver.errors import Closing, Refused
from daggyr_server.executors.agents.executor import AgentExecutor
from daggyr_server.executors.agents.known_agent import KnownAgent
from daggyr_server.executors.agents.pins import PinsClosed
from daggyr_server.executors.agents.refused import RefusedAgent
from daggyr_server.executors.base import Executor

log = logging.getLogger(__name__)


class Agents:
    """The agents of one coordinator."""

    def __init__(self, executors: Mapping[str, Executor]) -> None:
        """`executors` has them by pool, and may be filled later."""
        self._executors = executors

    def known(self) -> list[tuple[str, KnownAgent]]:
        """Every agent that is connected, awaited or expected, with its pool; the pools in the order of their names."""
        return [
            (pool, agent)
            for pool, executor in sorted(self._executors.items())
            if isinstance(executor, AgentExecutor)
            for agent in (*executor.agents.values(), *executor.expected())
        ]

    def refused(self) -> list[tuple[str, RefusedAgent]]:
        """Every agent that was refused lately because it is ahead of the tracker, with its pool."""
        return [
            (pool, agent)
            for pool, executor in sorted(self._executors.items())
            if isinstance(executor, AgentExecutor)
            for agent in executor.refused
        ]

    def drain(self, name: str) -> set[str]:
        """Let the agent of this name finish what it has and leave; returns the ids that have the name. Raises Refused."""
        executors = self._with_agents()
        if not any(executor.drain(name) for executor in executors):
            raise Refused(Refusal(Reason.NOT_FOUND, f"there is no agent {name[:1024]!r}; `daggyr agents` lists them"))
        return {agent.agent_id for executor in executors for agent in executor.agents.values() if agent.name == name}

    async def forget(self, name: str) -> int:
        """Do not wait any longer for an agent that is gone, and know nothing of its key any more; `name` may be its id.

        Returns how many attempts it still had: they are LOST. Raises Refused while it is connected, and Closing.
        """
        executors = self._with_agents()
        agents = [agent for executor in executors for agent in executor.agents.values() if name in (agent.name, agent.agent_id)]
        pins = next((executor.context.pins for executor in executors), None)
        known = {agent.agent_id for agent in agents} | (pins.named(name) if pins is not None else set())
        connected = {agent.agent_id: agent for agent in agents if agent.session is not None}
        for executor in executors:  # Pins know the names of earlier starts too: an agent may be connected under another one.
            for agent_id in known & executor.agents.keys():
                if executor.agents[agent_id].session is not None:
                    connected[agent_id] = executor.agents[agent_id]
        if not known:
            message = f"no agent {name[:1024]!r} is known; `daggyr agents` lists those that are connected, or were"
            raise Refused(Refusal(Reason.NOT_FOUND, message))
        gone = known - connected.keys()
        if not gone:
            where = next(iter(connected.values())).address
            message = f"agent {name[:1024]!r} is connected from {where}: stop it first, or drain it"
            raise Refused(Refusal(Reason.NOT_NOW, message))
        lost = sum(executor.forget(agent_id) for executor in executors for agent_id in gone)
        try:
            for agent_id in gone:
                if pins is not None:
                    await pins.forget(agent_id)
        except PinsClosed as closed:
            raise Closing(str(closed)) from None
        log.info("agent %s was forgotten; it still had %d attempts", name, lost)
        return lost

    def _with_agents(self) -> list[AgentExecutor]:
        return [executor for executor in self._executors.values() if isinstance(executor, AgentExecutor)]
