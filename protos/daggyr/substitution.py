"""How parameter values take the place of parameter names: the one rule that both sides of the wire must share.

Literal names, one pass from left to right, at each place the longest name first, and inserted values are not searched
again. The specification's expansion asks which names occur; executors and queries fill templates in. Nothing here knows
where names and values come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from daggyr.v1.task_pb2 import TaskSpec, TaskTemplate


class Substitution:
    """Replaces a fixed set of names; compiled once, then used for any number of texts and values."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names` are non-empty and distinct."""
        longest_first = sorted(names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def occurring(self, texts: Iterable[str]) -> set[str]:
        """The names that would be replaced in any of `texts` (a name inside a longer one that matches does not count)."""
        if self._pattern is None:
            return set()
        return {name for text in texts for name in self._pattern.findall(text)}

    def apply(self, text: str, values: Mapping[str, str]) -> str:
        """`text` with every name replaced by its value. `values` holds all names."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: values[match.group()], text)


class Filling:
    """Fills one TaskTemplate: which places hold a name is found once, so that each assignment costs only those."""

    def __init__(self, template: TaskTemplate) -> None:
        self._spec = template.spec
        self._names = tuple(template.parameters)
        self._substitution = Substitution(self._names)

    def spec(self, values: Sequence[str]) -> TaskSpec:
        """A TaskSpec of its own with `values` (in the order of the template's parameters) in their names' places.

        Without parameters it is the template's own spec, not a copy: callers do not change it.
        Raises ValueError if the number of values is not the number of parameters.
        """
        if len(values) != len(self._names):
            raise ValueError(f"a template of {len(self._names)} parameters was given {len(values)} values")
        if not self._names:
            return self._spec
        by_name = dict(zip(self._names, values, strict=True))
        spec = TaskSpec()
        spec.CopyFrom(self._spec)
        apply = self._substitution.apply
        spec.command[:] = [apply(word, by_name) for word in spec.command]
        for name, value in self._spec.environment.items():
            spec.environment[name] = apply(value, by_name)
        spec.working_directory = apply(spec.working_directory, by_name)
        if spec.HasField("stdin"):
            spec.stdin = apply(spec.stdin, by_name)
        return spec
