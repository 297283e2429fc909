"""`match`: which expansions of a task wait for which expansions of its parent, as a rule over numbers.

Each expansion of the child waits for the parent's expansions that have equal values of the named parameters. Where that is
all of the parent for all of the child, a plain edge says the same. Edges are never listed here; a rule that stands for too
many of them is refused, because walking it would keep the coordinator from everything else.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from daggyr_server.core.segments import Digit, ExpandedSegment, MatchRule, free_offsets
from daggyr_server.spec.faults import Faults, listed, quoted

MAX_MATCH_EDGES = 100_000_000


@dataclass(frozen=True, slots=True)
class Side:
    """A task as a `match` sees it: its parameters, and the number of the first of its expansions (or its own)."""

    name: str
    first: int
    values: Mapping[str, tuple[str, ...]]  # of the parameters that are replaced in it, sorted by name

    @classmethod
    def of(cls, segment: ExpandedSegment) -> Side:
        """An expanded task."""
        return cls(segment.name, segment.first, dict(zip(segment.parameters, segment.values, strict=True)))

    def stride(self, name: str) -> int:
        """By how much the number changes from one value of a parameter to the next."""
        names = list(self.values)
        return prod(len(self.values[after]) for after in names[names.index(name) + 1 :])

    @property
    def count(self) -> int:
        return prod(map(len, self.values.values()))


def relate(parent: Side, child: Side, names: Sequence[str], faults: Faults, place: str) -> MatchRule | None:
    """The rule by which `child` waits for `parent`; None if a plain edge says the same, or if a fault was added."""
    digits = []
    for name in names:
        missing = [side.name for side in (parent, child) if name not in side.values]
        if missing:
            message = f"the parameter {quoted(name)} of this `match` is not replaced in {listed(missing)}"
            hint = "match parameters that stand in the command, environment, working_directory or stdin of both"
            faults.add(place, message, hint, task=child.name)
            continue
        digit = _digit(parent, child, name)
        if isinstance(digit, Digit):
            digits.append(digit)
            continue
        message = f"the parent {quoted(parent.name)} has no expansion with {quoted(name)} equal to {listed(digit)}"
        faults.add(place, message, "each value of the child must be one of the parent's", task=child.name)
    if len(digits) < len(names) or all(digit.parent_radix == 1 for digit in digits):
        return None
    parent_free, child_free = (
        free_offsets(
            [len(values) for name, values in side.values.items() if name not in names],
            [side.stride(name) for name in side.values if name not in names],
        )
        for side in (parent, child)
    )
    edges = child.count * len(parent_free)
    if edges > MAX_MATCH_EDGES:
        message = f"this `match` stands for {edges:,} pairs of tasks, more than {MAX_MATCH_EDGES:,}"
        faults.add(place, message, "match more parameters, or leave `match` out to wait for all of the parent", task=child.name)
        return None
    return MatchRule(parent.first, child.first, child.count, tuple(digits), parent_free, child_free)


def _digit(parent: Side, child: Side, name: str) -> Digit | list[str]:
    """How positions of one parameter's values correspond, or the child's values that the parent does not have."""
    above, below = parent.values[name], child.values[name]
    to_child: Sequence[int]
    to_parent: Sequence[int]
    if above == below:
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
