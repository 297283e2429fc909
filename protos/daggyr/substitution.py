"""How parameter values take the place of parameter names: the one rule that both sides of the wire must share.

Names are literal text. The text is read once from left to right, at each place the longest name wins, and values that were put in
are not searched again. The expansion of specifications asks which names occur; executors and the API fill templates in. Nothing
here knows where names and values come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from daggyr.name_search import NameSearch
from daggyr.v1.task_pb2 import TaskSpec, TaskTemplate


class Substitution:
    """Replaces a fixed set of names, in any number of texts. Each call takes time linear in the text and in the result, whatever
    the names are."""

    def __init__(self, names: Sequence[str], beside: Substitution | None = None) -> None:
        """`names` are non-empty and distinct. The names of `beside`, which are others, are replaced as well."""
        self._search: NameSearch = NameSearch(names, beside._search if beside is not None else None)

    def occurring(self, texts: Iterable[str]) -> set[str]:
        """The names that would be replaced in any of `texts` (a name inside a longer one that matches does not count)."""
        return {name for text in texts for name in self._search.distinct(text)}

    def occurring_in(self, text: str) -> set[str]:
        """The names that would be replaced in one text."""
        return self._search.distinct(text)

    def count(self, text: str) -> Counter[str]:
        """How often each name would be replaced in `text`."""
        return self._search.count(text)

    def apply(self, text: str, values: Mapping[str, str]) -> str:
        """`text` with every name replaced by its value. `values` holds all names that occur."""
        return self._search.replaced(text, values)


class Filling:
    """Fills in one TaskTemplate, once for each assignment. What the names need is prepared once."""

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
