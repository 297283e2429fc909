"""The events that go into the machine: facts, and requests of people.

The driver makes them of what executors and clients tell, and `Machine.handle` takes them in batches. They carry no clock of
their own, because one `now` goes with the batch. A request carries a `ticket`, any hashable object, under which the step answers.
Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from daggyr_server.core.graph.graph import Addition, Edit
from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.ready import TaskKind
from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import Outcome
from daggyr_server.core.step import Refusal, Step


class AttemptStarted(NamedTuple):
    """An executor says that an attempt has a process now."""

    run_id: int
    number: int
    attempt: int
    start_time: float  # seconds since the epoch


class AttemptEnded(NamedTuple):
    """An executor says how an attempt ended. `result` goes into the record as it is; the machine does not look into it."""

    run_id: int
    number: int
    attempt: int
    outcome: Outcome
    seconds: float | None  # of wall time, if it ran
    result: Any
    # Of a generator that SUCCEEDED: the tasks it printed, made for its run's graph as it is now, or why they are refused.
    addition: Addition | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSubmitted:
    """A client submits a run. The answer is its id; if the request_id was seen before, it is the id of that run."""

    ticket: Hashable
    request_id: str
    tags: Mapping[str, str]
    pool: str  # where tasks without one of their own go
    parameters: Mapping[str, tuple[str, ...]]  # the run's, for its generators
    addition: Addition
    document: bytes  # the specification as it came, or its deposit: for the tracker, see RunAdded
    deposit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRestored:
    """A run comes back, made of what a tracker kept of it. Nothing is recorded of that. Attempts in flight are expected on their
    hosts.

    Trackers do not keep when the delay after an attempt began, so it begins again. The answer, if there is a ticket, is the run's
    id. `run` and `ending` are those of `Restored` (graph/restore.py); nobody else has the run yet.
    """

    ticket: Hashable | None = None
    request_id: str
    run: Run
    ending: Sequence[InFlight]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsForgotten:
    """Runs are no longer needed in memory. Those that have not ended stay there all the same.

    The answer, if there is a ticket, is None, or a Refusal if one has not ended.
    """

    ticket: Hashable | None = None
    run_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KillAsked:
    """A person asks for the end of a run, or of some of its tasks. The answer is None."""

    ticket: Hashable
    run_id: int
    numbers: Sequence[int] | None = None  # None means the whole run


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAsked:
    """A person asks to queue tasks again.

    The answer is None. It is a Refusal with Reason.GROWN if tasks that generators made have to go first.
    """

    ticket: Hashable
    run_id: int
    numbers: Sequence[int] | None = None  # None means all tasks that did not complete
    downstream: bool = False
    everything: bool = False  # also what a kill of the run left behind


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkAsked:
    """A person says that tasks are COMPLETED, or QUEUED. The answer is None."""

    ticket: Hashable
    run_id: int
    numbers: Sequence[int]
    completed: bool  # else QUEUED
    everything: bool = False  # also lets go on what a kill of the run left behind


@dataclass(frozen=True, slots=True, kw_only=True)
class EditAsked:
    """A person gives a run another specification. The answer is how often it has been edited, this time included.

    What is unchanged keeps its state, what is changed or new is QUEUED, what is gone ends. The answer is a Refusal with
    Reason.CONFLICT if the run was edited meanwhile, and with Reason.STALE if it has gone on, since `edit` was made, in a way that
    matters.
    """

    ticket: Hashable
    run_id: int
    edits: int  # how often it had been edited when the person looked at it
    revision: int  # of the graph for which `edit` was made
    edit: Edit
    tags: Mapping[str, str]
    pool: str
    parameters: Mapping[str, tuple[str, ...]]
    document: bytes  # these four are for the tracker: see RunEdited
    deposit: int = 0
    replaced: bytes = b""
    replaced_deposit: int = 0
    completed: Sequence[int] | None = None  # changed tasks that were COMPLETED when `again` was made, if that matters
    everything: bool = False  # also lets go on what a kill of the run left behind
    reason: str = "edit"  # or "retry", which repeats generators by an edit
    again: Sequence[int] = ()  # unchanged tasks that are to be queued too, by the numbers that they get


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What a person asked was done to a copy of a run, beside the machine (rehearsal.py makes it). The answer is as to `asked`.

    It is a Refusal with Reason.STALE if the run has changed since it was copied. The copy is the machine's from now on.
    """

    asked: KillAsked | RetryAsked | MarkAsked | EditAsked
    run: Run
    steps: int  # that the run had seen when it was copied
    done: Run  # the copy, as it is now
    step: Step  # what is to be recorded and told of that

    @property
    def ticket(self) -> Hashable:
        return self.asked.ticket

    @property
    def refused(self) -> bool:
        """Whether the request is not granted, however often it is repeated for the run as it was."""
        return isinstance(self.step.answers[self.asked.ticket], Refusal)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostChanged:
    """A host of a pool takes attempts, with these resources, or no longer does."""

    pool: str
    host: str
    name: str
    resources: Mapping[str, int] = field(default_factory=dict)
    open: bool  # takes new attempts
    ahead: bool = False  # takes some ahead of free resources
    draining: bool = False
    fault: str = ""  # why it takes none, if it is at fault: for people, a part of a sentence
    pause: float | None = None  # seconds from now until a host at fault looks again, if that is known
    keeps: bool = False  # a host at fault keeps what waits there: it has its place in a queue
    shortage: str = ""  # why its resources are less than they were meant to be, for people
    # Kinds of tasks of which it takes so many more and no others for now, and why: a part of a sentence, for people.
    limits: Mapping[TaskKind, tuple[int, str]] = field(default_factory=dict)
    ends: float | None = None  # seconds from now until it goes away by itself, if it has a time limit


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGone:
    """A host will not come back: its attempts are LOST. `result` goes into the records of these."""

    pool: str
    host: str
    result: Any


Fact = AttemptStarted | AttemptEnded | HostChanged | HostGone
Request = RunSubmitted | RunRestored | RunsForgotten | KillAsked | RetryAsked | MarkAsked | EditAsked | Rehearsed
Event = Fact | Request
