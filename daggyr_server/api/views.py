"""Runs, tasks and attempts of the core as the contract's messages.

The servicers call these between steps of the driver; they read and never change anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from daggyr.substitution import Filling
from daggyr.v1.run_pb2 import (
    TASK_TYPE_COMMAND,
    TASK_TYPE_GENERATOR,
    TASK_TYPE_STRUCTURAL,
    Attempt,
    RunSummary,
    Task,
    TaskSummary,
)
from daggyr.v1.run_pb2 import StateChange as StateChangeMessage
from daggyr.v1.task_pb2 import Placement, TaskSpec, TaskTemplate
from daggyr_server.core.graph import Graph
from daggyr_server.core.machine import Machine
from daggyr_server.core.run import Run
from daggyr_server.core.segments import Kind
from daggyr_server.core.states import STATE_OF, Phase, State
from daggyr_server.executors.believable import MAX_SECONDS
from daggyr_server.trackers.base import RunRow, StateChange, StoredAttempt

MAX_CHANGES = 1_000  # of state, told of a run or a task
MAX_NEIGHBOURS = 1_000  # parents or children listed of one task


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as the contract has them."""
    message = Timestamp()
    message.FromNanoseconds(round(min(MAX_SECONDS, max(0.0, seconds)) * 1e9))
    return message


def run_summary(run: Run, machine: Machine, change_seq: int) -> RunSummary:
    """A run in constant time, from its counters."""
    counts = run.counts
    summary = RunSummary(
        run_id=run.run_id,
        state=int(run.state),  # type: ignore[arg-type]
        tags=run.tags,
        task_states={state.name: count for state, count in run.task_states().items()},
        submit_time=timestamp(run.submit_time),
        change_seq=change_seq,
        pool=run.pool,
        revision=run.revision,
        ready=counts[Phase.READY] + counts[Phase.ASSIGNED],
        delayed=counts[Phase.DELAYED],
        blocked=counts[Phase.BLOCKED],
    )
    if run.start_time is not None:
        summary.start_time.CopyFrom(timestamp(run.start_time))
    if run.stop_time is not None:
        summary.stop_time.CopyFrom(timestamp(run.stop_time))
    elif run.killing:
        summary.notes.append("being killed: waiting for its processes to end")
    else:
        summary.notes.extend(awaited(run, machine))
    return summary


def stored_summary(row: RunRow) -> RunSummary:
    """A run that has ended and is not in memory."""
    summary = RunSummary(
        run_id=row.run_id,
        state=int(row.state),  # type: ignore[arg-type]
        tags=row.tags,
        task_states={state.name: count for state, count in row.task_states.items()},
        submit_time=timestamp(row.submit_time),
        pool=row.pool,
    )
    if row.start_time is not None:
        summary.start_time.CopyFrom(timestamp(row.start_time))
    if row.stop_time is not None:
        summary.stop_time.CopyFrom(timestamp(row.stop_time))
    return summary


def history(changes: Sequence[StateChange]) -> Iterator[StateChangeMessage]:
    """The newest changes, oldest first."""
    for change in changes[-MAX_CHANGES:]:
        yield StateChangeMessage(time=timestamp(change.time), state=int(change.state), reason=change.reason)  # type: ignore[arg-type]


def awaited(run: Run, machine: Machine) -> Iterator[str]:
    """What ready tasks of a run wait for, where it is more than their turn."""
    for queue in run.queues:
        if not len(queue) or queue.head() is None:
            continue
        missing = missing_host(queue.policy.pool, queue.policy.needs, machine)
        if missing:
            yield f"{len(queue):,} {'task waits' if len(queue) == 1 else 'tasks wait'} for {missing}"


def missing_host(pool: str, needs: Iterable[tuple[str, int]], machine: Machine) -> str | None:
    """What has to come before anything with `needs` can run in `pool`; None if a host there could hold it."""
    needs = tuple(needs)
    hosts = [host for host in machine.pools[pool].hosts.values() if host.open]
    if not hosts:
        return f"a host to join the pool {pool!r}"
    if not any(host.could_hold(needs) for host in hosts):
        return f"a host with {', '.join(f'{name}={units}' for name, units in needs)} to join the pool {pool!r}"
    return None


def task_summary(run: Run, number: int) -> TaskSummary:
    """A task in a list."""
    graph = run.graph
    kind, policy = graph.kind(number), graph.policy(number)
    structural = kind is not Kind.TASK
    return TaskSummary(
        task_id=graph.task_id(number),
        task_number=number,
        state=int(state_of(run, number)),  # type: ignore[arg-type]
        task_type=TASK_TYPE_STRUCTURAL if structural else TASK_TYPE_GENERATOR if policy.is_generator else TASK_TYPE_COMMAND,
        attempt_count=run.attempts[number],
        pool="" if structural else policy.pool,
    )


def state_of(run: Run, number: int) -> State:
    """A task's state as clients see it."""
    return STATE_OF[Phase(run.phases[number])]


def task(run: Run, number: int, stored: Iterable[StoredAttempt]) -> Task:
    """A task whole, with the attempts that `stored` has and the one in flight."""
    graph, policy = run.graph, run.graph.policy(number)
    message = Task(summary=task_summary(run, number))
    if number < graph.live:
        message.removed = True
    elif graph.kind(number) is Kind.TASK:
        message.details.CopyFrom(specification(graph, number))
        message.max_retries, message.priority = policy.max_retries, policy.priority
        message.retry_delay.FromNanoseconds(round(policy.retry_delay * 1e9))
    for attempt in stored:
        message.attempts.append(
            Attempt(
                attempt=attempt.attempt,
                placement=Placement(host=attempt.host),
                host=attempt.host_name,
                assign_time=timestamp(attempt.assign_time),
                start_time=attempt.result.start_time if attempt.result.HasField("start_time") else None,
                result=attempt.result,
            )
        )
    flight = run.in_flight.get(number)
    if flight is not None:
        message.attempts.append(
            Attempt(
                attempt=flight.attempt,
                placement=Placement(host=flight.host),
                host=flight.host_name,
                assign_time=timestamp(flight.assign_time),
                start_time=timestamp(flight.start_time) if flight.start_time is not None else None,
            )
        )
    if message.removed:
        return message
    parents, children = graph.parents(number), sorted(graph.children(number))
    message.parents.extend(graph.task_id(parent) for parent in parents[:MAX_NEIGHBOURS])
    message.children.extend(graph.task_id(child) for child in children[:MAX_NEIGHBOURS])
    message.parent_count, message.child_count = len(parents), len(children)
    return message


def specification(graph: Graph, number: int) -> TaskSpec:
    """What an executor is given for a task, with values in their names' places."""
    details = graph.details(number)
    template = TaskTemplate(spec=TaskSpec.FromString(details.template), parameters=details.parameters)
    return Filling(template).spec(details.values)
