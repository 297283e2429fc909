"""Makes plain values for json.dumps of the contract's messages: the shapes of `--output json`.

Commands call one function for each thing that they print. Keys are in snake_case, integers are numbers, enums have no prefix,
times are RFC 3339 in UTC, durations are seconds, output is text with U+FFFD for what is no UTF-8, and missing values are null.
Scripts rely on these shapes: keys are added, never renamed or taken away. Nothing here prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from daggyr.v1 import runs_pb2 as pb
from daggyr.v1.run_pb2 import Attempt, RunSummary, StateChange, Task, TaskSummary
from daggyr.v1.task_pb2 import OutputSummary, Placement, TaskSpec
from daggyr_server.cli import names, words

Shape = dict[str, Any]


def run(summary: RunSummary) -> Shape:
    return {
        "run_id": summary.run_id,
        "state": names.state(summary.state),
        "tags": dict(summary.tags),
        "task_states": words.task_states(summary),
        "submit_time": _time(summary, "submit_time"),
        "start_time": _time(summary, "start_time"),
        "stop_time": _time(summary, "stop_time"),
        "ran_seconds": _optional(summary, "ran_seconds"),
        "pool": summary.pool,
        "revision": summary.revision,
        "change_seq": summary.change_seq,
        "ready": summary.ready,
        "delayed": summary.delayed,
        "blocked": summary.blocked,
        "notes": list(summary.notes),
        "damage": summary.damage or None,
    }


def change(run_now: RunSummary, tasks: Sequence[pb.TaskChange]) -> Shape:
    """A line of `watch`: the run, and the tasks that have changed since the line before."""
    return {**run(run_now), "tasks": [_task_change(task) for task in tasks]}


def _task_change(task: pb.TaskChange) -> Shape:
    return {
        "task_id": task.task_id,
        "task_number": task.task_number,
        "state": names.state(task.state),
        "attempt": task.attempt,
        "outcome": names.outcome(task.outcome) if task.outcome else None,
        "exit_code": _optional(task, "exit_code"),
        "signal": _optional(task, "signal"),
        "notes": list(task.notes),
    }


def history(changes: Iterable[StateChange]) -> list[Shape]:
    return [
        {
            "time": _time(change, "time"),
            "state": names.state(change.state),
            "reason": change.reason or None,
            **({"tasks": list(change.tasks), "task_count": change.task_count} if change.task_count else {}),
        }
        for change in changes
    ]


def task_edit(edit: pb.TaskEdit) -> Shape:
    """An item of `edit --plan`. `state` is null for a task that is added."""
    return {
        "task_id": edit.task_id,
        "change": names.edit_kind(edit.kind),
        "state": names.state(edit.state) if edit.state else None,
        "fields": list(edit.fields),
    }


def edit_totals(totals: pb.EditTotals) -> Shape:
    """How many tasks an edit changed, added and so on."""
    return {field.name: getattr(totals, field.name) for field in totals.DESCRIPTOR.fields}


def task_summary(summary: TaskSummary) -> Shape:
    return {
        "task_id": summary.task_id,
        "task_number": summary.task_number,
        "state": names.state(summary.state),
        "task_type": names.task_type(summary.task_type),
        "attempt_count": summary.attempt_count,
        "pool": summary.pool,
    }


def listed_task(summary: TaskSummary) -> Shape:
    """An item of `tasks`. The sizes are of what the last attempt wrote, and null where nobody knows them."""
    sizes = {"stdout_bytes": _optional(summary, "stdout_bytes"), "stderr_bytes": _optional(summary, "stderr_bytes")}
    return {**task_summary(summary), **sizes}


def task(whole: Task, outputs: Mapping[int, tuple[bytes, bytes]]) -> Shape:
    """A task with its attempts. `outputs` has the standard output and error of each attempt, by its number."""
    return {
        **task_summary(whole.summary),
        **definition(whole),
        "removed": whole.removed,
        "history": history(whole.history),
        "attempts": [_attempt(each, *outputs.get(each.attempt, (b"", b""))) for each in whole.attempts],
    }


def expanded_task(whole: Task) -> Shape:
    """An item of `expand`: what is known of a task before it is submitted."""
    summary = whole.summary
    return {
        "task_id": summary.task_id,
        "task_number": summary.task_number,
        "task_type": names.task_type(summary.task_type),
        "pool": summary.pool,
        **definition(whole),
    }


def definition(whole: Task) -> Shape:
    """The definition of a task, without its state. `details` is null for a structural task."""
    return {
        "details": _details(whole.details) if whole.HasField("details") else None,
        "max_retries": whole.max_retries,
        "retry_delay": seconds(whole.retry_delay),
        "priority": whole.priority,
        "parents": list(whole.parents),
        "children": list(whole.children),
        "parent_count": whole.parent_count,
        "child_count": whole.child_count,
    }


def _details(spec: TaskSpec) -> Shape:
    return {
        "command": list(spec.command),
        "environment": dict(spec.environment),
        "working_directory": spec.working_directory,
        "stdin": _optional(spec, "stdin"),
        "timeout": seconds(spec.timeout),
        "resources": dict(spec.resources),
    }


def _attempt(attempt: Attempt, stdout: bytes, stderr: bytes) -> Shape:
    result = attempt.result if attempt.HasField("result") else None
    # The start in the result is more exact than the coordinator's.
    start = _time(result, "start_time") if result is not None else None
    return {
        "attempt": attempt.attempt,
        "outcome": names.outcome(result.outcome) if result is not None else None,
        "exit_code": _optional(result, "exit_code"),
        "signal": _optional(result, "signal"),
        "stdout": stdout.decode("utf-8", "replace"),
        "stderr": stderr.decode("utf-8", "replace"),
        "stdout_size": _output_size(result.stdout if result is not None else None),
        "stderr_size": _output_size(result.stderr if result is not None else None),
        "assign_time": _time(attempt, "assign_time"),
        "start_time": start or _time(attempt, "start_time"),
        "stop_time": _time(result, "stop_time"),
        "cpu_seconds": _optional(result, "cpu_seconds"),
        "max_rss_bytes": _optional(result, "max_rss_bytes"),
        "host": attempt.host,
        "placement": _placement(attempt.placement),
        "executor": list(result.notes) if result is not None else [],
    }


def _placement(placement: Placement) -> Shape:
    """The scheduler's name for the job, its node, its state and why it waits or ended; null where there is none."""
    return {
        "host": placement.host,
        "job": placement.job or None,
        "node": placement.node or None,
        "state": placement.state or None,
        "reason": placement.reason or None,
    }


