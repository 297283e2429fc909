"""What there is to measure in a coordinator, as plain numbers: `figures` reads them off the driver and its machine.

Nothing is counted here, and no run or task is looked at: what cannot be read off a counter is left out. Hosts are gone through, a
few at a time, so that everybody else has turns in between. `exposition` makes metrics of the numbers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from daggyr_server.core.placing.host import Host
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.states import Outcome, State
from daggyr_server.driver.loop import Driver

HOSTS_A_TURN = 500
MAX_RESOURCES = 32  # of a pool that are told of: their names are the hosts' to choose

HOST_STATES = ("available", "paused", "draining", "awaited")


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """Of one pool."""

    name: str
    executor: str
    ready: int  # tasks that only wait for capacity
    outcomes: Mapping[Outcome, int]  # of attempts that ended since the start
    hosts: Counter[str] = field(default_factory=Counter)  # by HOST_STATES
    offered: Counter[str] = field(default_factory=Counter)  # units of each resource of the hosts that take attempts
    used: Counter[str] = field(default_factory=Counter)  # how many of these attempts need


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a coordinator, at one moment; pools may be a few turns of the event loop apart. Times are in seconds."""

    runs: Mapping[State, int]
    tasks: Mapping[State, int]
    pools: Sequence[PoolFigures]
    committed: int  # records
    commits: Sequence[int]  # as durations.Durations has them
    commit_seconds: float
    trouble: bool
    lag: float


async def figures(driver: Driver, executors: Mapping[str, str], lag: float) -> Figures:
    """Read them off. `executors` has the executor's name of each pool that is configured."""
    machine = driver.machine
    pools = [await _of_pool(pool, executors.get(pool.name, "")) for pool in list(machine.pools.values())]
    return Figures(
        runs={state: machine.tally.runs[state] for state in State},
        tasks={state: machine.tally.tasks[state] for state in State},
        pools=pools,
        committed=driver.committed,
        commits=tuple(driver.commits.counts),
        commit_seconds=driver.commits.seconds,
        trouble=driver.trouble is not None,
        lag=lag,
    )


async def _of_pool(pool: Pool, executor: str) -> PoolFigures:
    found = PoolFigures(pool.name, executor, pool.ready, {outcome: pool.outcomes[outcome] for outcome in Outcome})
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
