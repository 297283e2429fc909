"""Tells a person of tasks that did not complete: a line when it happens, and a short report in the end.

`follow` calls this. The lines are made of the changes in a watch, while the run goes on. For the report, which has the last lines
of each task's standard error, the server is asked after the run has ended. Both are short even if a million tasks failed. Nothing
here prints.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from daggyr.client import Client
from daggyr.v1.run_pb2 import RunSummary, State, Task
from daggyr.v1.runs_pb2 import TaskChange
from daggyr.v1.task_pb2 import STDERR
from daggyr_server.cli import names, words
from daggyr_server.cli.outputs import last_lines

STATES = (State.STATE_ERRORED, State.STATE_KILLED)
MAX_REPORTED = 10
_LINES = 10


def of_change(task: TaskChange) -> str:
    """A line on a changed task, such as `task load ERRORED: FAILED, exit code 3`, with the executor's notes."""
    exit_code = task.exit_code if task.HasField("exit_code") else None
    signal = task.signal if task.HasField("signal") else None
    return _line(task.task_id, task.state, names.ending(task.outcome, exit_code, signal), task.notes)


def of_task(task: Task, *, notes: bool = True) -> str:
    """The same line for a task that was read from the server. `notes` is false if the notes were told already."""
    result = task.attempts[-1].result if task.attempts and task.attempts[-1].HasField("result") else None
    if result is None:
        return _line(task.summary.task_id, task.summary.state, "", ())
    exit_code = result.exit_code if result.HasField("exit_code") else None
    signal = result.signal if result.HasField("signal") else None
    ending = names.ending(result.outcome, exit_code, signal)
    return _line(task.summary.task_id, task.summary.state, ending, result.notes if notes else ())


def _line(task_id: str, state: int, ending: str, notes: Iterable[str]) -> str:
    said = words.sentences(notes)
    text = f"task {task_id} {names.state(state)}" + (f": {ending}" if ending else "") + (f" ({said})" if said else "")
    return words.printable(text)


async def report(client: Client, run: RunSummary, *, told: Container[int] = ()) -> list[str]:
    """Lines on the first ten tasks of `run` that are ERRORED or KILLED. There are no lines if there are no such tasks.

    `told` has the numbers of tasks on which there was a line already, so that their notes are not told again. Raises ServerError.
    """
    count = sum(words.task_states(run).get(names.state(state), 0) for state in STATES)
    if not count:
        return []
    lines = [f"{words.plural(count, 'task')} did not complete" + (", for instance:" if count > MAX_REPORTED else ":")]
    for summary in await client.first_tasks(run.run_id, MAX_REPORTED, states=STATES):
        task = await client.task(run.run_id, summary.task_id)
        lines.append(f"  {of_task(task, notes=summary.task_number not in told)}")
        if task.attempts:
            last = await last_lines(client, run.run_id, summary.task_id, task.attempts[-1], STDERR, _LINES)
            lines += [f"    | {words.printable(line)}" for line in last]
    return lines
