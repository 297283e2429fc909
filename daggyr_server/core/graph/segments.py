"""The stretches of a run's graph, kept symbolic: what a million expansions share is kept once, and the rest is computed.

    PlainSegment     tasks that were not multiplied, side by side: a name, a specification and explicit edges for each,
                     in flat lists and arrays.
    ExpandedSegment  one template and the product of its parameters' values. Numbers: the head at `base`, the expansions
                     behind it, the tail last. Names, values and the edges head -> expansion -> tail are computed.

Edges from and to an expanded task as a whole are edges from its tail and to its head. A `match` is a rule between the
expansions of two tasks (MatchRule). `daggyr_server.spec` makes segments, and `graph.py` strings them together. A segment never
changes once it is part of a graph, knows of no other segment, and has no states. Specifications are opaque bytes (a serialised
daggyr.v1.TaskSpec).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Protocol

MAX_NUMBER = 2**32 - 1
MAX_TASK_ID_BYTES = 1024

PositionOf = Callable[[Sequence[str], str], int | None]  # of a value in a list
Binding = tuple[tuple[str, str], ...]  # (parameter, value), sorted


class Kind(IntEnum):
    """What a number stands for."""

    TASK = 0
    HEAD = 1
    TAIL = 2


@dataclass(frozen=True, slots=True)
class Policy:
    """How a task is scheduled and retried. A run has few distinct policies, and tasks refer to them by index."""

    pool: str
    needs: tuple[tuple[str, int], ...]  # (resource, units), sorted, units > 0
    priority: int = 0
    max_retries: int = 0
    retry_delay: float = 0.0  # seconds before the first retry; doubles
    is_generator: bool = False
    timeout: float = 0.0  # seconds; 0: none


@dataclass(frozen=True, slots=True)
class Details:
    """What an executor is given for one task: a template and the values that take its parameters' places."""

    template: bytes
    parameters: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Digit:
    """One matched parameter: how its value's position among the parent's values gives that among the child's."""

    parent_stride: int
    parent_radix: int
    child_stride: int
    child_radix: int
    to_child: Sequence[int]  # by the parent's position; -1 where no child has the value
    to_parent: Sequence[int]  # by the child's position


