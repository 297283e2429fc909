"""The states of runs and tasks, the outcomes of attempts, and what follows from what.

All moves stand in this file's tables. `graph/tasks.py` alone moves tasks and `graph/run.py` alone moves runs, each by its table;
this file only says what is so.

A task is a vertex. Clients see five states; the machine tells QUEUED apart by what the task waits for, because that is
what scheduling is about. Phase by phase:

    BLOCKED    It waits for parents. The last parent that completes makes it READY; so does being a root. A structural task
               is COMPLETED in the same step, and its children with it, however long the chain. A task that a kill of its run
               stopped is BLOCKED too, until a person asks for it.
    READY      It waits for capacity only. The scheduler takes it from here and nowhere else.
    DELAYED    It waits until the delay after its last attempt (a retry's, or that of a loss) has passed, or a person asks for
               it, then it is READY.
    ASSIGNED   It was sent to a host, where it may wait its turn; nothing has started. To clients it is still QUEUED.
    RUNNING    Its executor has said that it started.
    COMPLETED  Its last attempt SUCCEEDED, or it is structural and all its parents completed, or a person said so. This is final,
               unless a person asks for it again.
    ERRORED    Its attempts are used up, or one was REJECTED. This is final, likewise.
    KILLED     A person asked for its end, and no process of it is left. This is final, likewise.

An attempt is one execution. Its outcome alone decides how the task goes on (FOLLOWS below):

    SUCCEEDED  The task is COMPLETED. A generator's tasks are checked and added in the same commit; if they are refused, the
               attempt counts as one that FAILED.
    FAILED, TIMED_OUT, OOM_KILLED
               It ran and did not succeed. A retry is used, with a delay that doubles; without one left, the task is ERRORED.
    REJECTED   It could not be started, and would not be the next time. The task is ERRORED at once.
    KILLED     A person asked for it: the task is KILLED. (A process that was asked to end and still exits with 0 has SUCCEEDED:
               what it did is done, and running it again would be wrong.)
    LOST       Its host went away. The task is queued again without using a retry, MAX_LOSSES times at most; then it is ERRORED.
               Each time it waits, for twice as long as before, and then goes to another host if there is one.
    RETURNED   It was handed back, or its host could not start it. The task is queued again, and the attempt is not counted. One
               that had begun (its host could not keep what it wrote) waits as if it were LOST, and MAX_LOSSES such ends are the
               most.

There are two exceptions. If a person has asked for the end of an attempt, every outcome but SUCCEEDED and REJECTED makes the task
KILLED. If an edit has changed the task meanwhile, the outcome does not count: the task is queued again, or KILLED if a person
asked for that.

Asking for the end of a task that only waits makes it KILLED when the task was named; when its run is killed it stays QUEUED
and the run takes nothing new. Asking for a task again makes it BLOCKED, and READY in the same step if it waits for nobody. What
was READY or DELAYED behind it is BLOCKED again; an attempt in flight there goes on, and its task is BLOCKED if it has to be
repeated. A structural task is COMPLETED exactly while all its parents are.

A run is RUNNING from its first started attempt until nothing is left that could go on: tasks that wait for a task which ended
otherwise stay QUEUED for good. Then it is KILLED if a person killed anything, else ERRORED if any task is, else COMPLETED. A
retry, a mark or an edit puts a run that has ended back to QUEUED. With a retry or a mark, all that did not complete gets fresh
budgets of retries and losses.

A kill of a run leaves tasks behind that wait for nobody. Where a person then asks for some of the run's tasks only, the others
are stopped: they wait until a person asks for them, and as long as there are any, the run ends as KILLED.
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
        """Whether the run or task goes on only if a person asks for it."""
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

IN_VAIN = frozenset({Outcome.LOST, Outcome.RETURNED})  # says nothing good of the host, unless it was asked back
RAN = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OOM_KILLED})  # and the host told how it went

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

# Which phase may follow which, in the life of a task. Anything else is a fault of ours.
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.BLOCKED: frozenset({Phase.READY, Phase.COMPLETED, Phase.KILLED}),
    Phase.READY: frozenset({Phase.ASSIGNED, Phase.BLOCKED, Phase.KILLED, Phase.COMPLETED}),
    Phase.DELAYED: frozenset({Phase.READY, Phase.BLOCKED, Phase.KILLED, Phase.COMPLETED}),
    Phase.ASSIGNED: frozenset(Phase) - {Phase.ASSIGNED},
    Phase.RUNNING: frozenset(Phase) - {Phase.ASSIGNED, Phase.RUNNING},
    Phase.COMPLETED: frozenset({Phase.BLOCKED}),  # a person asks for it again
    Phase.ERRORED: frozenset({Phase.BLOCKED, Phase.COMPLETED}),  # likewise, or a person says that it is done
    Phase.KILLED: frozenset({Phase.BLOCKED, Phase.COMPLETED}),
}

# A task whose name an edit took from another is held back while an attempt of that other is being ended.
HELD_BACK: dict[Phase, frozenset[Phase]] = {
    Phase.BLOCKED: frozenset({Phase.ASSIGNED, Phase.RUNNING}),
    Phase.READY: frozenset({Phase.ASSIGNED, Phase.RUNNING}),
    Phase.DELAYED: frozenset({Phase.ASSIGNED, Phase.RUNNING}),
}

# A run that is built again, from a tracker or by an edit, begins with fresh tasks, each BLOCKED or READY; this is how they take
# the phases that they had.
REBUILT: dict[Phase, frozenset[Phase]] = {
    Phase.BLOCKED: frozenset({Phase.ASSIGNED, Phase.RUNNING, Phase.COMPLETED, Phase.ERRORED, Phase.KILLED}),
    Phase.READY: frozenset(
        {Phase.DELAYED, Phase.ASSIGNED, Phase.RUNNING, Phase.COMPLETED, Phase.ERRORED, Phase.KILLED},
    ),
}

# Which state of a run may follow which.
RUN_TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.COMPLETED, State.ERRORED, State.KILLED}),
    State.RUNNING: frozenset({State.COMPLETED, State.ERRORED, State.KILLED}),
    State.COMPLETED: frozenset({State.QUEUED}),  # a person asks for tasks again, or edits the run
    State.ERRORED: frozenset({State.QUEUED}),
    State.KILLED: frozenset({State.QUEUED}),
}

ENDED = frozenset({Phase.COMPLETED, Phase.ERRORED, Phase.KILLED})

MAX_LOSSES = 10
