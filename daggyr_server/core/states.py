"""The states of runs and tasks, the outcomes of attempts, and what follows from what.

All transitions stand in this file's two tables; `run.py` is the only place that carries them out.

A task is a vertex. Clients see five states; the machine tells QUEUED apart by what the task waits for, because that is
what scheduling is about. Phase by phase:

    BLOCKED    waits for parents. The last parent that completes makes it READY; so does being a root. A structural task
               is COMPLETED in the same step, and its children with it, however long the chain.
    READY      waits for capacity only. The scheduler takes it from here and nowhere else.
    DELAYED    waits until a retry's delay has passed, then READY.
    ASSIGNED   sent to a host, where it may wait its turn; nothing has started. To clients still QUEUED.
    RUNNING    its executor has said `started`, or its result came, which implies it.
    COMPLETED  its last attempt SUCCEEDED (or it is structural and all parents completed). Final, unless a person asks.
    ERRORED    its attempts are used up, or one was REJECTED, or what a generator printed was refused. Final, likewise.
    KILLED     a person asked, and no process of it is left. Final, likewise.

An attempt is one execution. Its outcome alone decides how the task goes on (FOLLOWS below):

    SUCCEEDED  the task is COMPLETED (a generator: once its tasks are checked and added, in the same commit, else ERRORED).
    FAILED, TIMED_OUT, OOM_KILLED
               it ran and did not succeed: a retry is used, with a delay that doubles; without one left, ERRORED.
    REJECTED   it could not be started, and would not be the next time: ERRORED at once.
    KILLED     a person asked: KILLED. (A process that was asked to end and still exits with 0 has SUCCEEDED: what it did is
               done, and running it again would be wrong.)
    LOST       its host went away: again, without using a retry, MAX_LOSSES times at most, then ERRORED.
    RETURNED   it never started: again, and not counted.

Asking for the end of a task that only waits makes it KILLED when the task was named; when its run is killed it stays QUEUED
and the run takes nothing new. Asking for a task again makes it BLOCKED, and READY in the same step if it waits for nobody. What
was READY or DELAYED behind it is BLOCKED again; an attempt in flight there goes on, and its task is BLOCKED if it has to be
repeated. A structural task is COMPLETED exactly while all its parents are.

A run is RUNNING from its first started attempt until nothing is left that could go on: tasks that wait for a task which ended
otherwise stay QUEUED for good. Then it is KILLED if a person killed anything, else ERRORED if any task is, else COMPLETED. A
retry puts a run that has ended back to QUEUED, and gives all that did not complete fresh budgets of retries and losses.
"""

from __future__ import annotations

from enum import Enum, IntEnum, unique


@unique
class State(IntEnum):
    """What clients see of a run or a task; the contract's numbers."""

    QUEUED = 1
    RUNNING = 2
    COMPLETED = 3
    ERRORED = 4
    KILLED = 5

    @property
    def has_ended(self) -> bool:
        return self is not State.QUEUED and self is not State.RUNNING


@unique
class Phase(IntEnum):
    """What the machine knows of a task; one byte each."""

    BLOCKED = 0
    READY = 1
    DELAYED = 2
    ASSIGNED = 3
    RUNNING = 4
    COMPLETED = 5
    ERRORED = 6
    KILLED = 7


@unique
class Outcome(IntEnum):
    """How an attempt ended; the contract's numbers."""

    SUCCEEDED = 1
    FAILED = 2
    TIMED_OUT = 3
    OOM_KILLED = 4
    REJECTED = 5
    KILLED = 6
    LOST = 7
    RETURNED = 8


class Follows(Enum):
    """How a task goes on after an attempt."""

    COMPLETE = "complete"
    RETRY = "retry"  # while retries last, else ERROR
    ERROR = "error"
    KILL = "kill"
    REQUEUE = "requeue"  # while losses last, else ERROR
    GIVE_BACK = "give back"


FOLLOWS: dict[Outcome, Follows] = {
    Outcome.SUCCEEDED: Follows.COMPLETE,
    Outcome.FAILED: Follows.RETRY,
    Outcome.TIMED_OUT: Follows.RETRY,
    Outcome.OOM_KILLED: Follows.RETRY,
    Outcome.REJECTED: Follows.ERROR,
    Outcome.KILLED: Follows.KILL,
    Outcome.LOST: Follows.REQUEUE,
    Outcome.RETURNED: Follows.GIVE_BACK,
}

STATE_OF: dict[Phase, State] = {
    Phase.BLOCKED: State.QUEUED,
    Phase.READY: State.QUEUED,
    Phase.DELAYED: State.QUEUED,
    Phase.ASSIGNED: State.QUEUED,
    Phase.RUNNING: State.RUNNING,
    Phase.COMPLETED: State.COMPLETED,
    Phase.ERRORED: State.ERRORED,
    Phase.KILLED: State.KILLED,
}

# Which phase may follow which; anything else is a fault of ours.
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.BLOCKED: frozenset({Phase.READY, Phase.COMPLETED, Phase.KILLED}),
    Phase.READY: frozenset({Phase.ASSIGNED, Phase.BLOCKED, Phase.KILLED, Phase.COMPLETED}),
    Phase.DELAYED: frozenset({Phase.READY, Phase.BLOCKED, Phase.KILLED, Phase.COMPLETED}),
    Phase.ASSIGNED: frozenset(Phase) - {Phase.ASSIGNED},
    Phase.RUNNING: frozenset(Phase) - {Phase.ASSIGNED, Phase.RUNNING},
    Phase.COMPLETED: frozenset({Phase.BLOCKED}),  # a person asks for it again
    Phase.ERRORED: frozenset({Phase.BLOCKED, Phase.COMPLETED}),  # or knows better
    Phase.KILLED: frozenset({Phase.BLOCKED, Phase.COMPLETED}),
}

ENDED = frozenset({Phase.COMPLETED, Phase.ERRORED, Phase.KILLED})

MAX_LOSSES = 10