@dataclass(frozen=True, slots=True)
class MatchRule:
    """The edges of one `match`: each expansion of the child waits for the parent's expansions with equal values.

    `parent_first` and `child_first` are the numbers of the first expansions; a child that was not multiplied is its own only
    expansion. The free offsets are the offsets of all combinations of the parameters that do not take part.
    """

    parent_first: int
    child_first: int
    child_count: int
    digits: tuple[Digit, ...]
    parent_free: Sequence[int]
    child_free: Sequence[int]

    def children(self, parent: int) -> Sequence[int]:
        """The numbers that wait for `parent`, a number of the parent's expansions."""
        index = parent - self.parent_first
        first = self.child_first
        for digit in self.digits:
            position = digit.to_child[index // digit.parent_stride % digit.parent_radix]
            if position < 0:
                return ()
            first += position * digit.child_stride
        return [first + offset for offset in self.child_free]

    def parents(self, child: int) -> Sequence[int]:
        """The numbers that `child`, a number of the child's expansions, waits for."""
        index = child - self.child_first
        first = self.parent_first
        for digit in self.digits:
            first += digit.to_parent[index // digit.child_stride % digit.child_radix] * digit.parent_stride
        return [first + offset for offset in self.parent_free]


class Keeping(Protocol):
    """A list of specifications, which is appended to while it is made, and only read from then on. It may be on disk."""

    def append(self, details: bytes, /) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> bytes: ...


class PlainSegment:
    """Tasks that were not multiplied. Lists are parallel; edges are in compressed rows: task i's children are
    `child_numbers[child_offsets[i]:child_offsets[i + 1]]`. `bindings` has the parameters that were replaced in a task, with the
    only value of each; it is empty if there are none in any task."""

    __slots__ = ("base", "bindings", "child_numbers", "child_offsets", "details", "names", "policies", "size")

    def __init__(
        self,
        base: int,
        names: list[str],
        details: Keeping,
        policies: array[int],
        child_offsets: array[int],
        child_numbers: array[int],
        bindings: list[Binding] | None = None,
    ) -> None:
        self.base = base
        self.bindings = bindings or []
        self.names = names
        self.details = details
        self.policies = policies
        self.child_offsets = child_offsets
        self.child_numbers = child_numbers
        self.size = len(names)

    def binding(self, number: int) -> Binding:
        """The parameters that were replaced in a task, sorted, with their values."""
        return self.bindings[number - self.base] if self.bindings else ()

    def retired(self) -> PlainSegment:
        """A copy that tells of history only: it has names and policies."""
        return PlainSegment(self.base, self.names, [], self.policies, array("I"), array("I"))

    def children(self, number: int) -> Sequence[int]:
        index = number - self.base
        return self.child_numbers[self.child_offsets[index] : self.child_offsets[index + 1]]


class ExpandedSegment:
    """A template with more than one combination of values. The last parameter's value changes fastest."""

    __slots__ = (
        "base",
        "count",
        "details",
        "first",
        "match_children",
        "match_parents",
        "name",
        "parameters",
        "policy",
        "size",
        "strides",
        "tail",
        "tail_children",
        "values",
    )

    def __init__(
        self,
        base: int,
        name: str,
        parameters: tuple[str, ...],
        values: tuple[tuple[str, ...], ...],
        details: bytes,
        policy: int,
    ) -> None:
        """`parameters` are sorted; `values[i]` are the distinct values of `parameters[i]`; there are two combinations or more."""
        self.base = base
        self.name = name
        self.parameters = parameters
        self.values = values
        self.details = details
        self.policy = policy
        self.count = prod(map(len, values))
        self.size = self.count + 2
        self.first = base + 1
        self.tail = base + self.count + 1
        self.strides = tuple(prod(map(len, values[index + 1 :])) for index in range(len(values)))
        self.tail_children: array[int] = array("I")
        self.match_children: list[MatchRule] = []
        self.match_parents: list[MatchRule] = []

    def retired(self) -> ExpandedSegment:
        """A copy that tells of history only: it has names and the policy."""
        return ExpandedSegment(self.base, self.name, self.parameters, self.values, b"", self.policy)

    def values_at(self, index: int) -> tuple[str, ...]:
        """The values of the expansion with this index (0 for the first), in the order of `parameters`."""
        if len(self.values) == 1:  # the usual case, several times as quick
            return (self.values[0][index],)
        return tuple(choices[index // stride % len(choices)] for choices, stride in zip(self.values, self.strides, strict=True))

    def task_id(self, index: int, values: Sequence[str] | None = None) -> str:
        """The name of the expansion with this index; `values` are its own, if they are known already."""
        if values is None:
            values = self.values_at(index)
        if len(values) == 1:
            return f"{self.name}.{self.parameters[0]}:{values[0]}"
        return ".".join((self.name, *(f"{name}:{value}" for name, value in zip(self.parameters, values, strict=True))))

    def index_of(self, task_id: str, position_of: PositionOf | None = None) -> int | None:
        """The index of the expansion called `task_id`, or None. Values may hold dots, so every reading is tried.

        A caller that asks about many names gives `position_of`, which does not look through all values each time.
        """
        position_of = position_of or _position
        if not task_id.startswith(self.name):
            return None
        marks = [f".{name}:" for name in self.parameters]
        starts = {len(self.name) + len(marks[0]): 0} if task_id.startswith(marks[0], len(self.name)) else {}
        for mark, choices, stride in zip([*marks[1:], None], self.values, self.strides, strict=True):
            following: dict[int, int] = {}  # where a reading of the parameters so far may go on, and its index
            for start, index in starts.items():
                for end in _ends(task_id, start, mark):
                    position = position_of(choices, task_id[start:end])
                    if position is not None:
                        following.setdefault(end + len(mark or ""), index + position * stride)
            starts = following
        return starts.get(len(task_id))

    def children(self, number: int) -> Sequence[int]:
        if number == self.base:
            return range(self.first, self.tail)
        if number == self.tail:
            return self.tail_children
        if not self.match_children:
            return (self.tail,)
        return [self.tail, *(child for rule in self.match_children for child in rule.children(number))]


Segment = PlainSegment | ExpandedSegment


def free_offsets(radices: Sequence[int], strides: Sequence[int]) -> Sequence[int]:
    """The index offsets of all combinations of some of a segment's parameters, ascending; of none, the offset 0.

    A range where the offsets are evenly spaced, so that a template of many combinations costs nothing here.
    """
    offsets: Sequence[int] = range(1)
    for radix, stride in sorted(zip(radices, strides, strict=True), key=lambda pair: pair[1]):
        if len(offsets) == 1:
            offsets = range(0, radix * stride, stride)
        elif isinstance(offsets, range) and len(offsets) * offsets.step == stride:
            offsets = range(0, radix * stride, offsets.step)
        else:
            offsets = array("I", (high + low for high in range(0, radix * stride, stride) for low in offsets))
    return offsets


def stems(task_id: str) -> Iterator[str]:
    """The names of the expanded tasks that `task_id` may belong to: itself, and what stands before each of its dots."""
    yield task_id
    dot = task_id.find(".")
    while dot >= 0:
        yield task_id[:dot]
        dot = task_id.find(".", dot + 1)


def _position(choices: Sequence[str], value: str) -> int | None:
    try:
        return choices.index(value)
    except ValueError:
        return None


def _ends(text: str, start: int, mark: str | None) -> Iterator[int]:
    """Where a value that begins at `start` may end: before each `mark` behind it, or, without one, at the end of `text`."""
    if mark is None:
        yield len(text)
        return
    end = text.find(mark, start)
    while end >= 0:
        yield end
        end = text.find(mark, end + 1)
