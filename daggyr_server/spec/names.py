"""Refuses tasks whose names could be confused: every task, expansion, head and tail of a run has a name of its own.

The names of a template's expansions are never made, however many there are. What could be called the same is found from
the names before dots, and then by reading two rules for names side by side: a rule is a sequence of factors, each a choice
of texts (`task`, `.NAME:`, a value, ...).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from daggyr_server.core.segments import ExpandedSegment, stems

# Choices that are looked at before two rules count as too much alike.
_MAX_STEPS = 2_000_000

Factors = list[Sequence[str]]


def factors(segment: ExpandedSegment) -> Factors:
    """The rule for the names of a segment's expansions."""
    parts: Factors = [(segment.name,)]
    for name, choices in zip(segment.parameters, segment.values, strict=True):
        parts += [(f".{name}:",), choices]
    return parts


def name_in(name: str, segment: ExpandedSegment) -> bool:
    """Whether one of the segment's expansions or its tail is called `name`."""
    return name == f"{segment.name}.tail" or segment.index_of(name) is not None


def above(name: str, expanded: Mapping[str, ExpandedSegment]) -> Iterator[ExpandedSegment]:
    """The segments, other than that of `name` itself, one of whose tasks could be called `name` or begin with it."""
    for stem in stems(name):
        if stem != name and stem in expanded:
            yield expanded[stem]


def common_name(one: ExpandedSegment, other: ExpandedSegment) -> str | None:
    """A name that an expansion of both has, or None. Where looking takes too long, the beginning that they share."""
    return common_text(factors(one), factors(other), [(0, 0, "", "")])


def ambiguous_name(segment: ExpandedSegment, pairs: Iterable[tuple[int, str, str]]) -> str | None:
    """A name that two expansions of one segment have, or None.

    `pairs` are values of one parameter (its index, the shorter, the longer) where the longer goes on as if the next
    parameter followed the shorter.
    """
    rule = factors(segment)
    starts = []
    for index, short, long in pairs:
        after = 2 * index + 3
        starts.append((after, after, long[len(short) :], f"{segment.name}...{long}"))
    return common_text(rule, rule, starts) if starts else None


def common_text(one: Factors, other: Factors, starts: Iterable[tuple[int, int, str, str]]) -> str | None:
    """A text that both rules make, from one of `starts` on: (next factor of the rule that is ahead, next factor of the
    other, by how much it is ahead, what was read so far).

    With different rules, `starts` must be even (nothing ahead).
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
        if steps > _MAX_STEPS:
            return f"{text}..."
        for choice in choices:
            if ahead.startswith(choice):
                stack.append((leader, first, second + 1, ahead[len(choice) :], text))
            elif choice.startswith(ahead):
                stack.append((1 - leader, second + 1, first, choice[len(ahead) :], text + choice[len(ahead) :]))
    return None
