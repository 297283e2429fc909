"""What the prefix executor knows of one attempt, and how an assignment becomes the order for its runner.

The executor calls `attempt_of` for what the driver gives it, and `recovered` for what an earlier coordinator left. Nothing here
starts, tells or waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daggyr.attempts.keys import Ident, key_of, name_of
from daggyr.attempts.startable import check, check_sizes, task_environment, words_of
from daggyr.attempts.times import seconds_of
from daggyr.v1.task_pb2 import Assignment, AttemptKey, TaskSpec

from .folder import AttemptFolder


@dataclass(slots=True, eq=False)
class PrefixAttempt:
    """An attempt that has no result yet."""

    ident: Ident
    folder: AttemptFolder
    demand: Mapping[str, int]  # of the pool's resources
    whole_stdout_bytes: int = 0
    order: Mapping[str, Any] = field(default_factory=dict)  # for the runner; empty if an earlier coordinator wrote it
    stdin: str | None = None
    stopping: bool = False  # a person asked for its end
    started: bool = False  # its start was told

    @property
    def key(self) -> AttemptKey:
        return key_of(self.ident)


def attempt_of(
    ident: Ident,
    assignment: Assignment,
    spec: TaskSpec,
    *,
    pool_folder: Path,
    home: Path,
    environment: Mapping[str, str],
    resources: Mapping[str, int],
    runner: Mapping[str, Any],
) -> PrefixAttempt:
    """Return an attempt with its order. Raises ValueError, with a note for its user, if no runner could ever start it.

    `home` is where tasks start, `environment` what all tasks get, `resources` what the pool has; `runner` goes into the order.
    """
    demand = {name: units for name, units in spec.resources.items() if units}
    lacking = [f"{units} of {name}" for name, units in demand.items() if units > resources.get(name, 0)]
    if lacking:
        raise ValueError(f"it needs {', '.join(lacking)}, which is more than the `resources` of its pool")
    check(spec.command, spec.environment, spec.working_directory)
    own = {**environment, **task_environment(ident, assignment.task_id, spec.environment)}
    check_sizes(words_of([*runner["prefix"], *spec.command], own))
    order = {
        **runner,
        "command": list(spec.command),
        "environment": own,
        "home": str(home),
        "working_directory": spec.working_directory,
        "timeout": seconds_of(spec.timeout),
        "resources": demand,
        "whole_stdout_bytes": spec.whole_stdout_bytes,
    }
    stdin = spec.stdin if spec.HasField("stdin") else None
    folder = AttemptFolder(pool_folder / name_of(ident))
    return PrefixAttempt(ident, folder, demand, spec.whole_stdout_bytes, order, stdin)


def recovered(ident: Ident, pool_folder: Path) -> PrefixAttempt:
    """Return an attempt of an earlier coordinator, as far as its folder tells of it."""
    folder = AttemptFolder(pool_folder / name_of(ident))
    order = folder.order()
    return PrefixAttempt(ident, folder, order.get("resources", {}), order.get("whole_stdout_bytes", 0))
