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
from daggyr_server.spec.faults import Faults, listed, quoted
from daggyr_server.spec.parameters import Scope, Scopes, Values
from daggyr_server.spec.policies import Policies

_MAX_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Expansion:
    """The parameters that multiply a task, sorted by name, and how many combinations of their values there are."""

    parameters: tuple[str, ...]
    values: tuple[Values, ...]
    count: int


@dataclass(slots=True)
class Templates:
    """Makes details and expansions of definitions, and adds to `faults` what is wrong with them."""

    scopes: Scopes
    policies: Policies
    faults: Faults
    _kept: dict[bytes, bytes] = field(default_factory=dict)

    def template(self, name: str, definition: TaskDefinition, place: str) -> tuple[bytes, int, Expansion | None]:
        """The serialised TaskSpec, the policy's index, and how the task is multiplied (None: it is not)."""
        treatment = self.policies.treatment(definition)
        for inner, message, hint in treatment.faults:
            self.faults.add(f"{place}.{inner}", message, hint, task=name)
        scope = self.scopes.scope(definition.parameters or None, place, name)
        names = scope.occurring(definition.details)
        expansion = None
        if names:
            expansion = expansion_of(scope, names)
            if expansion.count > 1:
                self._check_names(name, expansion, place)
                names, filled = (), definition.details
            else:
                filled = _filled(definition.details, scope, names)
                expansion = None
        else:
            filled = definition.details
        spec = _serialised(filled) + treatment.spec
        if len(self._kept) < _MAX_KEPT:
            spec = self._kept.setdefault(spec, spec)
        else:
            spec = self._kept.get(spec, spec)
        return spec, treatment.policy, expansion

    def occurring(self, name: str, definition: TaskDefinition) -> Expansion:
        """The parameters that are replaced in a definition that was a template before, multiplied or not."""
        unheard = Faults()
        scope = Scopes.scope(self.scopes, definition.parameters or None, "", name) if not unheard.count else None
        assert scope is not None
        return expansion_of(scope, scope.occurring(definition.details))
