"""Finds names in a text: from left to right, at each place the longest one, in time linear in the text whatever the names are.

`substitution` alone calls this. Where it is surely cheap, a regular expression finds the names, which for names as people choose
them is ten times faster. Otherwise the text is read once, from its end, by an automaton of the reversed names (Aho and Corasick,
1975), which knows at each place the longest name that begins there. No call into C takes long: other threads have their turn.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence

# A regular expression tries all names, one after the other, wherever one may begin. These are steps a character of the text:
# up to so many, it is not slower than the automaton; in a long text, it would hold other threads too long.
_MOST_STEPS = 32
_MOST_STEPS_IN_LONG = 4
_FEW_STEPS = 100  # a character: not worth counting
_LONG = 100_000
_STEPS_A_NAME = 8  # beside those for its characters
_COMPILED_CHARACTERS = 16_384  # of all names together; beyond, an expression takes too long to compile
_COMPILED_BESIDE = 512
_MOST_BEGINNINGS = 16


class NameSearch:
    """A fixed set of names; prepared once, then used for any number of texts."""

    def __init__(self, names: Sequence[str], beside: NameSearch | None = None) -> None:
        """`names` are non-empty and distinct. Those of `beside`, which are others, are searched as well: what was prepared for
        them is used again."""
        self._names = names
        self._parts: tuple[NameSearch, ...] = (self,) if beside is None else (self, *beside._parts)
        self._characters: int = sum(map(len, names)) + (beside._characters if beside is not None else 0)
        self.any = self._characters > 0
        self._steps: dict[str, int] | None = None  # by the character that names begin with
        every: list[str] = []
        if self._characters <= (_COMPILED_CHARACTERS if beside is None else _COMPILED_BESIDE):
            every = [name for part in self._parts for name in part._names]
            self._steps = {}
            for name in every:
                self._steps[name[0]] = self._steps.get(name[0], len(every)) + len(name) + _STEPS_A_NAME
        self._is_small = self._steps is not None and sum(self._steps.values()) <= _FEW_STEPS
        self._every = every
        self._compiled: re.Pattern[str] | None = None
        self._built: _Automaton | None = None

    def distinct(self, text: str) -> set[str]:
        """The names that occur in `text` (one inside a longer one that is found there does not)."""
        if not self.any:
            return set()
        if (self._is_small and len(text) <= _LONG) or self._is_cheap(text):
            return set(self._pattern.findall(text))
        return {text[start:end] for start, end in self._places(text)}

    def count(self, text: str) -> Counter[str]:
        """How often each name occurs in `text`."""
        return Counter(text[start:end] for start, end in self.places(text))

    def places(self, text: str) -> Iterator[tuple[int, int]]:
        """Where names begin and end in `text`, from left to right."""
        if not self.any:
            return iter(())
        if self._is_cheap(text):
            return (found.span() for found in self._pattern.finditer(text))
        return self._places(text)

    def replaced(self, text: str, values: Mapping[str, str]) -> str:
        """`text` with the value of each name, of which `values` holds all that occur, in the name's place."""
        if not self.any:
            return text
        if (self._is_small and len(text) <= _LONG) or self._is_cheap(text):
            return self._pattern.sub(lambda found: values[found.group()], text)
        pieces: list[str] = []
        done = 0
        for start, end in self._places(text):
            pieces += text[done:start], values[text[start:end]]
            done = end
        return "".join([*pieces, text[done:]])

    @property
    def _pattern(self) -> re.Pattern[str]:
        if self._compiled is None:
            self._compiled = re.compile("|".join(map(re.escape, sorted(self._every, key=len, reverse=True))))
        return self._compiled

    def _is_cheap(self, text: str) -> bool:
        """Whether a regular expression finds the names in few steps."""
        long = len(text) > _LONG
        if self._is_small and not long:
            return True
        if self._steps is None or len(self._steps) > _MOST_BEGINNINGS:
            return False
        left = (_MOST_STEPS_IN_LONG if long else _MOST_STEPS) * len(text)
        for beginning, steps in self._steps.items():
            left -= steps * text.count(beginning)
            if left < 0:
                return False
        return True

    def _places(self, text: str) -> Iterator[tuple[int, int]]:
        begins, longest = bytearray(len(text)), array("I", bytes(4 * len(text)))
        for part in self._parts:
            part._automaton.mark(text, begins, longest)
        start = begins.find(1)
        while start >= 0:
            end = start + longest[start]
            yield start, end
            start = begins.find(1, end)

    @property
    def _automaton(self) -> _Automaton:
        if self._built is None:
            self._built = _Automaton(self._names)
        return self._built


class _Automaton:
    """A tree of the reversed names; each node knows where to go on when the text leaves the tree there."""

    def __init__(self, names: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._longest = [0]  # the length of the longest name that was just read
        for name in names:
            node = 0
            for letter in reversed(name):
                following = self._next[node].get(letter)
                if following is None:
                    following = self._next[node][letter] = len(self._next)
                    self._next.append({})
                    self._longest.append(0)
                node = following
            self._longest[node] = len(name)
        self._shorter = [0] * len(self._next)  # the node of the longest other ending of what was read
        waiting = deque(self._next[0].values())
        while waiting:
            node = waiting.popleft()
            for letter, following in self._next[node].items():
                shorter = self._shorter[node]
                while shorter and letter not in self._next[shorter]:
                    shorter = self._shorter[shorter]
                self._shorter[following] = self._next[shorter].get(letter, 0)
                waiting.append(following)
            self._longest[node] = self._longest[node] or self._longest[self._shorter[node]]

    def mark(self, text: str, begins: bytearray, longest: array[int]) -> None:
        """Note in `begins` where a name begins, and in `longest` how long the longest one is that does (one that is noted there
        already may be longer)."""
        edges, shorter, lengths = self._next, self._shorter, self._longest
        node = 0
        for place in range(len(text) - 1, -1, -1):
            letter = text[place]
            following = edges[node].get(letter)
            while following is None and node:
                node = shorter[node]
                following = edges[node].get(letter)
            node = following or 0
            length = lengths[node]
            if length and length > longest[place]:
                begins[place] = 1
                longest[place] = length
