"""Finds for tasks that come to a run the last task of the same name, so that the numbers of attempts of a name only rise.

An edit may take a task away, and a later edit or a generator may bring one of that name again. The new task goes on with the
numbers of the old one, and the old one's attempts are among its own. `expand_edit` and `expand_generated` call `last_of_names`.
It never changes a segment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import product

from daggyr_server.core.graph.carry import Carry
from daggyr_server.core.graph.segments import ExpandedSegment, PlainSegment, Segment, stems
from daggyr_server.spec.names import Positions

Stretch = tuple[int, int, int]  # number, number of the last task of that name, how many


def last_of_names(earlier: Sequence[Segment], segments: Sequence[Segment], carry: Carry | None = None) -> list[Stretch]:
    """The tasks of `segments` whose names tasks of `earlier` segments had, by ascending number, each with the last of these.

    `earlier` ascends by number. A task that goes over by `carry` has the attempts of that one already, so that it is left out
    unless it had another name.
    """
    if not earlier:
        return []
    renamed = _renamed(earlier, segments, carry) if carry is not None else ()
    wanted = _Wanted(segments, carry, renamed)
    for before in reversed(earlier):
        if not wanted.left:
            break
        wanted.look_among(before)
    return wanted.stretches()


class _Wanted:
    """The names that were not found so far."""

    def __init__(self, segments: Iterable[Segment], carry: Carry | None, renamed: Collection[int]) -> None:
        self.left = 0  # how many names
        self._plain: dict[str, int] = {}  # by name: the number
        self._dotted: dict[str, list[str]] = {}  # of these with dots, by what stands before each dot
        self._expanded: dict[str, tuple[ExpandedSegment, bytearray]] = {}  # by template: which expansions are wanted
        self._found: list[Stretch] = []
        self._positions = Positions()
        for segment in segments:
            if isinstance(segment, PlainSegment):
                for first, beyond in _not_carried(segment.base, segment.base + segment.size, carry, renamed):
                    for number, name in enumerate(segment.names[first - segment.base : beyond - segment.base], first):
                        self._plain[name] = number
                        if "." in name:
                            for stem in stems(name):
                                self._dotted.setdefault(stem, []).append(name)
                continue
            marks = bytearray(segment.count)
            for first, beyond in _not_carried(segment.first, segment.tail, carry, renamed):
                marks[first - segment.first : beyond - segment.first] = b"\1" * (beyond - first)
            count = marks.count(1)
            if count:
                self._expanded[segment.name] = segment, marks
                self.left += count
        self.left += len(self._plain)

    def look_among(self, before: Segment) -> None:
        """Take the names that an earlier segment has. Segments are asked from the newest to the oldest."""
        if isinstance(before, ExpandedSegment):
            self._among_expansions(before)
            return
        wanted = self._plain
        if wanted:
            for index in [index for index, name in enumerate(before.names) if name in wanted]:
                self._take_plain(before.names[index], before.base + index)
        if self._expanded:
            for index, name in enumerate(before.names):
                if "." in name:
                    self._take_expansion(name, before.base + index)

    def _among_expansions(self, before: ExpandedSegment) -> None:
        for name in list(self._dotted.get(before.name, ())):
            index = before.index_of(name, self._positions) if name in self._plain else None
            if index is not None:
                self._take_plain(name, before.first + index)
        if before.name not in self._expanded:
            return
        segment, marks = self._expanded[before.name]
        if segment.parameters != before.parameters:
            return
        for index, old_index, count in common(segment, before):
            start = marks.find(1, index, index + count)
            while start >= 0:
                beyond = marks.find(0, start, index + count)
                beyond = index + count if beyond < 0 else beyond
                marks[start:beyond] = bytes(beyond - start)
                self.left -= beyond - start
                self._found.append((segment.first + start, before.first + old_index + start - index, beyond - start))
                start = marks.find(1, beyond, index + count)

    def _take_plain(self, name: str, old: int) -> None:
        self._found.append((self._plain.pop(name), old, 1))
        self.left -= 1

    def _take_expansion(self, name: str, old: int) -> None:
        for stem in stems(name):
            if stem not in self._expanded:
                continue
            segment, marks = self._expanded[stem]
            index = segment.index_of(name, self._positions)
            if index is not None and marks[index]:
                marks[index] = 0
                self.left -= 1
                self._found.append((segment.first + index, old, 1))

    def stretches(self) -> list[Stretch]:
        """What was found, ascending, with stretches put together that follow each other."""
        found: list[Stretch] = []
        for new, old, count in sorted(self._found):
            if found and (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]) == (new, old):
                found[-1] = (found[-1][0], found[-1][1], found[-1][2] + count)
            else:
                found.append((new, old, count))
        return found


def _renamed(earlier: Sequence[Segment], segments: Sequence[Segment], carry: Carry) -> list[int]:
    """The tasks of `segments` that go over from a task of another name: one of both was multiplied, and the other was not."""
    found: list[int] = []
    for new, old, count, _ in carry:
        after, before = _owner(segments, new), _owner(earlier, old)
        if after is not None and before is not None and isinstance(after, PlainSegment) is not isinstance(before, PlainSegment):
            found += range(new, new + count)
    return found


def _owner(segments: Sequence[Segment], number: int) -> Segment | None:
    index = bisect_right(segments, number, key=lambda segment: segment.base) - 1
    return segments[index] if index >= 0 and number < segments[index].base + segments[index].size else None


def _not_carried(start: int, beyond: int, carry: Carry | None, renamed: Collection[int]) -> Iterator[tuple[int, int]]:
    """The stretches (first, beyond the last) of numbers that do not go over from another number, or do under another name."""
    if carry is None:
        yield start, beyond
        return
    yield from carry.gaps(start, beyond)
    yield from ((number, number + 1) for number in renamed if start <= number < beyond)


def common(after: ExpandedSegment, before: ExpandedSegment) -> Iterator[tuple[int, int, int]]:
    """The expansions that both templates have, where their parameters are equal: stretches of (index after, index before, how
    many), ascending."""
    if after.values == before.values:
        yield 0, 0, after.count
        return
    shared = []
    for choices, choices_before in zip(after.values, before.values, strict=True):
        positions = {value: position for position, value in enumerate(choices_before)}
        shared.append([(position, positions[value]) for position, value in enumerate(choices) if value in positions])
    runs: list[list[int]] = []  # stretches of the last parameter's values, because these change fastest
    for position, position_before in shared[-1]:
        if runs and (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]) == (position, position_before):
            runs[-1][2] += 1
        else:
            runs.append([position, position_before, 1])
    for leading in product(*shared[:-1]):
        index = sum(pair[0] * stride for pair, stride in zip(leading, after.strides, strict=False))
        index_before = sum(pair[1] * stride for pair, stride in zip(leading, before.strides, strict=False))
        for position, position_before, count in runs:
            yield index + position, index_before + position_before, count
