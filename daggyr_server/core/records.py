"""What must be durable before anything is done or told: the machine's first output, a tracker's only input.

A step's records go to the tracker in one commit, in order; replaying a run's records gives the machine's state again, less
what is only in flight. Structural tasks are in no record: they are COMPLETED while all their parents are. Times are seconds
since the epoch. Trackers import this module and nothing else of the core but the states and graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from daggyr_server.core.states import Outcome, State


@dataclass(frozen=True, slots=True)
class RunAdded:
    """A run was accepted."""

    run_id: int
    request_id: str
    tags: Mapping[str, str]
    pool: str
    submit_time: float
    document: bytes  # the specification as it came


@dataclass(frozen=True, slots=True)
class RunMoved:
    """A run is in another state."""

    run_id: int
    state: State
    time: float


@dataclass(frozen=True, slots=True)
class TasksGenerated:
    """A generator's tasks joined its run; which they are, its standard output says."""

    run_id: int
    number: int
    attempt: int
    revision: int


@dataclass(frozen=True, slots=True)
class AttemptsAssigned:
    """Attempts are about to be sent to a host. Parallel lists."""

    run_id: int
    host: str
    host_name: str
    numbers: Sequence[int]
    attempts: Sequence[int]
    time: float


class AttemptRecorded(NamedTuple):
    """An attempt ended, and its task moved with it."""

    run_id: int
    number: int
    attempt: int
    outcome: Outcome
    host: str
    host_name: str
    assign_time: float
    result: Any  # a daggyr.v1 AttemptResult
    state: State  # of the task, from now on


@dataclass(frozen=True, slots=True)
class TasksMoved:
    """Tasks are in another state for a reason that no attempt tells: a person asked."""

    run_id: int
    numbers: Sequence[int]
    state: State
    reason: str  # "kill" or "retry"
    time: float


class OutputKept(NamedTuple):
    """A piece of an attempt's output, made by the driver of what executors send."""

    run_id: int
    number: int
    attempt: int
    stream: int  # the contract's OutputStream
    offset: int  # bytes
    data: bytes


Record = RunAdded | RunMoved | TasksGenerated | AttemptsAssigned | AttemptRecorded | TasksMoved | OutputKept
