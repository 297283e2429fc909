"""The calls about what tasks run on: pools, agents, and an agent that is to be drained or forgotten.

Part of `RunsService` (runs.py).
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import grpc

from daggyr.bounded import cut
from daggyr.v1.runs_pb2 import (
    AGENT_STATE_CONNECTED,
    AGENT_STATE_DISCONNECTED,
    AGENT_STATE_DRAINING,
    Agent,
    DrainAgentRequest,
    DrainAgentResponse,
    ForgetAgentRequest,
    ForgetAgentResponse,
    ListAgentsRequest,
    ListAgentsResponse,
    ListPoolsRequest,
    ListPoolsResponse,
    Pool,
)
from daggyr_server.api import views
from daggyr_server.api.asking import MAX_PAGE_BYTES, STRANGE_TOKEN, Asking, Context
from daggyr_server.api.statuses import fitting
from daggyr_server.executors.agents.executor import AgentExecutor
from daggyr_server.executors.agents.pins import PinsClosed

log = logging.getLogger(__name__)

_MOST = 2**63 - 1  # that a sum of units can say; pools whose settings name more are sums of settings

MAX_AGENTS_A_PAGE = 1_000


class Hosts(Asking):
    """See runs.proto."""

    async def ListPools(self, request: ListPoolsRequest, context: Context) -> ListPoolsResponse:
        names = sorted(self.driver.machine.pools)
        start = await _start(request.page_token, context)
        running = Counter[str]()
        for run in self.driver.machine.runs.values():
            for flight in run.in_flight.values():
                running[flight.pool] += flight.start_time is not None
        response = ListPoolsResponse()
        size = 0
        for place, name in enumerate(names[start:], start):
            entry = self._pool(name)
            entry.running = running[name]
            size += entry.ByteSize()
            if response.pools and size > MAX_PAGE_BYTES:
                response.next_page_token = str(place)
                break
            response.pools.append(entry)
        return response

    def _pool(self, name: str) -> Pool:
        pool = self.driver.machine.pools[name]
        entry = Pool(name=name, executor=self.limits.executors.get(name, ""), ready=pool.ready)
        entry.is_default = name == self.limits.default_pool
        resources, used = Counter[str](), Counter[str]()
        for host in pool.hosts.values():
            if host.open:
                entry.hosts += 1
                for resource, units in host.resources.items():
                    resources[resource] += units
                    used[resource] += min(units, host.load.get(resource, 0))
        entry.resources.update({name: min(_MOST, units) for name, units in views.shown_resources(resources).items()})
        entry.used.update({name: min(_MOST, units) for name, units in views.shown_resources(used).items()})
        return entry

    async def ListAgents(self, request: ListAgentsRequest, context: Context) -> ListAgentsResponse:
        known = [
            (pool, agent)
            for pool, executor in sorted(self.driver.executors.items())
            if isinstance(executor, AgentExecutor)
            for agent in executor.agents.values()
        ]
        start = await _start(request.page_token, context)
        running, waiting = Counter[str](), Counter[str]()  # by host; one look at what is in flight, however many agents there are
        for run in self.driver.machine.runs.values():
            for flight in run.in_flight.values():
                (waiting if flight.start_time is None else running)[flight.host] += 1
        response = ListAgentsResponse()
        size = 0
        for place, (pool, agent) in enumerate(known[start:], start):
            entry = self._agent(pool, agent)
            entry.running, entry.waiting = running[agent.agent_id], waiting[agent.agent_id]
            size += entry.ByteSize()
            if response.agents and (len(response.agents) == MAX_AGENTS_A_PAGE or size > MAX_PAGE_BYTES):
                response.next_page_token = str(place)
                break
            response.agents.append(entry)
        return response

    def _agent(self, pool: str, agent: Any) -> Agent:
        state = AGENT_STATE_DRAINING if agent.draining else AGENT_STATE_CONNECTED
        entry = Agent(
            name=agent.name,
            agent_id=agent.agent_id,
            pool=pool,
            state=state if agent.session is not None else AGENT_STATE_DISCONNECTED,
            resources=views.shown_resources(agent.resources),
            version=cut(agent.version, 200),
            connect_time=views.timestamp(agent.connect_time) if agent.connect_time else None,
            last_seen=views.timestamp(agent.last_seen) if agent.last_seen else None,
            address=agent.address,
        )
        host = self.driver.machine.pools[pool].hosts.get(agent.agent_id)
        if host is not None:
            entry.name = host.name  # of an agent that has not come back yet, the executor knows the id only
            for resource, units in views.shown_resources(host.load).items():
                entry.used[resource] = min(units, host.resources.get(resource, 0))
        if agent.heartbeat is not None:
            entry.load_average = agent.heartbeat.load_average
            entry.cpu_percent = agent.heartbeat.cpu_percent
            entry.memory_available_bytes = agent.heartbeat.memory_available_bytes
        return entry

    async def DrainAgent(self, request: DrainAgentRequest, context: Context) -> DrainAgentResponse:
        executors = [executor for executor in self.driver.executors.values() if isinstance(executor, AgentExecutor)]
        if not any(executor.drain(request.name) for executor in executors):
            message = f"there is no agent {request.name[:1024]!r}; `daggyr agents` lists them"
            await context.abort(grpc.StatusCode.NOT_FOUND, fitting(message))
        named = {agent.agent_id for executor in executors for agent in executor.agents.values() if agent.name == request.name}
        flights = (flight for run in self.driver.machine.runs.values() for flight in run.in_flight.values())
        return DrainAgentResponse(running=sum(flight.host in named and flight.start_time is not None for flight in flights))

    async def ForgetAgent(self, request: ForgetAgentRequest, context: Context) -> ForgetAgentResponse:
        executors = [executor for executor in self.driver.executors.values() if isinstance(executor, AgentExecutor)]
        agents = [
            agent for executor in executors for agent in executor.agents.values() if request.name in (agent.name, agent.agent_id)
        ]
        pins = next((executor.context.pins for executor in executors), None)
        known = {agent.agent_id for agent in agents} | (pins.named(request.name) if pins is not None else set())
        connected = {agent.agent_id: agent for agent in agents if agent.session is not None}
        for executor in executors:  # by the names of earlier starts, some of which may be connected under others
            for agent_id in known & executor.agents.keys():
                if executor.agents[agent_id].session is not None:
                    connected[agent_id] = executor.agents[agent_id]
        if not known:
            message = f"no agent {request.name[:1024]!r} is known; `daggyr agents` lists those that are connected, or were"
            await context.abort(grpc.StatusCode.NOT_FOUND, fitting(message))
        gone = known - connected.keys()
        if not gone:
            where = next(iter(connected.values())).address
            message = f"agent {request.name[:1024]!r} is connected from {where}: stop it first, or drain it"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, fitting(message))
        lost = sum(executor.forget(agent_id) for executor in executors for agent_id in gone)
        try:
            for agent_id in gone:
                if pins is not None:
                    await pins.forget(agent_id)
        except PinsClosed as closed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(closed))
        log.info("agent %s was forgotten; it still had %d attempts", request.name, lost)
        return ForgetAgentResponse(lost=lost)


async def _start(token: str, context: Context) -> int:
    """Where a page begins in a list that is made anew for each: one who comes or goes meanwhile may be missed, or told twice."""
    if token and not (token.isdecimal() and len(token) <= 9):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, STRANGE_TOKEN)
    return int(token or 0)
