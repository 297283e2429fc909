"""The executor interface: what the driver asks of whatever carries out attempts, and what it is told.

Everything that crosses this line is a message of the task contract (daggyr/v1/task.proto), so that executors can take each
other's place; one conformance suite (tests/executors) runs against all of them. The driver calls an executor only after the
commit that holds what it asks for; an executor tells the driver through `Reports` and never touches the machine or a tracker.

One executor object serves one pool. README.md in this folder shows how to add one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol

import msgspec

from daggyr.environment import pattern_fault
from daggyr.v1.task_pb2 import (
    AssignmentBatch,
    AttemptKey,
    AttemptUpdate,
    Host,
    OutputChunk,
    Placement,
)
from daggyr_server.executors.agents.pins import AgentPins

GROUP = "daggyr.executors"


class Reports(Protocol):
    """The driver's ear for one pool. Calls return at once; nothing is durable when they do."""

    def host(self, host: Host) -> None:
        """A host came, changed or is gone. HOST_GONE makes LOST what it had and what no result came for before."""

    def updates(self, host: str, updates: Sequence[AttemptUpdate], durable: Callable[[], None]) -> None:
        """What attempts on `host` did, in order for each attempt. Reports of attempts that are not current change nothing.

        `durable` is called once all of it is committed; until then the executor must be able to tell it again.
        """


class SettingsError(ValueError):
    """A pool's settings that this executor cannot use; the message names the setting and what to write instead."""


def check_patterns(patterns: Sequence[str]) -> None:
    """For settings that say which variables tasks get. Raises ValueError."""
    faults = [fault for fault in map(pattern_fault, patterns) if fault is not None]
    if faults:
        raise ValueError("; ".join(f"`pass_environment`: {fault}" for fault in faults))


class PoolAccess:
    """Where agents of whatever an executor starts elsewhere reach the coordinator; known once that listens."""

    def __init__(self) -> None:
        self.address = ""  # HOST:PORT, or unix:PATH
        self.token: str | None = None  # an agent's; None where none is wanted. For files of mode 0600 only
        self.tls = False
        self.insecure = False  # the token may cross a network without TLS
        self._opened = asyncio.Event()

    def open(self, address: str, *, token: str | None, tls: bool, insecure: bool = False) -> None:
        """The coordinator accepts connections; again: its token is another one now."""
        self.address, self.token, self.tls, self.insecure = address, token, tls, insecure
        self._opened.set()

    async def opened(self) -> PoolAccess:
        """Itself, as soon as it is open."""
        await self._opened.wait()
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorContext:
    """What every executor of a coordinator shares."""

    tracker_id: str
    epoch: int
    lease: float  # seconds
    heartbeat: float  # seconds
    grace: float  # seconds from SIGTERM to SIGKILL, after a kill and after a timeout: the pool's `kill_grace`
    log_level: str = "warning"  # for child processes
    door: PoolAccess = field(default_factory=PoolAccess)
    pass_environment: tuple[str, ...] = ()  # of the coordinator's variables, for tasks of every pool (daggyr.environment)
    pins: AgentPins = field(default_factory=AgentPins)  # of the agents that dial in where the coordinator listens


class Executor(ABC):
    """Carries out the attempts of one pool.

    `Settings` says which settings a pool with this executor takes beside `executor`: unknown ones are refused.
    Life: made, `open`, then any calls in any order, `close`. Only `open` and `close` may wait.
    """

    Settings: ClassVar[type[msgspec.Struct]]
    sized_by: ClassVar[str] = "workers"  # the setting that says how much a host of the pool has, for messages

    def __init__(self, pool: str, settings: Any, reports: Reports, surroundings: ExecutorContext) -> None:
        """`settings` is a `Settings`. Raises SettingsError if they contradict each other."""
        self.pool = pool
        self.settings = settings
        self.reports = reports
        self.surroundings = surroundings

    @abstractmethod
    async def open(self) -> None:
        """Begin to offer hosts. Raises ExecutorError if that is impossible and will stay so."""

    @abstractmethod
    def start(self, host: str, batch: AssignmentBatch) -> None:
        """Carry out attempts on a host that was offered. Idempotent on the key: one that has no result yet is not started again.

        An attempt that cannot be started ends as REJECTED, one whose host is no longer there as LOST, through `Reports`.
        """

    @abstractmethod
    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        """End attempts: SIGTERM, then SIGKILL after the grace period; each still ends with a result. Unknown keys are skipped."""

    @abstractmethod
    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None:
        """Hand back attempts that have not started, as RETURNED. Others and unknown keys are skipped."""

    @abstractmethod
    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        """Take up attempts that an earlier coordinator placed; called once, after `open`, before anything is started.

        For each, sooner or later, updates come: those it makes if it still runs or has ended meanwhile, else LOST.
        """

    @abstractmethod
    def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        """Output of an attempt that runs, from `offset` (bytes) on, as it comes.

        Ends when the attempt has ended, is not there, or cannot be reached for now. A gap was not kept. The caller closes the
        iterator when it has had enough.
        """

    def demand(self, ready: int) -> None:  # noqa: B027
        """How many attempts of this pool only wait for capacity now: for executors that can bring more hosts."""

    def largest(self) -> Mapping[str, int] | None:
        """The most that one host of this pool can ever offer, or None if that cannot be known (hosts come by themselves)."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Stop offering and let go of everything held here; what runs elsewhere goes on. Safe to call twice."""


class ExecutorError(Exception):
    """An executor that cannot work; the message says why and what to do."""


def find_executor(kind: str) -> type[Executor]:
    """The executor class that an entry point calls `kind`.

    Raises ExecutorError for an unknown kind, naming those that exist, and for a kind whose entry point is no executor.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if kind not in found:
        raise ExecutorError(f"there is no executor {kind!r}; there are: {', '.join(sorted(found))}")
    entry = found[kind]
    where = f"{entry.value}, the entry point {kind!r} of {GROUP},"
    try:
        loaded = entry.load()
    except Exception as error:  # whatever the module of another package does at its import
        raise ExecutorError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Executor)):
        raise ExecutorError(f"{where} is not a subclass of daggyr_server.executors.base.Executor")
    settings = getattr(loaded, "Settings", None)
    missing = sorted(loaded.__abstractmethods__)
    if not (isinstance(settings, type) and issubclass(settings, msgspec.Struct)):
        missing.append("Settings (a msgspec.Struct)")
    if missing:
        raise ExecutorError(f"{where} is not complete, it lacks: {', '.join(missing)}")
    return loaded


def forgotten() -> None:
    """The `durable` of updates that nobody has to tell again."""
