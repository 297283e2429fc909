"""Parameters: the lists of values that multiply tasks, and which of them a task is multiplied by.

A run's parameters are looked at once, however many tasks and combinations they make. Whatever a template needs to know of
a list of values (its longest, whether two could be confused in names) is found once and kept here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from daggyr.substitution import Substitution
from daggyr_server.spec.document import has_control_characters
from daggyr_server.spec.faults import Faults, at, listed


class Values:
    """The values of one parameter, in the order given. Compared by identity."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self._traits: tuple[int, bool] | None = None
        self._confusable: dict[str, list[tuple[str, str]]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def repeated(self) -> list[str]:
        """The values that come more than once."""
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
            together = " ".join(self.texts)
            lengths = map(len, self.texts if together.isascii() else (text.encode() for text in self.texts))
            self._traits = max(lengths, default=0), has_control_characters(together)
        return self._traits

    def confusable(self, mark: str) -> list[tuple[str, str]]:
        """Pairs of values where the longer one goes on as if `mark` (which begins with a dot) followed the shorter one."""
        found = self._confusable.get(mark)
        if found is None:
            found = self._confusable[mark] = list(self._confused(mark))
        return found

    def _confused(self, mark: str) -> Iterator[tuple[str, str]]:
        dotted = [text for text in self.texts if "." in text]
        known = set(self.texts) if dotted else set()
        for text in dotted:
            dot = text.find(".")
            while dot >= 0:
                rest = text[dot:]
                if text[:dot] in known and (rest.startswith(mark) or mark.startswith(rest)):
                    yield text[:dot], text
                dot = text.find(".", dot + 1)


@dataclass(frozen=True, slots=True)
class Expansion:
    """The parameters that are replaced in a task, sorted by name, and how many combinations of their values there are."""

    parameters: tuple[str, ...]
    values: tuple[Values, ...]
    count: int

    def pairs(self) -> zip[tuple[str, Values]]:
        """Names with their values."""
        return zip(self.parameters, self.values, strict=True)


class Scope:
    """The parameters that are in force for a task: the run's, with the task's own over them."""

    def __init__(self, parameters: Mapping[str, Values]) -> None:
        self.parameters = parameters
        self._substitution = Substitution(tuple(parameters))
        self._expansions: dict[frozenset[str], Expansion | None] = {frozenset(): None}

    def expansion(self, texts: Sequence[str]) -> Expansion | None:
        """The parameters that are replaced in any of `texts`; None if there are none."""
        # One text instead of many, because most tasks have several: no name holds a NUL character.
        names = frozenset(self._substitution.occurring(("\0".join(texts),)))
        if names not in self._expansions:
            ordered = tuple(sorted(names))
            values = tuple(self.parameters[name] for name in ordered)
            self._expansions[names] = Expansion(ordered, values, prod(map(len, values)))
        return self._expansions[names]

    def filled(self, texts: Sequence[str], expansion: Expansion) -> list[str]:
        """`texts` with the only combination of values in place of the names that are replaced in them."""
        values = {name: choices.texts[0] for name, choices in expansion.pairs()}
        apply = self._substitution.apply
        parts = apply("\0".join(texts), values).split("\0")
        # Standard input alone may hold NUL characters of its own.
        return parts if len(parts) == len(texts) else [apply(text, values) for text in texts]


class Scopes:
    """Makes scopes: one for all tasks without parameters of their own, and one for each of the others."""

    def __init__(self, parameters: Mapping[str, Sequence[str]]) -> None:
        """`parameters` are the run's."""
        self.run = {name: Values(texts) for name, texts in parameters.items()}
        self._shared = Scope(self.run)

    def scope(self, own: Mapping[str, Sequence[str]] | None) -> Scope:
        """The scope of a task with these parameters of its own."""
        if not own:
            return self._shared
        return Scope({**self.run, **{name: Values(texts) for name, texts in own.items()}})


def check_values(parameters: Mapping[str, Values], place: str, faults: Faults, *, task: str | None = None) -> None:
    """Add a fault for each list that holds a value twice: its tasks could not be told apart."""
    for name, values in parameters.items():
        repeated = values.repeated()
        if repeated:
            message = f"the list has {listed(repeated)} more than once"
            faults.add(at(place, name), message, "each value makes a task of its own", task=task)
