"""An attempt as it was assigned to the agent, in plain values, and what attempts of one template share.

`attempts` makes both from the coordinator's messages. They keep no part of a received message except for a copy of the
template, because the memory of the whole message would otherwise stay as long as any of its attempts. Nothing here starts
anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daggyr.attempts.keys import Ident, ident_of
from daggyr.attempts.startable import check
from daggyr.attempts.times import seconds_of
from daggyr.substitution import Filling
from daggyr.v1.task_pb2 import Assignment, AttemptKey, TaskSpec, TaskTemplate


@dataclass(slots=True)
class ProcessSpec:
    """What process to start. The texts are bytes, so that they do not depend on the agent's locale."""

    command: list[bytes]
    environment: Mapping[bytes, bytes]
    working_directory: bytes
    stdin: str | None


class Template:
    """A task template: what no parameter can change, and the process for given values."""

    __slots__ = ("_filling", "_fixed", "_takes_values", "demand", "timeout", "whole_stdout_bytes")

    def __init__(self, template: TaskTemplate) -> None:
        own = TaskTemplate()
        own.CopyFrom(template)
        spec = own.spec
        self.demand: Mapping[str, int] = {name: units for name, units in spec.resources.items() if units > 0}
        self.timeout = seconds_of(spec.timeout)  # 0 means that there is none
        self.whole_stdout_bytes = spec.whole_stdout_bytes
        self._filling = Filling(own)
        self._takes_values = bool(own.parameters)
        self._fixed: ProcessSpec | None = None  # made with the first attempt, if no parameter can change it

    def process_spec(self, values: Sequence[str]) -> ProcessSpec:
        """Raises ValueError if `values` are not as many as the template's parameters, or NotStartable."""
        if self._fixed is not None and not values:
            return self._fixed
        process = _process_spec(self._filling.spec(values))
        if not self._takes_values:
            self._fixed = process
        return process


@dataclass(eq=False, slots=True)
class AssignedAttempt:
    """One execution of one task, assigned to this agent."""

    ident: Ident
    task_id: str
    template: Template
    values: tuple[str, ...]

    @classmethod
    def of(cls, assignment: Assignment, template: Template) -> AssignedAttempt:
        return cls(ident_of(assignment.key), assignment.task_id, template, tuple(assignment.values))

    @property
    def key(self) -> AttemptKey:
        # This is key_of, without the call: the key of every attempt is asked for.
        run_id, task_number, attempt, life = self.ident
        return AttemptKey(run_id=run_id, task_number=task_number, attempt=attempt, life=life)

    def process_spec(self) -> ProcessSpec:
        """The process, with DAGGYR_RUN_ID, DAGGYR_TASK_ID, DAGGYR_ATTEMPT and DAGGYR_LIFE below the task's own environment.

        Raises ValueError if values and parameters do not match, or NotStartable.
        """
        process = self.template.process_spec(self.values)
        run_id, _, attempt, life = self.ident
        environment = {
            b"DAGGYR_RUN_ID": b"%d" % run_id,
            b"DAGGYR_TASK_ID": self.task_id.encode(),
            b"DAGGYR_ATTEMPT": b"%d" % attempt,
            b"DAGGYR_LIFE": b"%x" % life,
        }
        environment.update(process.environment)
        return ProcessSpec(process.command, environment, process.working_directory, process.stdin)


def _process_spec(spec: TaskSpec) -> ProcessSpec:
    check(spec.command, spec.environment, spec.working_directory)
    return ProcessSpec(
        [word.encode() for word in spec.command],
        {name.encode(): value.encode() for name, value in spec.environment.items()},
        spec.working_directory.encode(),
        spec.stdin if spec.HasField("stdin") else None,
    )
