"""A task's definition becomes what executors are given: a serialised daggyr.v1.TaskSpec, and the values that multiply it.

One combination of values: they are put in place here, once. More: the parameters' names stay in place, and whoever assigns
an expansion fills in its values (`daggyr.substitution`). Serialisation is deterministic, so that equal tasks have equal
bytes. Nothing here makes an object for a combination.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from daggyr.v1.task_pb2 import TaskSpec
from daggyr_server.core.graph import MAX_NUMBER, MAX_TASK_ID_BYTES
from daggyr_server.spec.document import Details, TaskDefinition, has_control_characters
from daggyr_server.spec.faults import Faults, quoted, shown
from daggyr_server.spec.parameters import Scope, Scopes, Values, check_values
from daggyr_server.spec.policies import Policies

_MAX_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Expansion:
    """The parameters that are replaced in a task, sorted by name, and how many combinations of their values there are."""

    parameters: tuple[str, ...]
    values: tuple[Values, ...]

    @property
    def count(self) -> int:
        return prod(map(len, self.values))


@dataclass(slots=True)
class Templates:
    """Makes templates of definitions, and adds to `faults` what is wrong with them."""

    scopes: Scopes
    policies: Policies
    faults: Faults
    _kept: dict[bytes, bytes] = field(default_factory=dict)  # equal tasks share their bytes

    def template(self, name: str, definition: TaskDefinition, place: str) -> tuple[bytes, int, Expansion | None]:
        """The serialised TaskSpec, the policy's index, and what multiplies the task (None: nothing does).

        `place` is where the definition stands, for faults.
        """
        treatment = self.policies.treatment(definition)
        for inner, message, hint in treatment.faults:
            self.faults.add(f"{place}.{inner}", message, hint, task=name)
        details = definition.details
        scope = self.scopes.scope(definition.parameters or None)
        if definition.parameters:
            own = {key: scope.parameters[key] for key in definition.parameters}
            check_values(own, f"{place}.parameters", self.faults, task=name)
        expansion = None
        names = scope.occurring(details)
        if names:
            expansion = _expansion(scope, names)
            if expansion.count == 1:
                details, expansion = _filled(details, scope, expansion), None
            else:
                self._check_names(name, expansion, place)
        spec = _serialised(details) + treatment.spec
        if len(self._kept) < _MAX_KEPT:
            spec = self._kept.setdefault(spec, spec)
        else:
            spec = self._kept.get(spec, spec)
        return spec, treatment.policy, expansion

    def replaced(self, definition: TaskDefinition) -> Expansion:
        """The parameters that are replaced in a task, whether they multiply it or not."""
        scope = self.scopes.scope(definition.parameters or None)
        return _expansion(scope, scope.occurring(definition.details))

    def _check_names(self, name: str, expansion: Expansion, place: str) -> None:
        """Values become part of the expansions' names, so they must be fit for that."""
        if expansion.count > MAX_NUMBER - 2:
            radices = " x ".join(f"{len(values):,} of {quoted(key)}" for key, values in _pairs(expansion))
            self.faults.add(place, f"the combinations ({radices}) are more than a run can hold", task=name)
        length = len(name.encode())
        for key, values in _pairs(expansion):
            length += len(key.encode()) + 2 + values.longest
            if values.controls or has_control_characters(key):
                message = f"the values of {quoted(key)} become part of task names, and hold control characters"
                self.faults.add(place, message, "give the text to the task in a file, or by way of its environment", task=name)
        if max(length, len(name.encode()) + len(".tail")) > MAX_TASK_ID_BYTES:
            message = f"with the values of {shown(', '.join(expansion.parameters))}, the names of its tasks"
            self.faults.add(place, f"{message} are longer than {MAX_TASK_ID_BYTES:,} bytes", "use shorter values", task=name)


def _pairs(expansion: Expansion) -> zip[tuple[str, Values]]:
    return zip(expansion.parameters, expansion.values, strict=True)


def _expansion(scope: Scope, names: tuple[str, ...]) -> Expansion:
    return Expansion(names, tuple(scope.parameters[name] for name in names))


def _filled(details: Details, scope: Scope, expansion: Expansion) -> Details:
    """`details` with the only combination of values in place."""
    values = {name: choices.texts[0] for name, choices in _pairs(expansion)}
    apply = scope.apply
    return Details(
        command=[apply(word, values) for word in details.command],
        environment={name: apply(text, values) for name, text in (details.environment or {}).items()},
        working_directory=apply(details.working_directory or "", values),
        stdin=apply(details.stdin, values) if isinstance(details.stdin, str) else details.stdin,
    )


def _serialised(details: Details) -> bytes:
    """The first fields of a TaskSpec, in front of those that its treatment has: the halves of a message may be joined
    (protobuf.dev, "Encoding", last one wins and fields concatenate)."""
    return TaskSpec(
        command=details.command,
        environment=details.environment or None,
        working_directory=details.working_directory or "",
        stdin=details.stdin if isinstance(details.stdin, str) else None,
    ).SerializeToString(deterministic=True)
