"""The edges between the tasks of one document. Definitions name them at both ends and may repeat one; `rows` has each once.

A task is known by its place in the document here (0 for the first). A name that the document does not have goes to `outside`,
which knows the run that a generator's tasks join. `assembly` calls this. Edges are kept in flat arrays: there may be millions.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

from daggyr_server.spec.document import ParentReference, TaskDefinition
from daggyr_server.spec.faults import Faults, nearest, quoted


class Match(NamedTuple):
    """A `match` between two tasks of the document, and its place there."""

    parent: int
    child: int
    names: tuple[str, ...]
    place: str


class Outside(Protocol):
    """Takes edges to and from tasks that are not in the document.

    Each method returns False if there is no such task outside either.
    """

    def child(self, task: int, child: str, place: str) -> bool:
        """Take an edge from `task` of the document to `child` outside."""

    def parent(self, parent: str, task: int, names: tuple[str, ...], place: str) -> bool:
        """Take an edge from `parent` outside to `task` of the document. `names` are the parameters to match."""


class Rows(NamedTuple):
    """Edges in compressed rows: the children of task i are `targets[offsets[i]:offsets[i + 1]]`.

    `forward` says that every edge leads to a later task, so that there cannot be a cycle.
    """

    offsets: array[int]
    targets: array[int]
    forward: bool

    def children(self, task: int) -> array[int]:
        """The children of one task."""
        return self.targets[self.offsets[task] : self.offsets[task + 1]]


@dataclass(slots=True)
class Links:
    """Takes the edges of one definition after the other, in the order of the document."""

    index: Mapping[str, int]  # name -> place in the document
    faults: Faults
    outside: Outside | None = None
    unsound: Collection[str] = ()  # tasks that could not be read completely; an empty name in one of them is skipped
    matches: list[Match] = field(default_factory=list)
    _counts: array[int] = field(default_factory=lambda: array("I"))  # how many children each task names
    _targets: array[int] = field(default_factory=lambda: array("I"))  # these children, task by task
    _named_parents: array[int] = field(default_factory=lambda: array("I"))  # edges that the child names: the parent of each
    _naming_children: array[int] = field(default_factory=lambda: array("I"))  # and the child of each

    def add(self, name: str, definition: TaskDefinition, place: str) -> None:
        """Take the edges of the next task, whose definition stands at `place`."""
        task = len(self._counts)
        before = len(self._targets)
        if definition.children:
            try:
                self._targets.fromlist(list(map(self.index.__getitem__, definition.children)))
            except KeyError:
                self._add_children(name, task, definition.children, place)
        self._counts.append(len(self._targets) - before)
        if definition.parents:
            self._add_parents(name, task, definition.parents, place)

    def add_plain(self, match: Match) -> None:
        """Take a `match` that says the same as a plain edge."""
        self._named_parents.append(match.parent)
        self._naming_children.append(match.child)

    def rows(self) -> Rows:
        """The plain edges inside the document, each once.

        A task's children come first as it names them, then those that name it.
        """
        offsets, targets = array("I", accumulate(self._counts, initial=0)), self._targets
        if self._named_parents:
            offsets, targets = self._merged(offsets)
        return _distinct(offsets, targets)

    def _merged(self, own: array[int]) -> tuple[array[int], array[int]]:
        counts = array("I", self._counts)
        for parent in self._named_parents:
            counts[parent] += 1
        offsets = array("I", accumulate(counts, initial=0))
        targets = array("I", bytes(4 * offsets[-1]))
        free = offsets[:-1]
        for task, (low, high) in enumerate(pairwise(own)):
            if low < high:
                start = free[task]
                free[task] = start + high - low
                targets[start : start + high - low] = self._targets[low:high]
        for parent, child in zip(self._named_parents, self._naming_children, strict=True):
            targets[free[parent]] = child
            free[parent] += 1
        return offsets, targets

    def _add_children(self, name: str, task: int, children: Sequence[str], place: str) -> None:
        for position, child in enumerate(children):
            number = self.index.get(child)
            here = f"{place}.children[{position}]"
            if number is not None:
                self._targets.append(number)
            elif self.outside is None or not self.outside.child(task, child, here):
                self._missing(name, child, here)

    def _add_parents(self, name: str, task: int, parents: Sequence[str | ParentReference], place: str) -> None:
        matched: dict[str, tuple[str, ...]] = {}
        for position, reference in enumerate(parents):
            here = f"{place}.parents[{position}]"
            names: tuple[str, ...] = ()
            if isinstance(reference, str):
                parent = reference
            else:
                parent, names = reference.task, tuple(sorted(set(reference.match or ())))
                if names and parent in matched:
                    if names != matched[parent]:
                        message = f"the parent {quoted(parent)} has another `match` already"
                        self.faults.add(here, message, "name all parameters in one", task=name)
                    continue
                if names:
                    matched[parent] = names
            number = self.index.get(parent)
            if number is None:
                if self.outside is None or not self.outside.parent(parent, task, names, here):
                    self._missing(name, parent, here)
            elif names:
                self.matches.append(Match(number, task, names, here))
            else:
                self._named_parents.append(number)
                self._naming_children.append(task)

    def _missing(self, task: str, name: str, place: str) -> None:
        if not name and task in self.unsound:
            return
        self.faults.add(place, f"there is no task {quoted(name)}", lambda: nearest(name, self.index.keys()), task=task)


def _distinct(offsets: array[int], targets: array[int]) -> Rows:
    forward = distinct = True
    for task, (low, high) in enumerate(pairwise(offsets)):
        if low < high:
            row = targets[low:high]
            if min(row) <= task:
                forward = False
            if len(set(row)) < high - low:
                distinct = False
    if distinct:
        return Rows(offsets, targets, forward)
    once, ends = array("I"), array("I", [0])
    for low, high in pairwise(offsets):
        once.extend(dict.fromkeys(targets[low:high]))
        ends.append(len(once))
    return Rows(ends, once, forward)
