"""`match`: which expansions of a task wait for which expansions of its parent, as a rule over numbers.

Each expansion of the child waits for the parent's expansions that have equal values of the named parameters. Where that is
all of the parent for all of the child, a plain edge says the same. Edges are never listed here; a rule that stands for too
many of them is refused, because walking it would keep the coordinator from everything else.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from math import prod

from daggyr_server.core.graph.segments import Digit, ExpandedSegment, MatchRule, free_offsets
from daggyr_server.spec.faults import Faults, listed, quoted

MAX_MATCH_EDGES = 100_000_000
MAX_MATCHED_VALUES = 20_000_000


class Side:
    """A task as a `match` sees it: its parameters, and the number of its first expansion, or its own if it is not multiplied.

    What a match needs of a task is worked out once. Parameters with one value are left out of it, because there may be many.
    """

    def __init__(self, name: str, first: int, values: Mapping[str, tuple[str, ...]]) -> None:
        """`values` has the values of the parameters that are replaced in the task, sorted by the parameters' names."""
        self.name = name
        self.first = first
        self.values = values
        self.strides: dict[str, int] = {}  # by how much the number changes from one value of a parameter to the next
        stride = 1
        for parameter in reversed(list(values)):
            if len(values[parameter]) > 1:
                self.strides[parameter] = stride
                stride *= len(values[parameter])
        self.count = stride

    @classmethod
    def of(cls, segment: ExpandedSegment) -> Side:
        """The side of a task that is multiplied."""
        return cls(segment.name, segment.first, dict(zip(segment.parameters, segment.values, strict=True)))

    def stride(self, name: str) -> int:
        """By how much the number changes from one value of a parameter to the next.

        For a parameter with one value it is of no account.
        """
        return self.strides.get(name, self.count)

    def free(self, names: Collection[str]) -> Sequence[int]:
        """The number offsets of all combinations of the parameters that are not among `names`."""
        free = [name for name in self.strides if name not in names]
        return free_offsets([len(self.values[name]) for name in free], [self.strides[name] for name in free])


class Budget:
    """How many values the matches of one document may still list, all together. The bound holds whatever the document's size."""

    def __init__(self) -> None:
        self.values = MAX_MATCHED_VALUES

    def spend(self, values: int) -> bool:
        """Take `values` from the budget. Returns False if that is more than was left."""
        self.values -= values
        return self.values >= 0


def relate(parent: Side, child: Side, names: Sequence[str], faults: Faults, place: str, budget: Budget) -> MatchRule | None:
    """The rule by which `child` waits for `parent`. It is None if a plain edge says the same, or if a fault was added."""
    digits = []
    before = faults.count
    for name in names:
        missing = [side.name for side in (parent, child) if name not in side.values]
        if missing:
            message = f"the parameter {quoted(name)} of this `match` is not replaced in {listed(missing)}"
            hint = "match parameters that stand in the command, environment, working_directory or stdin of both"
            faults.add(place, message, hint, task=child.name)
            continue
        if parent.values[name] is not child.values[name] and not budget.spend(len(parent.values[name])):
            _refuse_all(faults, place, child.name)
            return None
        digit = _digit(parent, child, name)
        if isinstance(digit, Digit):
            if digit.parent_radix > 1:
                digits.append(digit)
            continue
        message = f"the parent {quoted(parent.name)} has no expansion with {quoted(name)} equal to {listed(digit)}"
        faults.add(place, message, "each value of the child must be one of the parent's", task=child.name)
    if faults.count > before or not digits:
        return None
    matched = frozenset(names)
    edges = child.count * parent.count // prod(len(parent.values[name]) for name in matched)
    if edges > MAX_MATCH_EDGES:
        message = f"this `match` stands for {edges:,} pairs of tasks, more than {MAX_MATCH_EDGES:,}"
        faults.add(place, message, "match more parameters, or leave `match` out to wait for all of the parent", task=child.name)
        return None
    parent_free, child_free = parent.free(matched), child.free(matched)
    if not budget.spend(sum(len(offsets) for offsets in (parent_free, child_free) if not isinstance(offsets, range))):
        _refuse_all(faults, place, child.name)
        return None
    return MatchRule(parent.first, child.first, child.count, tuple(digits), parent_free, child_free)


def _refuse_all(faults: Faults, place: str, task: str) -> None:
    message = f"this `match` and those before it stand for more than {MAX_MATCHED_VALUES:,} values"
    faults.add(place, message, "name parents without `match`, or give both tasks the same values", task=task)


def _digit(parent: Side, child: Side, name: str) -> Digit | list[str]:
    """How the positions of one parameter's values correspond.

    If the parent lacks values of the child, the result is a list of these values.
    """
    above, below = parent.values[name], child.values[name]
    to_child: Sequence[int]
    to_parent: Sequence[int]
    if above is below or above == below:
        to_child = to_parent = range(len(above))
    else:
        positions = {value: position for position, value in enumerate(above)}
        lacking = [value for value in below if value not in positions]
        if lacking:
            return lacking
        to_parent = array("I", [positions[value] for value in below])
        to_child = array("q", [-1]) * len(above)
        for position, above_position in enumerate(to_parent):
            to_child[above_position] = position
    return Digit(parent.stride(name), len(above), child.stride(name), len(below), to_child, to_parent)
