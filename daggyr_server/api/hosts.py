"""The calls about what tasks run on: pools and agents, and an agent that is to be drained or forgotten.

Part of `RunsService` (runs.py). Nothing here gives work to a host or takes it away.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import grpc

from daggyr.bounds import cut
from daggyr.v1.runs_pb2 import (
    AGENT_STATE_CONNECTED,
    AGENT_STATE_DISCONNECTED,
    AGENT_STATE_DRAINING,
    AGENT_STATE_EXPECTED,
    AGENT_STATE_PAUSED,
    AGENT_STATE_REFUSED,
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
from daggyr_server.api.servicer import MAX_PAGE_BYTES, STRANGE_TOKEN, Context, Servicer, end_call
from daggyr_server.driver.errors import Refused

_MAX_NOTE_BYTES = 2_048
_MOST_PAUSED = 100  # hosts of a pool that are named
_MOST = 2**63 - 1  # units that an answer can hold: the sum over a pool's hosts may be more

MAX_AGENTS_A_PAGE = 1_000


class Hosts(Servicer):
    """See runs.proto."""

    async def ListPools(self, request: ListPoolsRequest, context: Context) -> ListPoolsResponse:
        names = sorted(self.reader.pools)
        start = await _start(request.page_token, context)
        running = Counter[str]()
        for flight in self.reader.in_flight():
            running[flight.pool] += flight.start_time is not None
        refused = self.refused_agents()
        response = ListPoolsResponse()
        size = 0
        for place, name in enumerate(names[start:], start):
            entry = self._pool(name)
            entry.running = running[name]
            entry.refused.extend(refused.get(name, ()))
            size += entry.ByteSize()
            if response.pools and size > MAX_PAGE_BYTES:
                response.next_page_token = str(place)
                break
            response.pools.append(entry)
        return response

    def _pool(self, name: str) -> Pool:
        pool = self.reader.pools[name]
        entry = Pool(name=name, executor=self.limits.executors.get(name, ""), ready=pool.ready)
        entry.is_default = name == self.limits.default_pool
        entry.notes.extend(cut(note, _MAX_NOTE_BYTES) for note in self.reader.notes(name))
        resources, used = Counter[str](), Counter[str]()
        for host in pool.hosts.values():
            if host.pause is not None and len(entry.paused) < _MOST_PAUSED:
                entry.paused.append(views.host_pause(host, host.pause, self.reader.now()))
            if host.open:
                entry.hosts += 1
                for resource, units in host.resources.items():
                    resources[resource] += units
                    used[resource] += min(units, host.load.get(resource, 0))
        entry.resources.update({name: min(_MOST, units) for name, units in views.shown_resources(resources).items()})
        entry.used.update({name: min(_MOST, units) for name, units in views.shown_resources(used).items()})
        return entry

    async def ListAgents(self, request: ListAgentsRequest, context: Context) -> ListAgentsResponse:
        known: list[tuple[str, Any]] = self.reader.agents()
        connected = {agent.agent_id for _, agent in known if agent.session is not None}
        refused = {
            agent.agent_id: (pool, agent) for pool, agent in self.reader.refused_agents() if agent.agent_id not in connected
        }
        known = [entry for entry in known if entry[1].agent_id not in refused] + list(refused.values())
        start = await _start(request.page_token, context)
        running, waiting = Counter[str](), Counter[str]()  # by host: attempts are gone through once, not once an agent
        for flight in self.reader.in_flight():
            (waiting if flight.start_time is None else running)[flight.host] += 1
        response = ListAgentsResponse()
        size = 0
        for place, (pool, agent) in enumerate(known[start:], start):
            entry = _refused(pool, agent) if agent.agent_id in refused else self._agent(pool, agent)
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
        if agent.coming:
            entry.state, entry.expected = AGENT_STATE_EXPECTED, cut(agent.coming, _MAX_NOTE_BYTES)
            return entry
        host = self.reader.pools[pool].hosts.get(agent.agent_id)
        if host is not None:
            entry.name = host.name  # The executor knows only the id of an agent that has not come back yet.
            entry.shortage = host.shortage
            if host.pause is not None and agent.session is not None:
                entry.pause.CopyFrom(views.host_pause(host, host.pause, self.reader.now()))
                if entry.state == AGENT_STATE_CONNECTED:
                    entry.state = AGENT_STATE_PAUSED
            for resource, units in views.shown_resources(host.load).items():
                entry.used[resource] = min(units, host.resources.get(resource, 0))
        if agent.heartbeat is not None:
            entry.load_average = agent.heartbeat.load_average
            entry.cpu_percent = agent.heartbeat.cpu_percent
            entry.memory_available_bytes = agent.heartbeat.memory_available_bytes
        return entry

    async def DrainAgent(self, request: DrainAgentRequest, context: Context) -> DrainAgentResponse:
        try:
            named = self.requests.drain(request.name)
        except Refused as refused:
            await end_call(refused, context)
        running = sum(flight.host in named and flight.start_time is not None for flight in self.reader.in_flight())
        return DrainAgentResponse(running=running)

    async def ForgetAgent(self, request: ForgetAgentRequest, context: Context) -> ForgetAgentResponse:
        return ForgetAgentResponse(lost=await self.answered(self.requests.forget_agent(request.name), context))


def _refused(pool: str, agent: Any) -> Agent:
    return Agent(
        name=agent.name,
        agent_id=agent.agent_id,
        pool=pool,
        state=AGENT_STATE_REFUSED,
        resources=views.shown_resources(agent.resources),
        version=cut(agent.version, 200),
        last_seen=views.timestamp(agent.last_seen),
        address=agent.address,
        refused=agent.reason,
    )


async def _start(token: str, context: Context) -> int:
    """Where a page begins. The list is made anew for each page, so that an entry may be missed, or come twice, if one before it
    comes or goes meanwhile."""
    if token and not (token.isdecimal() and len(token) <= 9):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, STRANGE_TOKEN)
    return int(token or 0)