def _output_size(output: OutputSummary | None) -> Shape | None:
    """How many bytes the task wrote, how many of them were not kept, and whether more may be missing."""
    if output is None:
        return None
    return {"size_bytes": output.size_bytes, "cut_bytes": output.cut_bytes, "incomplete": output.incomplete}


def pool(one: pb.Pool) -> Shape:
    return {
        "name": one.name,
        "executor": one.executor,
        "is_default": one.is_default,
        "hosts": one.hosts,
        "resources": dict(one.resources),
        "used": dict(one.used),
        "running": one.running,
        "ready": one.ready,
        "paused": [host_pause(pause) for pause in one.paused],
        "notes": list(one.notes),
        "refused": list(one.refused),
    }


def host_pause(one: pb.HostPause) -> Shape:
    """A host that is given nothing for now."""
    return {"host": one.host, "reason": one.reason, "until": _time(one, "until")}


def agent(one: pb.Agent) -> Shape:
    return {
        "name": one.name,
        "agent_id": one.agent_id,
        "pool": one.pool,
        "state": names.agent_state(one.state),
        "resources": dict(one.resources),
        "used": dict(one.used),
        "running": one.running,
        "waiting": one.waiting,
        "version": one.version,
        "connect_time": _time(one, "connect_time"),
        "last_seen": _time(one, "last_seen"),
        "load_average": _number(one.load_average),
        "cpu_percent": _number(one.cpu_percent),
        "memory_available_bytes": one.memory_available_bytes,
        "address": one.address,
        "pause": host_pause(one.pause) if one.HasField("pause") else None,
        "shortage": one.shortage,
        "expected": one.expected,
        "refused": one.refused or None,
    }


def seconds(duration: Duration) -> float:
    """A duration in seconds, as an integer if it is a whole number."""
    return duration.seconds + duration.nanos / 1e9 if duration.nanos else duration.seconds


def _optional(message: Message | None, field: str) -> Any:
    return _number(getattr(message, field)) if message is not None and message.HasField(field) else None


def _number(value: Any) -> Any:
    """A number, or None for NaN and infinity, which JSON does not have (RFC 8259, section 6).

    A server of an older version may send them.
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _time(message: Message | None, field: str) -> str | None:
    if message is None or not message.HasField(field):
        return None
    try:
        text: str = getattr(message, field).ToJsonString()
    except ValueError:  # a server of an older version may send a time that does not exist
        return None
    return text
