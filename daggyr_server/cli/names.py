"""Turns the contract's enums into words without their prefix, as `--output json`, tables and lines show them.

Other files of this folder call this. Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Callable

from daggyr.v1.run_pb2 import State, TaskType
from daggyr.v1.runs_pb2 import AgentState, TaskEditKind
from daggyr.v1.task_pb2 import AttemptOutcome


def state(number: int) -> str:
    """The state of a run or a task.

    A number that this version does not know is shown as digits, here and in the other functions.
    """
    return _name(State.Name, number, "STATE_")


def task_type(number: int) -> str:
    return _name(TaskType.Name, number, "TASK_TYPE_")


def agent_state(number: int) -> str:
    return _name(AgentState.Name, number, "AGENT_STATE_")


def edit_kind(number: int) -> str:
    return _name(TaskEditKind.Name, number, "TASK_EDIT_KIND_")


def outcome(number: int) -> str:
    return _name(AttemptOutcome.Name, number, "ATTEMPT_OUTCOME_")


def ending(outcome_number: int, exit_code: int | None, signal: int | None) -> str:
    """How an attempt ended, as `FAILED, exit code 3` or `KILLED, signal 15`. It is empty for an attempt that has not ended."""
    if not outcome_number:
        return ""
    words = [outcome(outcome_number)]
    if exit_code is not None:
        words.append(f"exit code {exit_code}")
    if signal is not None:
        words.append(f"signal {signal}")
    return ", ".join(words)


def _name(name: Callable[..., str], number: int, prefix: str) -> str:
    try:
        return name(number).removeprefix(prefix)
    except ValueError:
        return str(number)
