"""Shows runs, tasks, pools and agents to a person, on standard output.

Commands call one function for each thing that they show. `shapes` has the same things as JSON. Nothing here asks a server.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from daggyr.client import ENDED
from daggyr.v1 import runs_pb2 as pb
from daggyr.v1.run_pb2 import Attempt, RunSummary, StateChange, Task, TaskSummary
from daggyr_server.cli import names, words
from daggyr_server.cli.shapes import seconds
from daggyr_server.cli.stdout import Columns, Row, fields, line, paint

_CHANGES = 20  # changes of state
_NAMES = 10  # names of parents or children
DAMAGED = "DAMAGED"  # in the place of the state of a run that is damaged in the tracker
_TAGS = 500  # characters of a run's tags in a list; `daggyr show` has all of them


def run_columns() -> Columns:
    return Columns("RUN", "STATE", "TASKS", "SUBMITTED", "TOOK", "TAGS", right=("RUN", "TASKS"))


def run_row(run: RunSummary) -> Row:
    return (
        str(run.run_id),
        DAMAGED if run.damage else names.state(run.state),
        f"{words.ended(run):,}/{words.total(run):,}",
        words.time(run.submit_time),
        words.took(run),
        _tags(run),
    )


def _tags(run: RunSummary) -> str:
    """The run's tags, cut to the room in a row of a list."""
    tags = words.pairs(run.tags)
    return tags if len(tags) <= _TAGS else f"{tags[:_TAGS]}... ({len(tags):,} letters; `daggyr show {run.run_id}` has all)"


def show_run(run: RunSummary) -> None:
    state = DAMAGED if run.damage else names.state(run.state)
    waiting = [(run.ready, "for capacity"), (run.delayed, "for a retry"), (_blocked(run), "for other tasks")]
    line(f"Run {run.run_id}  {paint(state, state)}")
    fields(
        [
            ("tags", words.pairs(run.tags)),
            ("pool", run.pool),
            ("revision", str(run.revision) if run.revision > 1 else ""),
            ("submitted", words.time(run.submit_time)),
            ("started", words.time(run.start_time) if run.HasField("start_time") else ""),
            ("ended", words.time(run.stop_time) if run.HasField("stop_time") else ""),
            ("took", words.took(run)),
            ("tasks", f"{words.total(run):,}: {words.counts(run)}"),
            ("waiting", ", ".join(f"{count:,} {what}" for count, what in waiting if count and run.state not in ENDED)),
            ("damage", run.damage),
            *(("note", words.said(note)) for note in run.notes),
        ]
    )


def _blocked(run: RunSummary) -> int:
    """How many tasks that run commands wait for others. The run's own count has structural tasks as well."""
    return max(0, words.command_states(run).get("QUEUED", 0) - run.ready - run.delayed)


def show_history(changes: Sequence[StateChange]) -> None:
    """Show the last changes of state that are not in the table of attempts, if there are any."""
    if changes:
        line()
        columns = Columns("TIME", "STATE", "BECAUSE OF", "TASKS")
        columns.page(
            (words.time(change.time), names.state(change.state), change.reason, words.first_of(change.tasks, change.task_count))
            for change in changes[-_CHANGES:]
        )


def task_columns() -> Columns:
    return Columns("TASK", "STATE", "TYPE", "ATTEMPTS", "POOL", right=("ATTEMPTS",))


def task_row(task: TaskSummary) -> Row:
    return (
        task.task_id,
        names.state(task.state),
        names.task_type(task.task_type).lower(),
        str(task.attempt_count),
        task.pool,
    )


def edit_columns() -> Columns:
    return Columns("TASK", "STATE", "CHANGE", "WHY")


def edit_row(edit: pb.TaskEdit) -> Row:
    fields = " and ".join(field.replace("_", " ") for field in edit.fields)
    why = {
        pb.TASK_EDIT_KIND_CHANGED: f"another {fields}",
        pb.TASK_EDIT_KIND_ADJUSTED: f"other {fields} from its next attempt on",
        pb.TASK_EDIT_KIND_ADDED: "the run does not have it yet",
        pb.TASK_EDIT_KIND_REMOVED: "the specification does not have it any more",
        pb.TASK_EDIT_KIND_QUEUED_AGAIN: "what it depends on is changed",
    }.get(edit.kind, "")
    kind = names.edit_kind(edit.kind).lower().replace("_", " ")
    return edit.task_id, names.state(edit.state) if edit.state else "", kind, why


def show_task(task: Task, tails: Iterable[tuple[str, Sequence[str], bool]]) -> None:
    """Show a task. `tails` has for each stream of the last attempt its name, its last lines, and whether there is more before."""
    summary = task.summary
    state = names.state(summary.state)
    line(f"Task {words.printable(summary.task_id)}  {paint(state, state)}")
    removed = "by an edit; its history is what is left of it" if task.removed else ""
    fields([("type", names.task_type(summary.task_type).lower()), ("removed", removed), *_definition(task)])
    if task.attempts:
        line()
        columns = Columns("ATTEMPT", "OUTCOME", "HOST", "STARTED", "TOOK", "CPU", "MEMORY", "NOTES", right=("ATTEMPT",))
        columns.page(map(_attempt_row, task.attempts))
    show_history(task.history)
    for name, lines, is_cut in tails:
        if lines:
            line()
            line(paint(f"{name} of the last attempt" + (", its end:" if is_cut else ":"), "heading"))
            for text in lines:
                line(f"  {words.printable(text)}")


