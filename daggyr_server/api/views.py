"""Runs, tasks and attempts of the core as the contract's messages.

The calls use these between steps of the driver. They change nothing, and bound what they show, whatever people chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from google.protobuf.timestamp_pb2 import Timestamp

from daggyr.bounds import MAX_NOTE_BYTES, are_bounded, bounded_notes, cut
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
from daggyr.v1.runs_pb2 import HostPause
from daggyr.v1.task_pb2 import LOST, AttemptResult, Placement, TaskSpec, TaskTemplate
from daggyr_server.api.awaited import awaited
from daggyr_server.core.graph.graph import Graph
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Kind
from daggyr_server.core.moment import Moment
from daggyr_server.core.placing.host import Host, Pause
from daggyr_server.core.placing.pool import Pool
from daggyr_server.core.states import STATE_OF, Phase, State
from daggyr_server.core.stored import RunRow
from daggyr_server.executors.believable import MAX_SECONDS
from daggyr_server.trackers.base import StateChange, StoredAttempt

MAX_NAME_BYTES = 256  # of a task's name in a run's history
MAX_CHANGES = 1_000  # changes of state that are shown of a run or a task
MAX_NEIGHBOURS = 1_000  # parents or children that are listed of one task
MAX_HOST_BYTES, MAX_REASON_BYTES = 1_000, 4_000  # of a host that is paused, and of why
MAX_NEIGHBOURS_BYTES = 128 * 1024  # of their names
MAX_TAGS_BYTES = 64 * 1024  # of a run; earlier versions took more, which is shown cut
MAX_DETAILS_BYTES = 3 * 1024 * 1024 + 64 * 1024  # of a task; earlier versions took more here as well
_MAX_RESOURCES_BYTES = 64 * 1024  # of the names of resources


def timestamp(seconds: float) -> Timestamp:
    """A time, given in seconds since the epoch, as the contract has it."""
    message = Timestamp()
    message.FromNanoseconds(round(min(MAX_SECONDS, max(0.0, seconds)) * 1e9))
    return message


def run_summary(run: Run, pools: Mapping[str, Pool], change_seq: int, now: Moment) -> RunSummary:
    """A run. It takes the same time for a run of any size, because it is made of counters."""
    counts = run.counts
    tags, cut_note = shown_tags(run.tags)
    summary = RunSummary(
        run_id=run.run_id,
        state=int(run.state),  # type: ignore[arg-type]
        tags=tags,
        task_states={state.name: count for state, count in run.task_states().items()},
        command_states={state.name: count for state, count in run.command_states().items()},
        submit_time=timestamp(run.submit_time),
        change_seq=change_seq,
        pool=run.pool,
        revision=run.revision,
        ran_seconds=run.ran_until(now.steady),
    )
    if run.has_ended:
        # Nothing waits for capacity or for a time in a run that has ended; a list of runs tells the same from the tracker's row.
        summary.blocked = counts[Phase.READY] + counts[Phase.DELAYED] + counts[Phase.BLOCKED]
    else:
        summary.ready = counts[Phase.READY] + counts[Phase.ASSIGNED]
        summary.delayed, summary.blocked = counts[Phase.DELAYED], counts[Phase.BLOCKED]
    summary.notes.extend(left_behind(run.run_id, len(run.stopped)))
    if run.start_time is not None:
        summary.start_time.CopyFrom(timestamp(run.start_time))
    if run.stop_time is not None:
        summary.stop_time.CopyFrom(timestamp(run.stop_time))
    elif run.killing:
        summary.notes.append("being killed: waiting for its processes to end")
    else:
        summary.notes.extend(bounded_notes(awaited(run, pools, now)))
    summary.notes.extend(cut_note)
    return summary


def left_behind(run_id: int, count: int) -> Iterator[str]:
    """What a person is told of tasks that a kill of the run stopped and that nobody has asked for since."""
    if count:
        those = "1 task stays" if count == 1 else f"{count:,} tasks stay"
        how = f"`daggyr retry {run_id} --task T` asks for one, and --all for all"
        yield f"{those} QUEUED, because the run was killed and nobody has asked for more since: {how}"


def stored_summary(row: RunRow, change_seq: int, now: Moment) -> RunSummary:
    """A run that is not in memory: it has ended, and this tells what `run_summary` would, or it is being restored."""
    present = 0.0 if row.running_time is None else max(0.0, now.wall - row.running_time)
    tags, cut_note = shown_tags(row.tags)
    summary = RunSummary(
        run_id=row.run_id,
        state=int(row.state),  # type: ignore[arg-type]
        tags=tags,
        notes=[*left_behind(row.run_id, row.stopped), *cut_note],
        task_states={state.name: count for state, count in row.task_states.items()},
        command_states={state.name: count for state, count in row.command_states.items()},
        submit_time=timestamp(row.submit_time),
        pool=row.pool,
        revision=row.revision,
        change_seq=change_seq,
        blocked=row.task_states.get(State.QUEUED, 0),
        ran_seconds=row.ran_seconds + present,
    )
    if row.damage:
        summary.damage = cut(row.damage, MAX_NOTE_BYTES)
    if row.start_time is not None:
        summary.start_time.CopyFrom(timestamp(row.start_time))
    if row.stop_time is not None:
        summary.stop_time.CopyFrom(timestamp(row.stop_time))
    return summary


def shown_tags(tags: Mapping[str, str]) -> tuple[Mapping[str, str], list[str]]:
    """A run's tags for an answer, and a note if they had to be cut. Runs are found by their whole tags all the same."""
    letters = sum(map(len, tags)) + sum(map(len, tags.values()))
    if 4 * letters <= MAX_TAGS_BYTES:
        return tags, []
    size = _bytes_of(tags) + _bytes_of(tags.values())
    if size <= MAX_TAGS_BYTES:
        return tags, []
    shown: dict[str, str] = {}
    room = MAX_TAGS_BYTES
    for name, value in tags.items():
        name, value = cut(name, 1024), cut(value, 1024)
        room -= len(name.encode()) + len(value.encode())
        if room < 0:
            break
        shown[name] = value
    return shown, [f"its tags take {size:,} bytes and are shown cut"]


