"""Turns a task's definition into what executors are given: a serialised daggyr.v1.TaskSpec, and the values that multiply it.

`assembly` calls this for each task. If there is one combination of values, they are put in place here. If there are more, the
names of the parameters stay in place, and the executor fills in the values of an expansion (`daggyr.substitution`). Serialisation
is deterministic, so that equal tasks have equal bytes. Nothing here makes an object for each combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from daggyr.v1.task_pb2 import TaskSpec
from daggyr_server.core.graph.segments import MAX_NUMBER, MAX_TASK_ID_BYTES
from daggyr_server.spec.defaults import Filler, as_command
from daggyr_server.spec.document import Details, TaskDefinition, has_control_characters
from daggyr_server.spec.faults import Faults, quoted, shown
from daggyr_server.spec.parameters import Expansion, Scopes, check_values, joined
from daggyr_server.spec.policies import Policies
from daggyr_server.spec.sizes import MAX_DETAILS_BYTES, SURELY_SMALL, check_parameter_names, refuse_details, utf8_size
from daggyr_server.spec.warnings import Warnings

_MAX_KEPT = 1_000
_MAX_KEPT_BYTES = 16 * 1024  # larger templates are not kept for sharing


@dataclass(slots=True)
class Templates:
    """Makes templates of definitions, and adds to `faults` what is wrong with them."""

    scopes: Scopes
    policies: Policies
    faults: Faults
    limited: bool = True  # whether the limits of sizes.py hold
    warnings: Warnings | None = None  # is passed each task
    filler: Filler | None = None  # puts the run's defaults into each task
    _kept: dict[bytes, bytes] = field(default_factory=dict)  # equal tasks share their bytes

    def template(self, name: str, definition: TaskDefinition, place: str) -> tuple[bytes, int, Expansion | None]:
        """The serialised TaskSpec, the policy's index, and the parameters that multiply the task, or None.

        If there is one combination of values, the task is not multiplied, and its TaskSpec has the values in place of the names.
        `place` is the definition's place in the document, for faults.
        """
        details = definition.details
        if self.filler is not None:
            self.filler.fill(definition)
        if not details.command:
            as_command(details)
        treatment = self.policies.treatment(definition)
        for inner, message, hint in treatment.faults:
            if self.filler is None or not self.filler.gave(inner):
                self.faults.add(f"{place}.{inner}", message, hint, task=name)
            elif self.filler.is_new(inner, message):
                self.faults.add(f"defaults.{inner}", message, hint)
        own = definition.parameters or {}
        if own and self.limited and not check_parameter_names(own, f"{place}.parameters", self.faults, task=name):
            return b"", treatment.policy, None
        scope = self.scopes.scope(own)
        if own:
            check_values({key: scope.parameters[key] for key in own}, f"{place}.parameters", self.faults, task=name)
        texts = _texts(details)
        text = joined(texts)
        if len(text) > SURELY_SMALL and self._is_too_large(name, details, utf8_size(text), place):
            return b"", treatment.policy, None
        expansion = scope.expansion(text) if scope.parameters else None
        if self.warnings is not None:
            self._warn(definition, place, text, expansion)
        if expansion is not None:
            # An upper bound, which is quick to find: the longest value in each place where a name could be.
            most = 4 * len(text) + len(text) // expansion.shortest * expansion.longest
            if most > MAX_DETAILS_BYTES and self._is_too_large(name, details, scope.largest(text, expansion), place, filled=True):
                return b"", treatment.policy, expansion
            if expansion.count == 1:
                texts = scope.filled(texts, text, expansion)
            else:
                self._check_names(name, expansion, place)
        spec = _serialised(details, texts) + treatment.spec
        if len(spec) > SURELY_SMALL:
            self._is_too_large(name, details, len(spec) + len(name.encode()), place)
        kept = self._kept.get(spec)
        if kept is None and len(self._kept) < _MAX_KEPT and len(spec) <= _MAX_KEPT_BYTES:
            self._kept[spec] = spec
        return kept or spec, treatment.policy, expansion

    def _warn(self, definition: TaskDefinition, place: str, text: str, expansion: Expansion | None) -> None:
        warnings, own, details = self.warnings, definition.parameters or {}, definition.details
        assert warnings is not None
        if " " in details.command[0] or "~" in text:
            warnings.command(place, details)
        if expansion is None and not own and not definition.is_generator:
            for mark in warnings.marks:
                if mark in text:
                    break
            else:
                return
        used = expansion.parameters if expansion is not None else ()
        if not own and not definition.is_generator and warnings.has_only(used, text):
            return
        warnings.task(place, text, own, used, generates=bool(definition.is_generator))

    def replaced(self, definition: TaskDefinition) -> Expansion | None:
        """The parameters that are replaced in a task, whether they multiply it or have one value only; None if there are none."""
        if self.filler is not None:
            self.filler.fill(definition)
        if not definition.details.command:
            as_command(definition.details)
        return self.scopes.scope(definition.parameters or None).expansion(joined(_texts(definition.details)))

    def _is_too_large(self, name: str, details: Details, size: int, place: str, *, filled: bool = False) -> bool:
        """Whether a task of `size` bytes is too large. If so, this adds a fault."""
        if size <= MAX_DETAILS_BYTES or not self.limited:
            return False
        refuse_details(self.faults, details, size, place, task=name, filled=filled)
        return True

    def _check_names(self, name: str, expansion: Expansion, place: str) -> None:
        """Add a fault for each value that cannot be part of an expansion's name."""
        if expansion.count > MAX_NUMBER - 2:
            radices = " x ".join(f"{len(values):,} of {quoted(key)}" for key, values in expansion.pairs())
            self.faults.add(place, f"the combinations ({radices}) are more than a run can hold", task=name)
        length = len(name.encode())
        for key, values in expansion.pairs():
            length += len(key.encode()) + 2 + values.longest
            if values.controls or has_control_characters(key):
                message = f"the values of {quoted(key)} become part of task names, and hold control characters"
                self.faults.add(place, message, "give the text to the task in a file, or by way of its environment", task=name)
        if max(length, len(name.encode()) + len(".tail")) > MAX_TASK_ID_BYTES:
            message = f"with the values of {shown(', '.join(expansion.parameters))}, the names of its tasks"
            self.faults.add(place, f"{message} are longer than {MAX_TASK_ID_BYTES:,} bytes", "use shorter values", task=name)


def _texts(details: Details) -> list[str]:
    """The texts in which parameters are replaced, in the order of `_serialised`."""
    texts = [*details.command, *details.environment.values()] if details.environment else list(details.command)
    if isinstance(details.working_directory, str):
        texts.append(details.working_directory)
    if isinstance(details.stdin, str):
        texts.append(details.stdin)
    return texts


def _serialised(details: Details, texts: Sequence[str]) -> bytes:
    """The first fields of a TaskSpec, serialised, with `texts` as their values.

    `Treatment.spec` has the other fields. Two serialised parts of a message may be joined (protobuf.dev, Encoding, "Last One
    Wins").
    """
    words = len(details.command)
    if details.environment:
        spec = TaskSpec(command=texts[:words], environment=dict(zip(details.environment, texts[words:], strict=False)))
    else:
        spec = TaskSpec(command=texts[:words])
    if isinstance(details.stdin, str):
        spec.stdin = texts[-1]
    if isinstance(details.working_directory, str):
        spec.working_directory = texts[words + len(details.environment or ())]
    return spec.SerializeToString(deterministic=True)
