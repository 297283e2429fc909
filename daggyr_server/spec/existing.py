"""The run that generated tasks go to: which of its tasks they may name, and the edges between them and it.

Existing tasks are found by `Graph.number_of`, so that single expansions can be named as well. A child must descend from the
generator, because any other task may have started. Only `generated` calls this, and it only reads the graph. A new task is known
by its place in the document here, and an existing one by its number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from daggyr_server.core.graph.graph import Graph
from daggyr_server.core.graph.segments import ExpandedSegment, PlainSegment
from daggyr_server.spec.assembly import Assembly
from daggyr_server.spec.cycles import find_cycle
from daggyr_server.spec.faults import Faults, quoted
from daggyr_server.spec.links import Match
from daggyr_server.spec.matching import Side, relate
from daggyr_server.spec.names import Positions, above, common_name, name_in

MAX_ADDED_EDGES = 10_000_000
MAX_MATCHED_PAIRS = 1_000_000


class Existing:
    """Takes references to existing tasks while an Assembly reads the document. `connect` makes edges of them afterwards."""

    def __init__(self, graph: Graph, generator: int, names: Sequence[str], faults: Faults) -> None:
        """`names` are those of the new tasks."""
        self.children: dict[int, list[int]] = {}  # new task -> existing tasks that wait for it
        self.edges: list[tuple[int, int]] = []  # (existing parent, number of the new task that waits for it)
        self._graph = graph
        self._generator = generator
        self._names = names
        self._faults = faults
        self._parents: list[tuple[int, int]] = []  # (existing parent, new task)
        self._matches: list[tuple[ExpandedSegment, Match]] = []
        self._places: list[tuple[int, int, str]] = []  # (new task, existing child, place in the document that says so)
        self._below: bytearray | None = None
        self._positions = Positions()

    def child(self, task: int, child: str, place: str) -> bool:
        """Take an existing child of a new task. Returns False if the run has no such task."""
        number = self._graph.number_of(child, self._positions)
        if number is None:
            return False
        self._places.append((task, number, place))
        return True

    def parent(self, parent: str, task: int, names: tuple[str, ...], place: str) -> bool:
        """Take an existing parent of a new task; `names` are the parameters to match.

        Returns False if the run has no such task.
        """
        number = self._graph.number_of(parent, self._positions)
        if number is None:
            return False
        segment = self._graph.segment_of(number)
        whole = segment if isinstance(segment, ExpandedSegment) and number == segment.base else None
        if not names:
            self._parents.append((whole.tail if whole else number, task))
        elif whole:
            self._matches.append((whole, Match(number, task, names, place)))
        else:
            message = f"the parent {quoted(parent)} has no expansions that could be matched"
            self._faults.add(place, message, "name it without `match`", task=self._names[task])
        return True

    def check_names(self, assembly: Assembly) -> None:
        """Add a fault for each new task, expansion or tail whose name the run has already."""
        for task, name in sorted(set(self._clashes(assembly))):
            message = f"the run has a task {quoted(name)} already"
            self._faults.add(assembly.place(task), message, "give the generated task another name", task=self._names[task])

    def _clashes(self, assembly: Assembly) -> Iterator[tuple[int, str]]:
        """New tasks, each with a name that it shares with a task of the run."""
        new = {segment.name: segment for segment in assembly.expanded.values()}
        old = {segment.name: segment for segment in self._graph.expanded()}
        tasks = {segment.name: task for task, segment in assembly.expanded.items()}
        for task, name in enumerate(self._names):
            for wanted in (name, f"{name}.tail") if name in new else (name,):
                if self._graph.number_of(wanted, self._positions) is not None:
                    yield task, wanted
        if not new:
            return
        for name in self._dotted():
            yield from ((tasks[segment.name], name) for segment in above(name, new) if name_in(name, segment, self._positions))
        for one, others in [*((segment, old) for segment in new.values()), *((segment, new) for segment in old.values())]:
            for other in above(one.name, others):
                common = common_name(one, other, assembly.steps)
                if common is not None:
                    yield tasks[one.name if others is old else other.name], common

    def _dotted(self) -> Iterator[str]:
        """Names of existing tasks, heads and tails that could be those of a new task's expansions."""
        for segment in self._graph.segments:
            if isinstance(segment, PlainSegment):
                yield from (name for name in segment.names if "." in name)
            else:
                yield from (segment.name, f"{segment.name}.tail")

    def connect(self, assembly: Assembly) -> None:
        """Make the edges between existing and new tasks, the generator's own included."""
        for task, child, place in self._places:
            if self._descends(child):
                self.children.setdefault(task, []).append(child)
                continue
            message = f"the child {quoted(self._graph.task_id(child))} does not depend on the generator"
            hint = "children of generated tasks come with them or descend from their generator"
            self._faults.add(place, message, hint, task=self._names[task])
        self.children = {task: list(dict.fromkeys(children)) for task, children in self.children.items()}
        edges = dict.fromkeys((parent, assembly.numbers[task]) for parent, task in self._parents)
        for segment, match in self._matches if assembly.fits else ():
            edges.update(dict.fromkeys(self._matched(assembly, segment, match)))
            if len(edges) > MAX_ADDED_EDGES:
                break

        parented = bytearray(len(self._names))
        for task in [*(task for _, task in self._parents), *(match.child for _, match in self._matches)]:
            parented[task] = 1
        leaves = []
        for task in range(len(self._names)):
            children = assembly.children(task)
            for child in children:
                parented[child] = 1
            if not children and task not in self.children:
                leaves.append(task)
        after = list(dict.fromkeys(self._graph.children(self._generator)))
        total = len(edges) + len(leaves) * len(after)
        if total > MAX_ADDED_EDGES:
            message = f"the generated tasks would have {total:,} edges to the run's tasks, more than {MAX_ADDED_EDGES:,}"
            self._faults.add("", message, "generate one more task, with all the others as parents")
            return
        if after:
            self.children.update((task, after) for task in leaves)
        edges.update(dict.fromkeys((self._generator, assembly.numbers[task]) for task, has in enumerate(parented) if not has))
        self.edges = list(edges)

    def _matched(self, assembly: Assembly, segment: ExpandedSegment, match: Match) -> Iterator[tuple[int, int]]:
        """The edges of a `match` with an existing parent.

        They are made one by one, because existing segments stay as they are.
        """
        before = self._faults.count
        child = assembly.side(match.child)
        rule = relate(Side.of(segment), child, match.names, self._faults, match.place, assembly.budget)
        if rule is None:
            if self._faults.count == before:
                yield segment.tail, assembly.numbers[match.child]
            return
        pairs = rule.child_count * len(rule.parent_free)
        if pairs > MAX_MATCHED_PAIRS:
            message = f"this `match` stands for {pairs:,} pairs of tasks, more than {MAX_MATCHED_PAIRS:,}"
            self._faults.add(match.place, message, "name the parent without `match`", task=child.name)
            return
        for number in range(rule.child_first, rule.child_first + rule.child_count):
            for parent in rule.parents(number):
                yield parent, number

    def _descends(self, number: int) -> bool:
        """Whether an existing task depends on the generator. All such tasks are found at the first call."""
        if self._below is None:
            self._below = bytearray(self._graph.size)
            stack = [self._generator]
            while stack:
                for child in self._graph.children(stack.pop()):
                    if not self._below[child]:
                        self._below[child] = 1
                        stack.append(child)
        return bool(self._below[number])

    def check_cycles(self, assembly: Assembly) -> None:
        """Add a fault if a new task waits for an existing one which waits for a new one that waits for the first."""
        if not self.children or not any(self._descends(parent) for parent, _ in self.edges if parent != self._generator):
            return
        graph, count = self._graph, len(self._names)
        by_number = sorted(range(count), key=assembly.numbers.__getitem__)
        firsts = [assembly.numbers[task] for task in by_number]
        back: dict[int, list[int]] = {}  # existing task -> new tasks that wait for it
        for parent, number in self.edges:
            back.setdefault(parent, []).append(by_number[bisect_right(firsts, number) - 1])

        def children(vertex: int) -> Sequence[int]:
            """The children of a vertex. New tasks are numbered first, and existing tasks behind them."""
            if vertex < count:
                return [*assembly.children(vertex), *(count + child for child in self.children.get(vertex, ()))]
            number = vertex - count
            if not self._descends(number):
                return ()
            return [*(count + child for child in graph.children(number)), *back.get(number, ())]

        cycle = find_cycle(count + graph.size, children)
        if cycle is not None:
            names = self._names
            assembly.refuse_cycle(cycle, lambda vertex: names[vertex] if vertex < count else graph.task_id(vertex - count))
