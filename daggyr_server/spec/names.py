"""Refuses tasks whose names could be confused: every task, expansion, head and tail of a run has a name of its own.

`assembly`, `existing` and `edited` call this. The names of a template's expansions are never made, because there may be a million
of them. Candidates are found by the part of a name before a dot; then the rules for two names are read side by side. A rule is a
sequence of factors, and each factor is a choice of texts (`task`, `.NAME:`, a value and so on).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from daggyr_server.core.graph.segments import ExpandedSegment, stems

# If so many choices are looked at in one comparison, or in all of a document together, the two rules count as too much alike.
_MAX_STEPS = 2_000_000
_MAX_ALL_STEPS = 20_000_000

Factors = list[Sequence[str]]


def factors(segment: ExpandedSegment) -> Factors:
    """The rule for the names of a segment's expansions."""
    parts: Factors = [(segment.name,)]
    for name, choices in zip(segment.parameters, segment.values, strict=True):
        parts += [(f".{name}:",), choices]
    return parts


class Positions:
    """Finds the positions of values in lists. A list is read once, however often it is asked about."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Sequence[str], dict[str, int]]] = {}  # by the list's identity, because tasks share lists

    def __call__(self, choices: Sequence[str], value: str) -> int | None:
        """The position of `value` in `choices`, or None."""
        known = self._known.get(id(choices))
        if known is None:
            known = self._known[id(choices)] = choices, {choice: position for position, choice in enumerate(choices)}
        return known[1].get(value)


class Steps:
    """How many choices the comparisons of one document may still look at."""

    def __init__(self) -> None:
        self.left = _MAX_ALL_STEPS


def name_in(name: str, segment: ExpandedSegment, positions: Positions) -> bool:
    """Whether one of the segment's expansions or its tail is called `name`."""
    return name == f"{segment.name}.tail" or segment.index_of(name, positions) is not None


def above(name: str, expanded: Mapping[str, ExpandedSegment]) -> Iterator[ExpandedSegment]:
    """The segments that may have a task called `name`, because the part of `name` before one of its dots is their own name."""
    for stem in stems(name):
        if stem != name and stem in expanded:
            yield expanded[stem]


def common_name(one: ExpandedSegment, other: ExpandedSegment, left: Steps) -> str | None:
    """A name that both segments give to an expansion, or None.

    If the search takes too long, it is the beginning that they share.
    """
    return common_text(factors(one), factors(other), [(0, 0, "", "")], left)


def ambiguous_name(segment: ExpandedSegment, pairs: Iterable[tuple[int, str, str]], left: Steps) -> str | None:
    """A name that two expansions of one segment have, or None.

    `pairs` has pairs of values as (index of their parameter, shorter value, longer value), where the longer value goes on as if
    the name of the next parameter followed the shorter one.
    """
    rule = factors(segment)
    starts = []
    for index, short, long in pairs:
        after = 2 * index + 3
        before = "".join(choices[0] for choices in rule[: after - 1])  # whatever stands there, both have it
        starts.append((after, after, long[len(short) :], f"{before}{long}"))
    return common_text(rule, rule, starts, left) if starts else None


def readings(name: str, segment: ExpandedSegment) -> list[dict[str, str]]:
    """The values of two of the segment's expansions that are called `name`; of fewer, if there are not two."""
    found: list[dict[str, str]] = []

    def read(start: int, values: dict[str, str]) -> None:
        if len(values) == len(segment.parameters):
            if start == len(name):
                found.append(values)
            return
        parameter, choices = segment.parameters[len(values)], segment.values[len(values)]
        mark = f".{parameter}:"
        if not name.startswith(mark, start):
            return
        for choice in choices:
            if name.startswith(choice, start + len(mark)) and len(found) < 2:
                read(start + len(mark) + len(choice), {**values, parameter: choice})

    read(len(segment.name), {})
    return found[:2]


def common_text(one: Factors, other: Factors, starts: Iterable[tuple[int, int, str, str]], left: Steps) -> str | None:
    """A text that both rules make, from one of `starts` on; None if there is none.

    A start is (next factor of the rule that is ahead, next factor of the other rule, the text by which it is ahead, the text that
    was read so far). If the rules differ, no rule may be ahead in `starts`.
    """
    rules = (one, other)
    # (which rule is ahead, its next factor, the next factor of the other, the text by which it is ahead, all that was read)
    stack = [(0, first, second, ahead, text) for first, second, ahead, text in starts]
    seen: set[tuple[int, int, int, str]] = set()
    steps = 0
    while stack:
        leader, first, second, ahead, text = stack.pop()
        if (leader, first, second, ahead) in seen:
            continue
        seen.add((leader, first, second, ahead))
        if second == len(rules[1 - leader]):
            if ahead:
                continue
            if first == len(rules[leader]):
                return text
            leader, first, second = 1 - leader, second, first
        choices = rules[1 - leader][second]
        steps += len(choices)
        left.left -= len(choices)
        if steps > _MAX_STEPS or left.left < 0:
            return f"{text}..."
        for choice in choices:
            if ahead.startswith(choice):
                stack.append((leader, first, second + 1, ahead[len(choice) :], text))
            elif choice.startswith(ahead):
                stack.append((1 - leader, second + 1, first, choice[len(ahead) :], text + choice[len(ahead) :]))
    return None
