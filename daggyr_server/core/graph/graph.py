"""A run's graph: every task has a dense number, and segments (segments.py) each own a stretch of numbers.

Edits and generators append segments and never renumber: an edit appends all of the new specification, and what was there before
it is retired. `daggyr_server.spec` builds graphs, and `tasks.py` walks them; nothing here knows of states.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from daggyr_server.core.graph.carry import Carry
from daggyr_server.core.graph.segments import (
    MAX_NUMBER,
    MAX_TASK_ID_BYTES,
    Details,
    ExpandedSegment,
    Kind,
    PlainSegment,
    Policy,
    PositionOf,
    Segment,
    stems,
)


@dataclass(slots=True)
class Addition:
    """The tasks that come to a graph in one step: all of a run's to an empty graph, or a generator's to the graph of its run.

    Segments follow the graph's numbers. Their policies' indices count from the graph's first policy, with `policies` behind those
    that the graph has. The segments' own edges may lead to new tasks and to existing ones; `edges` are the edges that lead from
    existing tasks to new ones.
    """

    policies: list[Policy] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)  # (existing parent, new child)
    # Stretches (number, earlier number, how many) of tasks whose names earlier tasks had, ascending. Their attempts are numbered
    # from those of the earlier ones on.
    after: Sequence[tuple[int, int, int]] = ()
    # How many parents each new task has, if that is known already, because counting millions of edges takes a moment.
    degrees: array[int] | None = None
    deposit: int = 0  # of a generator's tasks: the deposit that is what it printed (see TasksGenerated)


@dataclass(slots=True)
class Edit:
    """All tasks of another specification, which take the place of a run's whole graph, and how the tasks of before go over.

    The additions follow each other: first the specification's own tasks, then those of each generator that stays as it is. `kept`
    are the revisions in which the generators' tasks came to the run.
    """

    additions: list[Addition]
    carry: Carry
    kept: tuple[int, ...] = ()

    def printed_after(self, printed: Mapping[int, int]) -> dict[int, int]:
        """The generators of the tasks that are kept, by revision, with their numbers from then on."""
        found = {revision: self.carry.forward(printed[revision]) for revision in self.kept}
        return {revision: over[0] for revision, over in found.items() if over is not None}


@dataclass(slots=True)
class Replaced:
    """What is kept of a specification that an edit replaced: its tasks' names and policies, and how they went over.

    `policies` are all those that the graph had then, and `segments` are retired ones.
    """

    policies: list[Policy]
    segments: list[Segment]
    carry: Carry
    after: Sequence[tuple[int, int, int]] = ()  # see Addition.after


@dataclass(slots=True)
class Graph:
    """Segments, the policies that they refer to, and the edges that generators added.

    After an edit, `segments` are those of the newest specification, with numbers from `live` on. Older segments are `retired`.
    Their numbers still have names and policies, and nothing else of them is kept.
    """

    policies: list[Policy] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    size: int = 0
    live: int = 0
    retired: list[Segment] = field(default_factory=list)
    edits: list[tuple[int, Carry]] = field(default_factory=list)  # (the first number behind it, how tasks went over)
    # The last earlier task of the same name, of those tasks that an edit or a generator brought again.
    counted_from: Carry = field(default_factory=Carry)
    added_children: dict[int, list[int]] = field(default_factory=dict)
    _bases: list[int] = field(default_factory=list)
    _added_targets: array[int] = field(default_factory=lambda: array("I"))
    _plain_numbers: dict[str, int] | None = None
    _expanded_names: dict[str, ExpandedSegment] | None = None
    _reverse: tuple[int, array[int], array[int]] | None = None

    def append(self, segment: Segment) -> None:
        """Take `segment`, whose base is this graph's size so far. Raises ValueError otherwise, or beyond MAX_NUMBER tasks."""
        if segment.base != self.size:
            raise ValueError(f"segment at {segment.base} does not follow {self.size}")
        if self.size + segment.size > MAX_NUMBER:
            raise ValueError(f"a run holds at most {MAX_NUMBER:,} tasks")
        self.segments.append(segment)
        self._bases.append(segment.base)
        self.size += segment.size
        if isinstance(segment, ExpandedSegment):
            if self._expanded_names is not None:
                self._expanded_names[segment.name] = segment
        elif self._plain_numbers is not None:
            self._plain_numbers.update(zip(segment.names, range(segment.base, self.size), strict=True))

    def extend(self, addition: Addition) -> None:
        """Take all of `addition`, which was made for this graph as it is now. Raises ValueError as `append` does."""
        self.policies += addition.policies
        for segment in addition.segments:
            self.append(segment)
        for parent, edges in groupby(addition.edges, itemgetter(0)):  # a generator has an edge to each of its tasks
            children = [child for _, child in edges]
            self.added_children.setdefault(parent, []).extend(children)
            self._added_targets.extend(children)
        for new, old, count in addition.after:
            self.counted_from.add(new, old, count, same=False)

    def retire(self, carry: Carry) -> None:
        """Keep only names and policies of all tasks that are there. What comes next takes their place, as `carry` says."""
        self.retired += [segment.retired() for segment in self.segments]
        self.segments, self._bases = [], []
        self.live = self.size
        self.edits.append((self.live, carry))
        self.added_children.clear()
        self._added_targets = array("I")
        self._plain_numbers = self._expanded_names = self._reverse = None

    def replaced(self, carry: Carry) -> Replaced:
        """What is to be kept of this graph as it is, when an edit replaces all of it as `carry` says."""
        after = [(new, old, count) for new, old, count, _ in self.counted_from.since(self.live)]
        return Replaced(self.policies, [segment.retired() for segment in self.segments], carry, after)

    def skip(self, replaced: Replaced) -> None:
        """Take what is left of a specification that was replaced: the same as to `extend` by all of it, then to `retire` it.

        Raises ValueError if its tasks do not follow those that this graph has, or if the graph has a specification.
        """
        if self.segments or replaced.policies[: len(self.policies)] != self.policies:
            raise ValueError("what was replaced does not follow what the graph has")
        for segment in replaced.segments:
            if segment.base != self.size:
                raise ValueError(f"segment at {segment.base} does not follow {self.size}")
            self.size += segment.size
        self.policies += replaced.policies[len(self.policies) :]
        self.retired += replaced.segments
        for new, old, count in replaced.after:
            self.counted_from.add(new, old, count, same=False)
        self.live = self.size
        self.edits.append((self.live, replaced.carry))

    def frozen(self) -> Graph:
        """This graph as it is now, to be read in another thread while this one grows or is replaced. Segments are shared, because
        they never change once they are part of a graph."""
        return Graph(
            policies=list(self.policies),
            segments=list(self.segments),
            size=self.size,
            live=self.live,
            retired=list(self.retired),
            counted_from=self.counted_from.since(self.live),
            added_children={number: list(children) for number, children in self.added_children.items()},
            _bases=list(self._bases),
            _added_targets=self._added_targets[:],
        )

    def copied(self) -> Graph:
        """This graph as it is now, all of it, to be replaced in another thread while this one is read."""
        graph = self.frozen()
        graph.edits, graph.counted_from = list(self.edits), self.counted_from.since(0)
        graph._plain_numbers, graph._expanded_names, graph._reverse = self._plain_numbers, self._expanded_names, self._reverse
        return graph

    def become(self, other: Graph) -> None:
        """Be what a copy of this graph has become."""
        self.policies, self.segments, self.size, self.live = other.policies, other.segments, other.size, other.live
        self.retired, self.edits, self.counted_from = other.retired, other.edits, other.counted_from
        self.added_children, self._bases, self._added_targets = other.added_children, other._bases, other._added_targets
        self._plain_numbers, self._expanded_names, self._reverse = other._plain_numbers, other._expanded_names, other._reverse

    def newest(self, number: int) -> int | None:
        """The number that the task with this one has by now; None if an edit took it away."""
        for start, carry in self.edits:
            if number < start:
                over = carry.forward(number)
                if over is None:
                    return None
                number = over[0]
        return number

    def does_the_same(self, number: int) -> bool:
        """Whether no edit has changed the task that had this number, or taken it away."""
        for start, carry in self.edits:
            if number < start:
                over = carry.forward(number)
                if over is None or not over[1]:
                    return False
                number = over[0]
        return True

    def lineage(self, number: int) -> list[int]:
        """The numbers that a task has had, newest first; `number` is the newest.

        Where an edit took the task away and it came again, those of the last task of its name follow.
        """
        found = [number]
        position = len(self.edits)
        while True:
            while position and self.edits[position - 1][0] > found[-1]:
                position -= 1
            before = self.edits[position - 1][1].back(found[-1]) if position else None
            if before is None:
                before = self.counted_from.back(found[-1])
            if before is None:
                return found
            found.append(before)

    def segment_of(self, number: int) -> Segment:
        """The segment that owns `number`. Raises IndexError for a number that this graph does not have."""
        if not 0 <= number < self.size:
            raise IndexError(f"no task number {number}")
        if number < self.live:
            return self.retired[bisect_right(self.retired, number, key=lambda segment: segment.base) - 1]
        return self.segments[bisect_right(self._bases, number) - 1]

    def kind(self, number: int) -> Kind:
        segment = self.segment_of(number)
        if isinstance(segment, PlainSegment):
            return Kind.TASK
        return Kind.HEAD if number == segment.base else Kind.TAIL if number == segment.tail else Kind.TASK

    def children(self, number: int) -> Sequence[int]:
        """The numbers that wait for `number`."""
        own = self.segment_of(number).children(number)
        added = self.added_children.get(number) if self.added_children else None
        return [*own, *added] if added else own

    def policy_index(self, number: int) -> int:
        """The index of a task's policy. A head or tail has the policy of its expansions."""
        segment = self.segment_of(number)
        return segment.policies[number - segment.base] if isinstance(segment, PlainSegment) else segment.policy

    def policy(self, number: int) -> Policy:
        return self.policies[self.policy_index(number)]

    def task_id(self, number: int) -> str:
        segment = self.segment_of(number)
        if isinstance(segment, PlainSegment):
            return segment.names[number - segment.base]
        if number == segment.base:
            return segment.name
        return f"{segment.name}.tail" if number == segment.tail else segment.task_id(number - segment.first)

    def details(self, number: int) -> Details:
        """What an executor is given. Raises ValueError for a structural task."""
        segment = self.segment_of(number)
        if isinstance(segment, PlainSegment):
            return Details(segment.details[number - segment.base], (), ())
        if not segment.first <= number < segment.tail:
            raise ValueError(f"task number {number} is structural")
        return Details(segment.details, segment.parameters, segment.values_at(number - segment.first))

    def number_of(self, task_id: str, position_of: PositionOf | None = None) -> int | None:
        """The number of the task called exactly `task_id`: a task, an expansion, a head or a tail. None if there is none.

        The first call on a graph costs time linear in its tasks that were not multiplied. For `position_of`, see
        ExpandedSegment.index_of.
        """
        if len(task_id) > MAX_TASK_ID_BYTES:
            return None
        plain_numbers, expanded_names = self._names()
        number = plain_numbers.get(task_id)
        if number is not None:
            return number
        for stem in stems(task_id):
            expanded = expanded_names.get(stem)
            if expanded is None:
                continue
            if task_id == stem:
                return expanded.base
            if task_id == f"{expanded.name}.tail":
                return expanded.tail
            index = expanded.index_of(task_id, position_of)
            if index is not None:
                return expanded.first + index
        return None

    def _names(self) -> tuple[dict[str, int], dict[str, ExpandedSegment]]:
        if self._plain_numbers is None or self._expanded_names is None:
            self._plain_numbers = {
                name: segment.base + index
                for segment in self.segments
                if isinstance(segment, PlainSegment)
                for index, name in enumerate(segment.names)
            }
            self._expanded_names = {segment.name: segment for segment in self.expanded()}
        return self._plain_numbers, self._expanded_names

    @property
    def knows_names(self) -> bool:
        """Whether `number_of` is quick, because it was asked before."""
        return self._plain_numbers is not None

    def learn_names(self, other: Graph) -> None:
        """Take over what makes `number_of` quick from a graph that was frozen from this one and was asked for a number since."""
        if (other.size, other.live) == (self.size, self.live):
            self._plain_numbers, self._expanded_names = other._plain_numbers, other._expanded_names

    def number_before(self, task_id: str) -> int | None:
        """The last number of a task of that name which an edit took away. None if there never was one."""
        for segment in reversed(self.retired):
            if isinstance(segment, PlainSegment):
                if task_id in segment.names:
                    return segment.base + segment.names.index(task_id)
                continue
            index = segment.index_of(task_id)
            if index is not None:
                return segment.first + index
        return None

    def named(self, name: str) -> range | None:
        """The numbers that a plain name means in a command: the task's, or those of all its expansions. None if there is no such
        task."""
        number = self.number_of(name)
        if number is None:
            return None
        segment = self.segment_of(number)
        if isinstance(segment, ExpandedSegment) and number == segment.base:
            return range(segment.first, segment.tail)
        return range(number, number + 1)

    def descendants(self, numbers: Iterable[int]) -> list[int]:
        """`numbers` and all that depends on them, ascending."""
        seen = set(numbers)
        stack = list(seen)
        while stack:
            for child in self.children(stack.pop()):
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
        return sorted(seen)

    def expanded(self) -> Iterator[ExpandedSegment]:
        """The expanded segments, in the order of their numbers."""
        return (segment for segment in self.segments if isinstance(segment, ExpandedSegment))

    def indegrees(self, start: int = 0) -> array[int]:
        """How many parents each task from number `start` on has; `start` is 0 or this graph's size before an `extend`.

        It costs what came since then, because edges from earlier tasks lead there by `added_children` only.
        """
        degrees = array("I", bytes(4 * (self.size - start)))

        def count(numbers: Iterable[int]) -> None:
            for number in numbers:
                if number >= start:
                    degrees[number - start] += 1

        for segment in self.segments[bisect_left(self._bases, start) :]:
            if isinstance(segment, PlainSegment):
                count(segment.child_numbers)
                continue
            count(segment.tail_children)
            each = 1 + sum(len(rule.parent_free) for rule in segment.match_parents)
            low = segment.first - start
            degrees[low : low + segment.count] = array("I", [each]) * segment.count
            degrees[segment.tail - start] += segment.count
            for rule in segment.match_children:  # an expanded child has counted its own
                if isinstance(self.segment_of(rule.child_first), PlainSegment):
                    degrees[rule.child_first - start] += len(rule.parent_free)
        for number in reversed(self._added_targets):  # each addition's lead to its own segments
            if number < start:
                break
            degrees[number - start] += 1
        return degrees

    def parents(self, number: int) -> Sequence[int]:
        """The numbers that `number` waits for, ascending. The first call on a graph costs time linear in its explicit edges."""
        segment = self.segment_of(number)
        offsets, sources = self._reverse_rows()
        found = list(sources[offsets[number] : offsets[number + 1]])
        if isinstance(segment, ExpandedSegment):
            if number == segment.tail:
                found += range(segment.first, segment.tail)
            elif number != segment.base:
                found.append(segment.base)
                found += (parent for rule in segment.match_parents for parent in rule.parents(number))
        else:
            found += (
                parent
                for expanded in self.expanded()
                for rule in expanded.match_children
                if rule.child_first == number
                for parent in rule.parents(number)
            )
        return sorted(found)

    @property
    def knows_parents(self) -> bool:
        """Whether `parents` is quick, because it was asked before."""
        return self._reverse is not None and self._reverse[0] == self._version

    def learn_parents(self, other: Graph) -> None:
        """Take over what makes `parents` quick from a graph that was frozen from this one and was asked for parents since."""
        if other._reverse is not None and other._reverse[0] == self._version and other.live == self.live:
            self._reverse = other._reverse

    @property
    def _version(self) -> int:
        return self.size + sum(len(children) for children in self.added_children.values())

    def _explicit_edges(self) -> Iterator[tuple[int, Sequence[int]]]:
        for segment in self.segments:
            if isinstance(segment, PlainSegment):
                for number in range(segment.base, segment.base + segment.size):
                    yield number, segment.children(number)
            else:
                yield segment.tail, segment.tail_children
        yield from self.added_children.items()

    def _reverse_rows(self) -> tuple[array[int], array[int]]:
        """Compressed rows of the explicit edges' sources by target; made again when the graph has grown."""
        version = self._version
        if self._reverse is None or self._reverse[0] != version:
            offsets = array("I", bytes(4 * (self.size + 2)))
            for _, children in self._explicit_edges():
                for child in children:
                    offsets[child + 2] += 1
            for index in range(2, len(offsets)):
                offsets[index] += offsets[index - 1]
            sources = array("I", bytes(4 * offsets[-1]))
            for parent, children in self._explicit_edges():
                for child in children:
                    sources[offsets[child + 1]] = parent
                    offsets[child + 1] += 1
            self._reverse = (version, offsets, sources)
        return self._reverse[1], self._reverse[2]
