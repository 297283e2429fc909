"""The tasks of one document on their way into a graph: read once, numbered, their edges resolved, their names checked.

`expand` calls it for a whole run, and `generated` for what a generator printed; the steps differ only in what lies outside of the
document. Tasks that are not multiplied go into one PlainSegment. Behind it, each multiplied task has one ExpandedSegment, however
many combinations it has. All that is wrong is added to `faults`, and `segments` may be used only if nothing was.

A task is known by its place in the document here (0 for the first); `numbers` has its number in the graph.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence

from daggyr_server.core.graph.segments import MAX_NUMBER, Binding, ExpandedSegment, Keeping, MatchRule, PlainSegment, Segment
from daggyr_server.spec.cycles import find_cycle, path
from daggyr_server.spec.document import RunSpec
from daggyr_server.spec.faults import Faults, at, quoted
from daggyr_server.spec.links import Links, Match, Outside, Rows
from daggyr_server.spec.matching import Budget, Side, relate
from daggyr_server.spec.names import Positions, Steps, above, ambiguous_name, common_name, name_in, readings
from daggyr_server.spec.parameters import Expansion
from daggyr_server.spec.templates import Templates

PLACES_AT_ONCE = 50_000


class Assembly:
    """Reads a document in one pass when it is made.

    The caller then calls `resolve` and `check_names`, and `segments` after these.
    """

    def __init__(
        self,
        spec: RunSpec,
        templates: Templates,
        *,
        base: int = 0,
        root: str = "tasks",
        outside: Outside | None = None,
        unsound: Collection[str] = (),
        keep: Callable[[], Keeping] = list,
    ) -> None:
        """Read the tasks of `spec`.

        `base` is the first task's number, and `root` is the place in the document that has the tasks. `unsound` names tasks that
        could not be read completely; faults about how they are matched are left out, because nothing sure is known of them.
        `keep` makes the list in which the tasks' commands are kept.
        """
        self.names = list(spec.tasks)
        self.faults: Faults = templates.faults
        self._spec = spec
        self._templates = templates
        self._base = base
        self._root = root
        self._unsound = unsound
        self._details = keep()
        self._policies = array("I")
        self._bindings: list[Binding] = []  # stays empty as long as no task has a binding, to save memory
        self._kept_bindings: dict[Binding, Binding] = {}
        self._multiplied: dict[int, tuple[Expansion, bytes, int]] = {}
        places: dict[str, int] = {}
        for start in range(0, len(self.names), PLACES_AT_ONCE):  # in parts, so that other threads run in between
            names = self.names[start : start + PLACES_AT_ONCE]
            places.update(zip(names, range(start, start + len(names)), strict=True))
        self._sides: dict[int, Side] = {}
        self.budget = Budget()  # for all matches together
        self.steps = Steps()  # for all comparisons of names together
        self._links = Links(places, self.faults, outside, unsound)
        self._read()
        self.expanded: dict[int, ExpandedSegment] = {}
        self.numbers = self._number()
        self.rows: Rows
        self._rules: list[tuple[Match, MatchRule]] = []
        self._matched: dict[int, list[int]] = {}  # parent -> children that wait for it by a rule

    def place(self, task: int) -> str:
        """The place in the document of a task's definition."""
        return at(self._root, self.names[task])

    def side(self, task: int) -> Side:
        """A task as a `match` sees it. It is worked out at the first call and kept."""
        side = self._sides.get(task)
        if side is None:
            side = self._sides[task] = self._side(task)
        return side

    def _side(self, task: int) -> Side:
        segment = self.expanded.get(task)
        if segment is not None:
            return Side.of(segment)
        name = self.names[task]
        replaced = self._templates.replaced(self._spec.definition(name))
        values = {key: choices.texts for key, choices in replaced.pairs()} if replaced else {}
        return Side(name, self.numbers[task], values)

    def _read(self) -> None:
        template, link = self._templates.template, self._links.add
        for task, (name, definition) in enumerate(self._spec.definitions()):
            place = at(self._root, name)
            details, policy, expansion = template(name, definition, place)
            link(name, definition, place)
            if expansion is None or expansion.count == 1:
                self._details.append(details)
                self._policies.append(policy)
                self._bind(expansion)
            else:
                self._multiplied[task] = expansion, details, policy

    def _bind(self, expansion: Expansion | None) -> None:
        """Record which parameters were replaced in the last task that is not multiplied.

        Tasks with equal parameters share one record, because there may be millions of tasks.
        """
        if expansion is not None and not self._bindings:
            self._bindings = [()] * (len(self._details) - 1)
        if self._bindings or expansion is not None:
            binding = tuple((name, choices.texts[0]) for name, choices in expansion.pairs()) if expansion is not None else ()
            self._bindings.append(self._kept_bindings.setdefault(binding, binding))

    def _number(self) -> Sequence[int]:
        plain, base = self._base, self._base + len(self._details)
        for task, (expansion, details, policy) in self._multiplied.items():
            values = tuple(choices.texts for choices in expansion.values)
            segment = ExpandedSegment(base, self.names[task], expansion.parameters, values, details, policy)
            self.expanded[task] = segment
            base += segment.size
        self.fits = base <= MAX_NUMBER
        if not self.fits and all(segment.size <= MAX_NUMBER for segment in self.expanded.values()):  # else it has a fault
            message = f"the run would have {base:,} tasks, expansions included; it holds at most {MAX_NUMBER:,}"
            self.faults.add(self._root, message)
        if not self.expanded or not self.fits:
            return range(plain, plain + len(self.names))
        numbers = array("I", bytes(4 * len(self.names)))
        for task in range(len(self.names)):
            if task in self.expanded:
                numbers[task] = self.expanded[task].base
            else:
                numbers[task] = plain
                plain += 1
        return numbers

    def resolve(self) -> None:
        """Turn every `match` into a rule or a plain edge. After this, `children` knows all edges of the document."""
        for match in self._links.matches:
            names = {self.names[match.parent], self.names[match.child]}
            if not self.fits or not names.isdisjoint(self._unsound):
                self._links.add_plain(match)
                continue
            before = self.faults.count
            rule = relate(self.side(match.parent), self.side(match.child), match.names, self.faults, match.place, self.budget)
            if rule is not None:
                self._rules.append((match, rule))
            elif self.faults.count == before:
                self._links.add_plain(match)
        self.rows = self._links.rows()
        # A plain edge between the same tasks says more than the match: the child waits for all of the parent.
        plain = {parent: frozenset(self.rows.children(parent)) for parent in {match.parent for match, _ in self._rules}}
        self._rules = [(match, rule) for match, rule in self._rules if match.child not in plain[match.parent]]
        for match, _ in self._rules:
            self._matched.setdefault(match.parent, []).append(match.child)

    def check_names(self) -> None:
        """Add a fault for each task that shares a name with another one. Names of expansions and tails count as well."""
        if not self.expanded:
            return
        by_name = {segment.name: segment for segment in self.expanded.values()}
        positions = Positions()
        for task, name in enumerate(self.names):
            if "." not in name:
                continue
            for segment in above(name, by_name):
                if name_in(name, segment, positions):
                    self._clash(task, name, segment.name)
                elif task in self.expanded:
                    tail = f"{name}.tail"
                    common = tail if name_in(tail, segment, positions) else common_name(self.expanded[task], segment, self.steps)
                    if common:
                        self._clash(task, common, segment.name)
        for task, (expansion, _, _) in self._multiplied.items():
            following = zip(expansion.parameters[1:], expansion.values, strict=False)
            pairs = [
                (index, short, long)
                for index, (name, values) in enumerate(following)
                for short, long in values.confusable(f".{name}:")
            ]
            common = ambiguous_name(self.expanded[task], pairs, self.steps) if pairs else None
            if common:
                message = f"two of its expansions would be called {quoted(common)}"
                alike = readings(common, self.expanded[task])
                if len(alike) == 2:
                    one, other = (", ".join(f"{name}={quoted(value)}" for name, value in each.items()) for each in alike)
                    message += f", the one with {one} and the one with {other}"
                self.faults.add(self.place(task), message, "choose other values", task=self.names[task])

    def children(self, task: int) -> Sequence[int]:
        """The tasks of the document that wait for `task`, or that wait for some of its expansions because of a `match`."""
        plain = self.rows.children(task)
        return [*plain, *self._matched[task]] if task in self._matched else plain

    def check_cycles(self) -> None:
        """Add a fault if tasks of the document wait for each other.

        Edges of a `match` count as well: each expansion of a child waits for some expansion of its parent, so that a cycle of
        tasks always has a cycle of expansions.
        """
        if self.rows.forward and all(parent < child for parent, children in self._matched.items() for child in children):
            return
        cycle = find_cycle(len(self.names), self.children)
        if cycle is not None:
            self.refuse_cycle(cycle, self.names.__getitem__)

    def refuse_cycle(self, cycle: Sequence[int], name: Callable[[int], str]) -> None:
        """Add the fault for a cycle of vertices, the first of which is a task of the document."""
        message = f"tasks wait for each other: {path(cycle, name)}"
        self.faults.add(self.place(cycle[0]), message, "leave one of these edges out", task=self.names[cycle[0]])

    def _clash(self, task: int, common: str, other: str) -> None:
        message = f"the name {quoted(common)} would also be that of a task that {quoted(other)} expands to"
        self.faults.add(self.place(task), message, "rename one of the two", task=self.names[task])

    def segments(self, beyond: Mapping[int, Sequence[int]] | None = None) -> list[Segment]:
        """All tasks as segments, in the order of their numbers.

        `beyond` has the numbers of tasks outside of the document, by the task of the document for which (and for all of whose
        expansions) they wait.
        """
        for match, rule in self._rules:
            self.expanded[match.parent].match_children.append(rule)
            if match.child in self.expanded:
                self.expanded[match.child].match_parents.append(rule)
        if not self.expanded and not self._base and not beyond:
            return [
                PlainSegment(0, self.names, self._details, self._policies, self.rows.offsets, self.rows.targets, self._bindings),
            ]
        beyond = beyond or {}
        names: list[str] = []
        offsets, targets = array("I", [0]), array("I")
        for task, name in enumerate(self.names):
            children = (self.numbers[child] for child in self.rows.children(task))
            segment = self.expanded.get(task)
            edges = segment.tail_children if segment is not None else targets
            edges.extend(children)
            edges.extend(beyond.get(task, ()))
            if segment is None:
                names.append(name)
                offsets.append(len(targets))
        segments: list[Segment] = []
        if names:
            segments.append(PlainSegment(self._base, names, self._details, self._policies, offsets, targets, self._bindings))
        segments += self.expanded.values()
        return segments