def _bytes_of(texts: Iterable[str]) -> int:
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def shown_resources(resources: Mapping[str, int]) -> dict[str, int]:
    """Resources for an answer: as many as there is room for. Their names may be long, because people choose them."""
    shown: dict[str, int] = {}
    room = _MAX_RESOURCES_BYTES
    for name, units in resources.items():
        room -= 4 * len(name) + 16
        if room < 0:
            break
        shown[name] = units
    return shown


def host_pause(host: Host, pause: Pause, now: Moment) -> HostPause:
    """A host that is given nothing for now."""
    message = HostPause(host=cut(host.name, MAX_HOST_BYTES), reason=cut(pause.reason, MAX_REASON_BYTES))
    if pause.until is not None:
        message.until.CopyFrom(timestamp(now.wall_at(pause.until)))
    return message


def history(changes: Sequence[StateChange], graph: Graph | None) -> Iterator[StateChangeMessage]:
    """The newest changes, oldest first. Without the run's `graph`, the tasks that a person moved are counted and not named."""
    for change in changes[-MAX_CHANGES:]:
        yield StateChangeMessage(
            time=timestamp(change.time),
            state=int(change.state),  # type: ignore[arg-type]
            reason=change.reason,
            tasks=(cut(graph.task_id(number), MAX_NAME_BYTES) for number in change.tasks if graph is not None),
            task_count=change.count,
        )


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


def tell_sizes(summary: TaskSummary, result: AttemptResult) -> None:
    """Have a task in a list tell how much its last attempt wrote, where `result` is sure of that."""
    # A result without an end of a process is not its host's: nobody counted what it wrote. A host leaves out what is nothing.
    counted = result.outcome != LOST and (result.HasField("exit_code") or result.HasField("signal"))
    if counted and not result.stdout.incomplete:
        summary.stdout_bytes = result.stdout.size_bytes
    if counted and not result.stderr.incomplete:
        summary.stderr_bytes = result.stderr.size_bytes


