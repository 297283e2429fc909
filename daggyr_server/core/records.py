"""What must be durable before anything is done or told: the machine's first output, a tracker's only input.

A step's records go to the tracker in one commit, in order. Replaying a run's records gives the machine's state again, but for
what only its hosts know: whether an attempt has started. Structural tasks are in no record, because they are COMPLETED while all
their parents are. Times are seconds since the epoch. Of the core, trackers import this module, `stored` and `states`, and nothing
else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    document: bytes  # the specification as it came; empty if it is a deposit
    deposit: int = 0  # the number of the deposit that is the document (Tracker.new_deposit); 0: none is


@dataclass(frozen=True, slots=True)
class RunMoved:
    """A run is in another state."""

    run_id: int
    state: State
    time: float
    task_states: Mapping[State, int] = field(default_factory=dict)  # how many tasks are in each, if the run has ended
    command_states: Mapping[State, int] = field(default_factory=dict)  # of these, those that run commands
    ran_seconds: float = 0.0  # for how long it was RUNNING before this move, all times together


@dataclass(frozen=True, slots=True)
class RunKillAsked:
    """A person asked for the end of a run that has not ended: nothing of it is started any more."""

    run_id: int
    time: float


@dataclass(frozen=True, slots=True)
class RunEdited:
    """A run has another specification from now on."""

    run_id: int
    revision: int
    document: bytes  # as it came; empty if it is a deposit
    tags: Mapping[str, str]
    pool: str
    kept: tuple[int, ...]  # the revisions of the generators' tasks that are part of it
    time: float
    reason: str = "edit"  # or "retry"
    # What is to be kept of the specification that it replaced, so that its documents need not be read again.
    replaced: bytes = b""
    # The numbers of the deposits that are `document` and `replaced`; 0: none is.
    deposit: int = 0
    replaced_deposit: int = 0


@dataclass(frozen=True, slots=True)
class TasksStopped:
    """From now on exactly these tasks of a run wait until a person asks for them, because a kill of the run left them behind."""

    run_id: int
    numbers: Sequence[int]  # ascending


@dataclass(frozen=True, slots=True)
class TasksGenerated:
    """A generator's tasks joined its run; which they are, its standard output says."""

    run_id: int
    number: int
    attempt: int
    revision: int
    deposit: int = 0  # the number of the deposit that is what it printed; 0: that is among its output only


@dataclass(frozen=True, slots=True)
class AttemptsAssigned:
    """Attempts are about to be sent to a host. The lists are parallel."""

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
    """Tasks are in another state because a person asked, which no attempt tells. The lists are parallel.

    A task's state is that of its last attempt that ended, unless it was moved when it had had as many attempts or more: then it
    is that of the last move. After a move to QUEUED, what attempts used up before no longer counts. A move to KILLED while an
    attempt is in flight says that its end was asked for, and that its outcome counts. A move to QUEUED that counts the attempt in
    flight says that an edit changed its task: the attempt's end was asked for, and its outcome does not count.
    """

    run_id: int
    numbers: Sequence[int]
    attempts: Sequence[int]  # the number of the last attempt of each that ended, or that counts as such
    state: State
    reason: str  # "kill", "retry", "mark" or "edit"
    time: float


class OutputKept(NamedTuple):
    """A piece of an attempt's output. The driver makes it of what executors send; the machine does not."""

    run_id: int
    number: int
    attempt: int
    stream: int  # the contract's OutputStream
    offset: int  # bytes
    data: bytes


class AgentPinned(NamedTuple):
    """From now on an agent's id belongs to whoever has the key of this digest. The driver makes it; the machine does not."""

    agent_id: str
    name: str  # by which people know it
    digest: bytes  # the key's SHA-256


class AgentForgotten(NamedTuple):
    """Nothing is known of an agent's key any more."""

    agent_id: str


Record = (
    RunAdded
    | RunMoved
    | RunKillAsked
    | RunEdited
    | TasksStopped
    | TasksGenerated
    | AttemptsAssigned
    | AttemptRecorded
    | TasksMoved
    | OutputKept
    | AgentPinned
    | AgentForgotten
)
