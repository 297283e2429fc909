"""The executor interface: what the driver asks of an executor, and what an executor tells the driver.

Everything that crosses this line is a message of the task contract (daggyr/v1/task.proto). So executors can take each other's
place, and one conformance suite (tests/executors) runs against all of them. The driver calls an executor only after the commit
that holds what it asks for. An executor tells the driver through `Reports`; it never touches the machine or a tracker.

One executor object serves one pool. `loader.py` finds executor classes; README.md in this folder shows how to add one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec

from daggyr.v1.task_pb2 import (
    AssignmentBatch,
    AttemptKey,
    AttemptUpdate,
    Host,
    OutputChunk,
    Placement,
)
from daggyr_server.executors.context import ExecutorContext


class ExecutorError(Exception):
    """An executor cannot work; the message says why and what to do."""


class SettingsError(ValueError):
    """An executor cannot use its pool's settings; the message names the setting and what to write instead."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Attempts of one kind that only wait for capacity."""

    needs: tuple[tuple[str, int], ...]  # units of resources by name, all above 0
    seconds: float  # that one may take: its timeout, or else the mean of those before; 0 if nobody knows
    count: int


class Reports(Protocol):
    """Where the executor of one pool tells what happens. Calls return at once; nothing is durable when they do."""

    def host(self, host: Host) -> None:
        """Tell that a host came, changed or is gone. HOST_GONE makes LOST all attempts of it whose result was not told before."""

    def wanted(self) -> Sequence[Wanted]:
        """Ask what the attempts need that only wait for capacity now. It takes time linear in the runs that have some."""

    def updates(self, host: str, updates: Sequence[AttemptUpdate], durable: Callable[[], None]) -> None:
        """Tell what attempts on `host` did, in order for each attempt. Reports of attempts that are not current change nothing.

        `durable` is called once all of it is committed. That of later updates may come first. Until it is called, the executor
        must be able to tell the updates again, because a coordinator that is started anew asks for them (`Executor.recover`).
        """


class Executor(ABC):
    """Carries out the attempts of one pool.

    `Settings` says which settings a pool with this executor takes beside `executor`: unknown ones are refused.
    An executor is made, then `open` is called, then other calls in any order, then `close`. Only `open` and `close` may wait.
    """

    Settings: ClassVar[type[msgspec.Struct]]
    sized_by: ClassVar[str] = "workers"  # the setting that says how much a host of the pool has, for messages

    def __init__(self, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> None:
        """`settings` is a `Settings`. Raises SettingsError if they contradict each other."""
        self.pool = pool
        self.settings = settings
        self.reports = reports
        self.context = context

    @classmethod
    def chosen(cls, settings: Any) -> type[Executor]:
        """Return the class that serves a pool with these settings (a `Settings`): this one, unless the executor has modes."""
        return cls

    @abstractmethod
    async def open(self) -> None:
        """Begin to offer hosts. Raises ExecutorError if that is impossible and will stay so."""

    @abstractmethod
    def start(self, host: str, batch: AssignmentBatch) -> None:
        """Carry out attempts on a host that was offered. A key that was given before and has no result yet is not started again.

        An attempt that cannot be started ends as REJECTED, one whose host is no longer there as LOST, through `Reports`.
        """

    @abstractmethod
    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        """End attempts: SIGTERM, then SIGKILL after the grace period. Each still ends with a result. Unknown keys are skipped."""

    @abstractmethod
    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None:
        """Hand back attempts that have not started, as RETURNED. Others and unknown keys are skipped."""

    @abstractmethod
    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        """Take up attempts that an earlier coordinator placed. Called once, after `open`, before anything is started.

        For each of them, sooner or later, updates come: its own if it still runs or has ended meanwhile, else LOST.
        """

    @abstractmethod
    def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        """Yield the output of an attempt that runs, from `offset` (bytes) on, as it comes.

        The iterator ends when the attempt has ended, is not there, or cannot be reached for now. A gap between two chunks was
        not kept. The caller closes the iterator when it has had enough.
        """

    def placement(self, host: str, key: AttemptKey) -> Placement:
        """Say where an attempt is whose end was not told yet. It is asked when a person wants to know.

        More than `host` is said by executors that hand attempts on to a scheduler.
        """
        return Placement(host=host)

    def demand(self, ready: int) -> None:  # noqa: B027
        """Hear how many attempts of this pool only wait for capacity now. Executors that can bring more hosts use it."""

    def notes(self) -> Sequence[str]:
        """Return what `pools` and `why` tell of the pool beside its hosts: sentences without a full stop."""
        return ()

    def largest(self) -> Mapping[str, int] | None:
        """Return the most that one host of this pool can ever offer, or None where hosts come by themselves."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Stop offering hosts and let go of everything held here; what runs elsewhere goes on. A second call does nothing."""


def forgotten() -> None:
    """Serve as the `durable` of updates that nobody has to tell again."""