def whole_state(run: Run, number: int) -> State:
    """A task's state; that of an expanded task's head is the state of its expansions together."""
    counts = expansions(run, number)
    if not counts:
        return state_of(run, number)
    if State.RUNNING in counts or (State.QUEUED in counts and State.COMPLETED in counts and not run.state.has_ended):
        return State.RUNNING
    return next(state for state in (State.KILLED, State.ERRORED, State.QUEUED, State.COMPLETED) if state in counts)


def expansions(run: Run, number: int) -> dict[State, int]:
    """How many expansions of the task with this head are in each state; empty for any other task."""
    if number < run.graph.live or run.graph.kind(number) is not Kind.HEAD:
        return {}
    segment = run.graph.segment_of(number)
    found: dict[State, int] = {}
    for phase in Phase:
        count = run.phases.count(int(phase), number + 1, segment.base + segment.size - 1)
        if count:
            found[STATE_OF[phase]] = found.get(STATE_OF[phase], 0) + count
    return found


def state_of(run: Run, number: int) -> State:
    """A task's state as clients see it."""
    return STATE_OF[Phase(run.phases[number])]


def task(run: Run, number: int) -> Task:
    """A whole task, without the attempts that have ended: see `ended_attempt`."""
    graph, policy = run.graph, run.graph.policy(number)
    message = Task(summary=task_summary(run, number))
    if number < graph.live:
        message.removed = True
    elif graph.kind(number) is Kind.TASK:
        message.details.CopyFrom(shown_details(specification(graph, number)))
        message.max_retries, message.priority = policy.max_retries, policy.priority
        message.retry_delay.FromNanoseconds(round(policy.retry_delay * 1e9))
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
    parents, children = graph.parents(number), graph.children(number)
    if not isinstance(children, range):  # A head has a range, of millions perhaps, which is sorted.
        children = sorted(children)
    message.parents.extend(_names(graph, parents))
    message.children.extend(_names(graph, children))
    message.parent_count, message.child_count = len(parents), len(children)
    return message


def _names(graph: Graph, numbers: Sequence[int]) -> Iterator[str]:
    room = MAX_NEIGHBOURS_BYTES
    for number in numbers[:MAX_NEIGHBOURS]:
        name = graph.task_id(number)
        room -= len(name.encode()) + 4
        if room < 0:
            return
        yield name


def ended_attempt(attempt: StoredAttempt) -> Attempt:
    """An attempt that has ended."""
    result = attempt.result
    if not are_bounded(result.notes):
        result.notes[:] = bounded_notes(result.notes)
    where = Placement(host=attempt.host)
    if result.HasField("placement"):
        where.MergeFrom(result.placement)
        where.host = attempt.host
        result.ClearField("placement")
    return Attempt(
        attempt=attempt.attempt,
        placement=where,
        host=attempt.host_name,
        assign_time=timestamp(attempt.assign_time),
        start_time=result.start_time if result.HasField("start_time") else None,
        result=result,
    )


def shown_details(spec: TaskSpec) -> TaskSpec:
    """What a task executes, for an answer. Where it is too large for one, long texts are cut."""
    if spec.ByteSize() <= MAX_DETAILS_BYTES:
        return spec
    shown = TaskSpec(working_directory=cut(spec.working_directory, 4096), whole_stdout_bytes=spec.whole_stdout_bytes)
    if spec.HasField("timeout"):
        shown.timeout.CopyFrom(spec.timeout)
    if spec.HasField("stdin"):
        shown.stdin = cut(spec.stdin, 64 * 1024)
    shown.command.extend(cut(word, 4096) for word in spec.command[:256])
    if len(spec.command) > 256:
        shown.command.append(f"... ({len(spec.command):,} words in all)")
    for name in islice(spec.environment, 256):
        shown.environment[cut(name, 1024)] = cut(spec.environment[name], 4096)
    shown.resources.update(shown_resources(spec.resources))
    return shown


def specification(graph: Graph, number: int) -> TaskSpec:
    """What an executor is given for a task, with values in their names' places."""
    details = graph.details(number)
    template = TaskTemplate(parameters=details.parameters)
    template.spec.MergeFromString(details.template)
    return Filling(template).spec(details.values)
