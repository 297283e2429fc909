"""Parameters: the lists of values that multiply tasks, and which of them a task is multiplied by.

A run's parameters are looked at once, however many tasks and combinations they make. Whatever a template needs to know of
a list of values (its longest, whether two could be confused in names) is found once and kept here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from daggyr.substitution import Substitution
from daggyr_server.spec.document import Details, has_control_characters
from daggyr_server.spec.faults import Faults, listed, shown


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


class Scope:
    """The parameters that are in force for a task: the run's, with the task's own over them."""

    def __init__(self, parameters: Mapping[str, Values]) -> None:
        self.parameters = parameters
        self._substitution = Substitution(tuple(parameters))

    def occurring(self, details: Details) -> tuple[str, ...]:
        """The names that are replaced somewhere in `details`, sorted."""
        if not self.parameters:
            return ()
        texts = [*details.command, *(details.environment or {}).values()]
        texts += [text for text in (details.working_directory, details.stdin) if text]
        return tuple(sorted(self._substitution.occurring(texts)))

    def apply(self, text: str, values: Mapping[str, str]) -> str:
        """`text` with the names in `values` replaced; no other name of this scope occurs in it."""
        return self._substitution.apply(text, values)


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
            faults.add(f"{place}.{shown(name)}", message, "each value makes a task of its own", task=task)
