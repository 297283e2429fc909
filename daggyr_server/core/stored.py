"""A run as its records left it: what a tracker gives back, and what the machine takes up again.

Trackers make these of what they keep; the driver has a run made of them (graph/restore.py). Nothing here decides or changes
anything. Times are seconds since the epoch.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from daggyr_server.core.states import State


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run without its tasks, as a list shows it.

    `task_states` counts all tasks, `command_states` those that are not structural; both are empty until the run has ended. Runs
    that ended before `command_states` were kept have none of them.
    """

    run_id: int
    request_id: str
    tags: Mapping[str, str]
    pool: str  # an edit may have given it another than it was submitted with
    state: State
    submit_time: float
    start_time: float | None
    stop_time: float | None
    killing: bool  # a person asked for the end of the run
    task_states: Mapping[State, int]
    command_states: Mapping[State, int] = field(default_factory=dict)
    revision: int = 1  # one more with each growth
    stopped: int = 0  # how many tasks a kill of the run left behind; see TasksStopped
    ran_seconds: float = 0.0  # for how long it was RUNNING, but for the time since `running_time`
    running_time: float | None = None  # when it became RUNNING, if it is
    damage: str = ""  # why the row makes no sense; then the other fields are what could be read of it


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs a list is to have. Times are seconds since the epoch."""

    states: frozenset[State] = frozenset()  # any of them; empty: all
    tags: Mapping[str, str] = field(default_factory=dict)  # all of them must be equal
    since: float = -math.inf  # submitted then or later
    until: float = math.inf  # submitted before
    ended_before: float = math.inf  # infinity: also those that have not ended

    @property
    def is_open(self) -> bool:
        """Whether every run is wanted."""
        times = (self.since, self.until, self.ended_before)
        return not self.states and not self.tags and times == (-math.inf, math.inf, math.inf)

    def admits(self, tags: Mapping[str, str], state: State, submit_time: float, stop_time: float | None) -> bool:
        """Whether a run of these tags, state and times is wanted."""
        return (
            (not self.states or state in self.states)
            and all(tags.get(name) == value for name, value in self.tags.items())
            and self.since <= submit_time < self.until
            and (self.ended_before == math.inf or (stop_time is not None and stop_time < self.ended_before))
        )


EVERY_RUN = RunFilter()


@dataclass(frozen=True, slots=True)
class TaskRows:
    """A run's tasks that were attempted or moved, as parallel arrays, ascending by task number.

    Arrays, because a run may have millions of tasks. A task whose attempt is in flight has the state that it had before, or
    KILLED if a person asked for its end.
    """

    numbers: array[int]
    states: bytearray  # a `State` each
    attempts: array[int]  # the number of the last attempt, in flight or ended
    failures: array[int]  # attempts FAILED, TIMED_OUT or OOM_KILLED since the last move to QUEUED
    losses: array[int]  # attempts LOST since then
    requeued: array[int]  # not parallel: the numbers of those that were moved to QUEUED at any time, ascending


class Adopted(NamedTuple):
    """An attempt that an earlier coordinator sent to a host and whose end it did not hear of."""

    number: int  # of its task when it was assigned
    attempt: int
    host: str
    host_name: str
    assign_time: float
    void: bool = False  # its task was queued again meanwhile: how it ends does not count
    life: int = 0  # of the start that assigned it; 0: one of a version that had no lives


@dataclass(frozen=True, slots=True)
class Growth:
    """A step in which a run's graph grew after it was submitted: what a generator printed, or an edit."""

    revision: int
    document: bytes  # empty if it is not `needed`
    number: int | None  # of the generator when it was assigned; None for an edit
    attempt: int | None
    pool: str = ""  # of an edit: where tasks without one of their own go from then on
    kept: tuple[int, ...] = ()  # of an edit: the revisions of the generators' tasks that are part of it


@dataclass(frozen=True, slots=True)
class StoredRun:
    """All that is needed to go on with a run, or to show one that has ended."""

    row: RunRow
    document: bytes  # the specification as it came; empty if it is not `needed`
    pool: str  # that it was submitted with
    growths: Sequence[Growth]  # ascending by revision
    tasks: TaskRows
    in_flight: Sequence[Adopted]  # ascending by number
    # By an edit's revision: what is to be kept of the specification that it replaced (RunEdited.replaced). Edits that an earlier
    # version took have none.
    replaced: Mapping[int, bytes] = field(default_factory=dict)
    stopped: Sequence[int] = ()  # see TasksStopped


def needed(growths: Iterable[Growth], replaced: Container[int]) -> set[int]:
    """The revisions whose documents it takes to make a run's graph again; the specification as it came has revision 0.

    Those of a specification that an edit replaced are not among them, if `replaced` has the edit's revision, and no later
    specification has tasks of theirs.
    """
    found: set[int] = set()
    made_from = [0]  # what the tasks of the specification that the run had then were made from
    for growth in growths:
        if growth.number is not None:
            made_from.append(growth.revision)
            continue
        if growth.revision not in replaced:
            found.update(made_from, (growth.revision, *growth.kept))  # which tasks went over is found by making both graphs
        made_from = [growth.revision, *growth.kept]
    return found.union(made_from)