def _definition(task: Task) -> list[tuple[str, str]]:
    spec = task.details
    delay = f", after {words.span(seconds(task.retry_delay))}, doubling" if seconds(task.retry_delay) else ""
    return [
        ("command", shlex.join(spec.command)),
        ("environment", words.pairs(spec.environment)),
        ("directory", spec.working_directory),
        ("timeout", words.span(seconds(spec.timeout)) if seconds(spec.timeout) else ""),
        ("resources", words.pairs(spec.resources)),
        ("pool", task.summary.pool),
        ("priority", str(task.priority) if task.priority else ""),
        ("retries", f"{task.max_retries}{delay}" if task.max_retries else ""),
        ("parents", _names(task.parents, task.parent_count)),
        ("children", _names(task.children, task.child_count)),
    ]


def _names(names: Sequence[str], count: int, *, shown: int = _NAMES) -> str:
    more = count - min(len(names), shown)
    return ", ".join(names[:shown]) + (f" and {more:,} more" if more > 0 else "")


def _attempt_row(attempt: Attempt) -> Row:
    result = attempt.result
    if not attempt.HasField("result"):
        start = words.time(attempt.start_time) if attempt.HasField("start_time") else ""
        return (str(attempt.attempt), "running" if start else "waiting", _host(attempt), start, "", "", "", "")
    took = ""
    if result.HasField("start_time") and result.HasField("stop_time"):
        took = words.span((words.moment(result.stop_time) - words.moment(result.start_time)).total_seconds())
    exit_code = result.exit_code if result.HasField("exit_code") else None
    signal = result.signal if result.HasField("signal") else None
    return (
        str(attempt.attempt),
        names.ending(result.outcome, exit_code, signal),
        _host(attempt),
        words.time(result.start_time) if result.HasField("start_time") else "",
        took,
        words.span(result.cpu_seconds) if result.HasField("cpu_seconds") else "",
        words.size(result.max_rss_bytes) if result.HasField("max_rss_bytes") else "",
        words.sentences(result.notes),
    )


def _host(attempt: Attempt) -> str:
    """The host's name; of a job of a scheduler, its number, its node, and why it waits."""
    where = attempt.placement
    job = f", job {where.job}" if where.job else ""
    node = f" on {where.node}" if where.node else ""
    waits = "" if attempt.HasField("result") else where.state
    because = f" ({where.reason})" if where.reason and waits else ""
    return f"{attempt.host}{job}{node}{', ' if waits else ''}{waits}{because}"


def expanded_columns() -> Columns:
    return Columns("TASK", "TYPE", "PARENTS", "COMMAND")


def expanded_row(task: Task) -> Row:
    return (
        task.summary.task_id,
        names.task_type(task.summary.task_type).lower(),
        _names(task.parents, task.parent_count, shown=3),
        shlex.join(task.details.command),
    )


def show_pools(pools: Sequence[pb.Pool]) -> None:
    columns = Columns("POOL", "EXECUTOR", "HOSTS", "RUNNING", "READY", "USED", right=("HOSTS", "RUNNING", "READY"))
    columns.page(
        (
            pool.name + (" (default)" if pool.is_default else ""),
            pool.executor,
            str(pool.hosts),
            f"{pool.running:,}",
            f"{pool.ready:,}",
            words.quantities(pool.used, pool.resources),
        )
        for pool in pools
    )
    for pool in pools:
        for pause in pool.paused:
            line(f"{words.printable(pool.name)}: {_paused(pause)}")
        for note in pool.notes:
            line(f"{words.printable(pool.name)}: {words.said(note)}")
        for words_of_one in pool.refused:
            line(f"{words.printable(pool.name)}: {words.said(words_of_one)}")


def show_agents(agents: Sequence[pb.Agent]) -> None:
    columns = Columns(
        "AGENT", "POOL", "STATE", "RUNNING", "USED", "LOAD", "CPU", "FREE MEMORY", "LAST SEEN", "ADDRESS", "VERSION",
        right=("RUNNING", "LOAD", "CPU", "FREE MEMORY"),
    )  # fmt: skip
    agents = list(agents)
    columns.page(
        (
            agent.name,
            agent.pool,
            names.agent_state(agent.state).lower(),
            str(agent.running),
            words.quantities(agent.used, agent.resources),
            f"{agent.load_average:.2f}",
            f"{agent.cpu_percent:.0f}%",
            words.size(agent.memory_available_bytes),
            words.time(agent.last_seen) if agent.HasField("last_seen") else "",
            agent.address,
            agent.version,
        )
        for agent in agents
    )
    for agent in agents:
        if agent.HasField("pause"):
            line(f"{words.printable(agent.name)}: {_paused(agent.pause)}")
        if agent.expected:
            line(f"{words.printable(agent.name)}: {words.said(agent.expected)}")
        if agent.shortage:
            line(f"{words.printable(agent.name)}: it {words.said(agent.shortage)}")
        if agent.refused:
            line(f"{words.printable(agent.name)} is refused: {words.said(agent.refused)}")


def _paused(pause: pb.HostPause) -> str:
    until = f" until {words.time(pause.until)}" if pause.HasField("until") else ""
    return f"host {words.printable(pause.host)} is paused{until}: {words.said(pause.reason)}"
