"""Parameters: the lists of values that multiply tasks, and which of them a task is multiplied by.

`expand` and `generated` make the scopes, and `templates` asks them. A run's parameters are looked at once, however many tasks and
combinations they make. What a template needs to know of a list of values (the longest one, whether two could be confused in
names) is worked out once and kept here.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from daggyr.substitution import Substitution
from daggyr_server.core.graph.segments import MAX_TASK_ID_BYTES
from daggyr_server.spec.document import has_control_characters
from daggyr_server.spec.faults import Faults, at, listed
from daggyr_server.spec.sizes import utf8_size

_MAX_KEPT = 100
_AT_ONCE = 10_000


class Values:
    """The values of one parameter, in the order given. Objects of this class are compared by identity."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self._traits: tuple[int, bool] | None = None
        self._confusable: dict[str, list[tuple[str, str]]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def repeated(self) -> list[str]:
        """The values that occur more than once."""
        if len(set(self.texts)) == len(self.texts):
            return []
        return [text for text, times in Counter(self.texts).items() if times > 1]

    @property
    def longest(self) -> int:
        """The length of the longest value, in bytes of UTF-8."""
        return self._look()[0]

    @property
    def controls(self) -> bool:
        """Whether a value holds control characters."""
        return self._look()[1]

    def _look(self) -> tuple[int, bool]:
        if self._traits is None:
            longest, controls = 0, False
            for start in range(0, len(self.texts), _AT_ONCE):  # in parts, so that other threads run in between
                texts = self.texts[start : start + _AT_ONCE]
                together = " ".join(texts)
                lengths = map(len, texts) if together.isascii() else map(utf8_size, texts)
                longest = max(longest, *lengths)
                controls = controls or has_control_characters(together)
            self._traits = longest, controls
        return self._traits

    def confusable(self, mark: str) -> list[tuple[str, str]]:
        """Pairs of values of which the longer one goes on as if `mark`, which begins with a dot, followed the shorter one."""
        found = self._confusable.get(mark)
        if found is None:
            found = self._confusable[mark] = list(self._confused(mark))
        return found

    def _confused(self, mark: str) -> Iterator[tuple[str, str]]:
        dotted = [text for text in self.texts if "." in text]
        known = set(self.texts) if dotted else set()
        for text in dotted:
            if len(text) > MAX_TASK_ID_BYTES:  # it is refused elsewhere, because no name could hold it
                continue
            dot = text.find(".")
            while dot >= 0:
                if (text.startswith(mark, dot) or mark.startswith(text[dot:])) and text[:dot] in known:
                    yield text[:dot], text
                dot = text.find(".", dot + 1)


@dataclass(frozen=True, slots=True)
class Expansion:
    """The parameters that are replaced in a task, sorted by name, and how many combinations of their values there are.

    `shortest` is the length of the shortest name in characters, and `longest` is the length of the longest value in bytes.
    """

    parameters: tuple[str, ...]
    values: tuple[Values, ...]
    count: int
    shortest: int
    longest: int

    @classmethod
    def of(cls, names: Iterable[str], parameters: Mapping[str, Values]) -> Expansion:
        """Prepare the replacement of `names`, of which there is at least one."""
        ordered = tuple(sorted(names))
        values = tuple(parameters[name] for name in ordered)
        longest = max(choices.longest for choices in values)
        return cls(ordered, values, prod(map(len, values)), min(map(len, ordered)), longest)

    def pairs(self) -> zip[tuple[str, Values]]:
        """Names with their values."""
        return zip(self.parameters, self.values, strict=True)


class Scope:
    """The parameters that hold for a task: the run's and the task's own, which replace those of equal names."""

    def __init__(self, parameters: Mapping[str, Values], substitution: Substitution) -> None:
        """`substitution` replaces the names of `parameters`."""
        self.parameters = parameters
        self._substitution = substitution
        self._expansions: dict[frozenset[str], Expansion | None] = {frozenset(): None}

    def expansion(self, text: str) -> Expansion | None:
        """The parameters that are replaced in `text`, which `joined` has made; None if there are none."""
        names = frozenset(self._substitution.occurring_in(text))
        if names not in self._expansions:
            self._expansions[names] = Expansion.of(names, self.parameters)
        return self._expansions[names]

    def largest(self, text: str, expansion: Expansion) -> int:
        """How many bytes `text` takes at most, once values have replaced the names in it."""
        size, longest = utf8_size(text), {name: choices.longest for name, choices in expansion.pairs()}
        for name, times in self._substitution.count(text).items():
            size += times * (longest[name] - utf8_size(name))
        return size

    def filled(self, texts: Sequence[str], text: str, expansion: Expansion) -> list[str]:
        """`texts` with the names replaced by their values, of which each has one. `text` is what `joined` makes of `texts`."""
        values = {name: choices.texts[0] for name, choices in expansion.pairs()}
        apply = self._substitution.apply
        parts = apply(text, values).split("\0")
        # If the number of parts differs, a text has NUL characters of its own, as standard input may.
        return parts if len(parts) == len(texts) else [apply(text, values) for text in texts]


def joined(texts: Sequence[str]) -> str:
    """One text made of many, with NUL characters between them, which no name holds. To search one text is faster than many."""
    return "\0".join(texts)


class Scopes:
    """Makes scopes: one for all tasks without parameters of their own, and one for each other task.

    What is prepared for the run's parameters is shared by all scopes, so that a scope costs as much as the task's own parameters.
    """

    def __init__(self, parameters: Mapping[str, Sequence[str]]) -> None:
        """`parameters` are the run's."""
        self.run = {name: Values(texts) for name, texts in parameters.items()}
        self._substitution = Substitution(tuple(parameters))
        self._shared = Scope(self.run, self._substitution)
        self._beside: dict[tuple[str, ...], Substitution] = {}

    def scope(self, own: Mapping[str, Sequence[str]] | None) -> Scope:
        """The scope of a task with these parameters of its own."""
        if not own:
            return self._shared
        parameters = ChainMap({name: Values(texts) for name, texts in own.items()}, self.run)
        return Scope(parameters, self._substitution_beside(tuple(sorted(name for name in own if name not in self.run))))

    def _substitution_beside(self, names: tuple[str, ...]) -> Substitution:
        if not names:
            return self._substitution
        found = self._beside.get(names)
        if found is None:
            if len(self._beside) >= _MAX_KEPT:
                self._beside.clear()
            found = self._beside[names] = Substitution(names, self._substitution)
        return found


def check_values(parameters: Mapping[str, Values], place: str, faults: Faults, *, task: str | None = None) -> None:
    """Add a fault for each list that has a value twice, because the tasks of the two could not be told apart."""
    for name, values in parameters.items():
        repeated = values.repeated()
        if repeated:
            message = f"the list has {listed(repeated)} more than once"
            faults.add(at(place, name), message, "each value makes a task of its own", task=task)
