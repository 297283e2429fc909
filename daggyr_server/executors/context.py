"""What all executors of a coordinator share: its identity, its times, and the way by which agents reach it.

The server's main program makes one `ExecutorContext` and gives it to each executor. Nothing here knows of a pool. Nothing
changes but `PoolAccess`, which is filled in once the coordinator listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from daggyr.environment import pattern_fault
from daggyr_server.executors.agents.pins import AgentPins


class PoolAccess:
    """How agents that an executor starts elsewhere reach the coordinator. It is known once the coordinator listens."""

    def __init__(self) -> None:
        self.address = ""  # HOST:PORT, or unix:PATH
        self.token: str | None = None  # an agent's token, for files of mode 0600 only; None where no token is wanted
        self.tls = False
        self.insecure = False  # whether the token may cross a network without TLS
        self._opened = asyncio.Event()

    def open(self, address: str, *, token: str | None, tls: bool, insecure: bool = False) -> None:
        """Say that the coordinator accepts connections. A later call says that its token is another one now."""
        self.address, self.token, self.tls, self.insecure = address, token, tls, insecure
        self._opened.set()

    async def opened(self) -> PoolAccess:
        """Return this object as soon as the coordinator accepts connections."""
        await self._opened.wait()
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorContext:
    """What every executor of a coordinator is given."""

    tracker_id: str  # random, one for each tracker: what another tracker's coordinator has left is not this one's
    epoch: int  # higher at each start of the coordinator
    life: int  # this start's: random, not 0; part of the key of each attempt that this start assigns
    lives: Mapping[int, int] = field(default_factory=dict)  # by epoch, those of the last starts, this one included
    lease: float  # seconds for which an agent may be out of reach before its attempts are LOST
    heartbeat: float  # seconds between two heartbeats of an agent
    grace: float  # seconds from SIGTERM to SIGKILL, after a kill and after a timeout: the pool's `kill_grace`
    log_level: str = "warning"  # for child processes
    access: PoolAccess = field(default_factory=PoolAccess)
    pass_environment: tuple[str, ...] = ()  # of the coordinator's variables, what all tasks get (daggyr.environment)
    pins: AgentPins = field(default_factory=AgentPins)  # of the agents that dial in where the coordinator listens


def pattern_faults(patterns: Iterable[str]) -> list[str]:
    """What is wrong with the patterns of a `pass_environment` setting, each fault in words."""
    return [f"`pass_environment`: {fault}" for fault in map(pattern_fault, patterns) if fault is not None]


def check_patterns(patterns: Iterable[str]) -> None:
    """Raise ValueError with all that is wrong with the patterns of a `pass_environment` setting."""
    faults = pattern_faults(patterns)
    if faults:
        raise ValueError("; ".join(faults))
