"""What there is to measure in a coordinator, as plain numbers. It is all that the metrics have of the driver.

`api/metrics` reads one `Figures` for each scrape. Nothing is counted here, and no run or task is looked at: what no counter tells
is left out. Hosts are gone through a few at a time, so that everybody else has turns in between.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field

from daggyr_server.core.machine import Machine
from daggyr_server.core.placing.host import Host
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.states import Outcome, State
from daggyr_server.driver.durability import BOUNDS, Durability

HOSTS_A_TURN = 500
MAX_RESOURCES = 32  # of a pool that are told: hosts choose their names, and there may be any number

HOST_STATES = ("available", "paused", "draining", "awaited")


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """The figures of one pool."""

    name: str
    ready: int  # tasks that only wait for capacity
    outcomes: Mapping[Outcome, int]  # of attempts that ended since the start
    hosts: Counter[str] = field(default_factory=Counter)  # by HOST_STATES
    offered: Counter[str] = field(default_factory=Counter)  # units of each resource of the hosts that take attempts
    used: Counter[str] = field(default_factory=Counter)  # units of these that attempts need


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a coordinator at one moment; those of its pools may be a few turns of the event loop apart."""

    runs: Mapping[State, int]
    tasks: Mapping[State, int]
    pools: Sequence[PoolFigures]
    committed: int  # records
    commit_bounds: Sequence[float]  # seconds
    commits: Sequence[int]  # [i] counts those that took longer than bound i-1, but not than bound i; the last, longer ones
    commit_seconds: float  # of all commits together
    trouble: bool
    damaged: int  # runs that were found to make no sense in the tracker


class FiguresReader:
    """Reads the figures of one coordinator."""

    def __init__(self, machine: Machine, durability: Durability, damaged: Sized) -> None:
        self._machine = machine
        self._durability = durability
        self._damaged = damaged

    async def read(self) -> Figures:
        """The figures as they are now."""
        tally, durability = self._machine.tally, self._durability
        pools = [await _of_pool(pool) for pool in list(self._machine.pools.values())]
        return Figures(
            runs={state: tally.runs[state] for state in State},
            tasks={state: tally.tasks[state] for state in State},
            pools=pools,
            committed=durability.records,
            commit_bounds=BOUNDS,
            commits=tuple(durability.commits),
            commit_seconds=durability.commit_seconds,
            trouble=durability.trouble is not None,
            damaged=len(self._damaged),
        )


async def _of_pool(pool: Pool) -> PoolFigures:
    found = PoolFigures(pool.name, pool.ready, {outcome: pool.outcomes[outcome] for outcome in Outcome})
    hosts = list(pool.hosts.values())
    for first in range(0, len(hosts), HOSTS_A_TURN):
        if first:
            await asyncio.sleep(0)
        for host in hosts[first : first + HOSTS_A_TURN]:
            _count(host, found)
    return found


def _count(host: Host, found: PoolFigures) -> None:
    found.hosts[_state(host)] += 1
    if host.open:
        for name, units in host.resources.items():
            if name in found.offered or len(found.offered) < MAX_RESOURCES:
                use = host.uses.get(name)
                found.offered[name] += units
                found.used[name] += min(units, use.units) if use is not None else 0


def _state(host: Host) -> str:
    if host.expected:
        return "awaited"
    if host.draining:
        return "draining"
    return "available" if host.open else "paused"
