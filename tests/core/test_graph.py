"""The symbolic graph says what an explicit one would: every name, edge and count, against a naive expansion.

Hypothesis makes graphs of plain and expanded tasks with plain edges and matches, then additions to them as generators make.
The naive side writes every task and edge down, by name.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daggyr_server.core.graph.graph import Addition, Graph
from daggyr_server.core.graph.segments import (
    MAX_NUMBER,
    Details,
    Digit,
    ExpandedSegment,
    Kind,
    MatchRule,
    PlainSegment,
    Policy,
    Segment,
    free_offsets,
    stems,
)

VALUES = ("1", "2", "3", "1.B:2", "x.tail", "")


@dataclass
class Written:
    """A graph written down: all names in the order of their numbers, and all edges."""

    names: list[str] = field(default_factory=list)
    edges: set[tuple[str, str]] = field(default_factory=set)

    def parents(self, name: str) -> set[str]:
        return {parent for parent, child in self.edges if child == name}

    def children(self, name: str) -> set[str]:
        return {child for parent, child in self.edges if parent == name}


@dataclass
class Task:
    """A task to be: its name, the parameters that multiply it, and the tasks before it that it waits for (with a match)."""

    name: str
    parameters: dict[str, tuple[str, ...]]
    parents: dict[str, tuple[str, ...]]

    def combinations(self) -> list[dict[str, str]]:
        return [dict(zip(self.parameters, values, strict=True)) for values in product(*self.parameters.values())]

    def expansion(self, values: dict[str, str]) -> str:
        return ".".join([self.name, *(f"{key}:{value}" for key, value in values.items())]) if self.parameters else self.name

    @property
    def end(self) -> str:
        return f"{self.name}.tail" if self.parameters else self.name


@st.composite
def batches(draw: st.DrawFn, names: str, before: Sequence[Task] = ()) -> list[Task]:
    """A few tasks, each waiting for some before it. A task of `before` can be a parent, but is not matched."""
    made: list[Task] = []
    for name in names:
        parameters = {
            key: tuple(draw(st.lists(st.sampled_from(VALUES[:3]), min_size=2, max_size=3, unique=True)))
            for key in draw(st.sampled_from([(), (), ("A",), ("B",), ("A", "B")]))
        }
        parents: dict[str, tuple[str, ...]] = {}
        for parent in (
            draw(st.lists(st.sampled_from([*before, *made]), unique_by=lambda task: task.name)) if made or before else []
        ):
            common = [key for key in parameters if set(parameters[key]) <= set(parent.parameters.get(key, ()))]
            chosen = draw(st.lists(st.sampled_from(common), unique=True)) if common and parent in made else []
            parents[parent.name] = tuple(sorted(chosen))
        made.append(Task(name, parameters, parents))
    return made


def written(tasks: Sequence[Task]) -> Written:
    """`tasks` written down; their segments come in this order."""
    found = Written()
    by_name = {task.name: task for task in tasks}
    for task in tasks:
        found.names.append(task.name)
        expansions = [task.expansion(values) for values in task.combinations()]
        if task.parameters:
            found.names += [*expansions, task.end]
            found.edges |= {(task.name, name) for name in expansions} | {(name, task.end) for name in expansions}
        for name, match in task.parents.items():
            parent = by_name[name]
            if not match:
                found.edges.add((parent.end, task.name))
                continue
            found.edges |= {
                (parent.expansion(above), task.expansion(below))
                for above in parent.combinations()
                for below in task.combinations()
                if all(above[key] == below[key] for key in match)
            }
    return found


def segments(tasks: Sequence[Task], base: int) -> dict[str, Segment]:
    """A segment for each of `tasks`, with the edges between them."""
    made: dict[str, Segment] = {}
    for task in tasks:
        if task.parameters:
            segment: Segment = ExpandedSegment(
                base, task.name, tuple(task.parameters), tuple(task.parameters.values()), task.name.encode(), 0
            )
        else:
            segment = PlainSegment(base, [task.name], [task.name.encode()], array("I", [0]), array("I", [0, 0]), array("I"))
        made[task.name] = segment
        base += segment.size
    for task in tasks:
        for name, match in task.parents.items():
            parent = made.get(name)
            if parent is None:
                continue
            child = made[task.name]
            if match:
                assert isinstance(parent, ExpandedSegment)
                assert isinstance(child, ExpandedSegment)
                rule = matched(parent, child, match)
                parent.match_children.append(rule)
                child.match_parents.append(rule)
            else:
                connect(parent, child.base)
    return made


def connect(parent: Segment, child: int) -> None:
    if isinstance(parent, ExpandedSegment):
        parent.tail_children.append(child)
    else:
        parent.child_numbers.append(child)
        parent.child_offsets[1] += 1


def matched(parent: ExpandedSegment, child: ExpandedSegment, names: Sequence[str]) -> MatchRule:
    digits, free = [], []
    for name in names:
        above, below = parent.parameters.index(name), child.parameters.index(name)
        to_parent = [parent.values[above].index(value) for value in child.values[below]]
        to_child = [child.values[below].index(value) if value in child.values[below] else -1 for value in parent.values[above]]
        digits.append(
            Digit(
                parent.strides[above],
                len(parent.values[above]),
                child.strides[below],
                len(child.values[below]),
                to_child,
                to_parent,
            )
        )
    for side in (parent, child):
        others = [index for index, name in enumerate(side.parameters) if name not in names]
        free.append(free_offsets([len(side.values[index]) for index in others], [side.strides[index] for index in others]))
    return MatchRule(parent.first, child.first, child.count, tuple(digits), *free)


def agree(graph: Graph, expected: Written, sizes: Sequence[int]) -> None:
    """Every question about every number has the answer that the written graph gives. `sizes` are those before each extension."""
    assert [graph.task_id(number) for number in range(graph.size)] == expected.names
    assert len(set(expected.names)) == graph.size
    degrees = graph.indegrees()
    for number, name in enumerate(expected.names):
        assert graph.number_of(name) == number
        children, parents = graph.children(number), graph.parents(number)
        assert {graph.task_id(child) for child in children} == expected.children(name)
        assert len(set(children)) == len(children)
        assert {graph.task_id(parent) for parent in parents} == expected.parents(name)
        assert list(parents) == sorted(set(parents))
        assert degrees[number] == len(parents)
    for size in sizes:
        assert graph.indegrees(size) == degrees[size:]


def learn(graph: Graph, frozen: Graph) -> None:
    """Let a frozen copy answer, as a thread does, and the graph then take over what the copy knows."""
    frozen.number_of("")
    frozen.parents(frozen.live)
    graph.learn_names(frozen)
    graph.learn_parents(frozen)


@settings(deadline=None)
@given(st.data())
def test_names_edges_and_counts_are_those_of_the_written_graph(data: st.DataObject) -> None:
    tasks = data.draw(batches("abcde"[: data.draw(st.integers(1, 5))]))
    graph = Graph()
    graph.extend(Addition(segments=list(segments(tasks, 0).values())))
    sizes = [0]
    if data.draw(st.booleans()):
        learn(graph, graph.frozen())
        assert graph.knows_names and graph.knows_parents
    agree(graph, written(tasks), sizes)

    # What a generator prints: new tasks behind existing ones, whose edges to them come with the addition.
    for names in ("fg", "hi"):
        new = data.draw(batches(names, tasks))
        sizes.append(graph.size)
        made = segments(new, graph.size)
        ends = {task.name: graph.number_of(task.end) for task in tasks}
        edges = [(ends[name], made[task.name].base) for task in new for name in task.parents if name in ends]
        frozen = graph.frozen()
        graph.extend(
            Addition(segments=list(made.values()), edges=[(above, below) for above, below in edges if above is not None])
        )
        tasks = [*tasks, *new]
        learn(graph, data.draw(st.sampled_from([frozen, graph.frozen()])))  # the first knows less by now
        agree(graph, written(tasks), sizes)


@settings(deadline=None)
@given(st.data())
def test_an_expansion_is_found_by_its_name_whatever_its_values_hold(data: st.DataObject) -> None:
    values = tuple(
        tuple(data.draw(st.lists(st.sampled_from(VALUES), min_size=2, unique=True))) for _ in range(data.draw(st.integers(1, 3)))
    )
    segment = ExpandedSegment(0, "t", ("A", "B", "C")[: len(values)], values, b"", 0)
    names = [segment.task_id(index) for index in range(segment.count)]
    for index, name in enumerate(names):
        found = segment.index_of(name)
        assert found is not None
        assert names[found] == name
        if names.count(name) == 1:
            assert found == index
    for other in ("", "t", "t.", "t.tail", "t.A:", "t.A:9", "u.A:1", f"{names[0]}.", f"{names[0]}x", names[0][:-1]):
        assert (segment.index_of(other) is not None) == (other in names)


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_free_offsets_are_those_of_all_combinations_ascending(radices: list[int], data: st.DataObject) -> None:
    strides = [1] * len(radices)
    for index in range(len(radices) - 2, -1, -1):
        strides[index] = strides[index + 1] * radices[index + 1]
    free = data.draw(st.lists(st.sampled_from(range(len(radices))), unique=True))
    offsets = free_offsets([radices[index] for index in free], [strides[index] for index in free])
    expected = [
        sum(position * strides[index] for position, index in zip(positions, free, strict=True))
        for positions in product(*(range(radices[index]) for index in free))
    ]
    assert list(offsets) == sorted(expected)


def test_evenly_spaced_offsets_cost_nothing() -> None:
    assert free_offsets([1000, 1000, 1000], [10**6, 1000, 1]) == range(10**9)
    assert free_offsets([], []) == range(1)


def test_a_graph_of_a_segment_answers_about_it() -> None:
    segment = ExpandedSegment(0, "t", ("A", "B"), (("1", "2"), ("x", "y")), b"template", 0)
    graph = Graph()
    graph.extend(Addition(policies=[Policy("p", (("cores", 1),))], segments=[segment]))
    assert [graph.kind(number) for number in range(graph.size)] == [Kind.HEAD, *[Kind.TASK] * 4, Kind.TAIL]
    assert graph.details(2) == Details(b"template", ("A", "B"), ("1", "y"))
    assert graph.named("t") == range(1, 5)
    assert graph.named("t.A:2.B:x") == range(3, 4)
    assert graph.named("t.tail") == range(5, 6)
    assert graph.named("nobody") is None
    assert graph.policy(0) is graph.policy(3) is graph.policies[0]
    for number in (0, 5):
        with pytest.raises(ValueError, match="structural"):
            graph.details(number)
    with pytest.raises(IndexError, match="no task number 6"):
        graph.task_id(6)


def test_a_name_that_no_task_can_have_is_not_looked_for() -> None:
    graph = Graph()
    graph.extend(Addition(segments=[ExpandedSegment(0, "t", ("A",), (("1", "2"),), b"", 0)]))
    assert graph.number_of("t." * 1_000_000) is None


def test_a_segment_that_does_not_follow_is_refused_and_changes_nothing() -> None:
    graph = Graph()
    with pytest.raises(ValueError, match="does not follow"):
        graph.append(ExpandedSegment(1, "t", ("A",), (("1", "2"),), b"", 0))
    values = tuple(map(str, range(2**16)))
    with pytest.raises(ValueError, match=f"at most {MAX_NUMBER:,}"):
        graph.append(ExpandedSegment(0, "t", ("A", "B"), (values, values), b"", 0))
    assert graph.size == 0
    assert graph.segments == []


def test_stems_are_what_stands_before_dots() -> None:
    assert list(stems("a.b..c")) == ["a.b..c", "a", "a.b", "a.b."]
