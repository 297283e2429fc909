"""What a specification and what generators printed mean: tasks with their names, what they do, and what they wait for.

This is written from the documents alone (README.md, `daggyr --help`), apart from DaggyR. It imports nothing of it, so that the
two can be compared. `documented.py` uses it. Nothing here has states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

Document = Mapping[str, Any]  # a specification
Printed = tuple[str, Mapping[str, Any]]  # a generator's name, and the tasks that it printed
Binding = tuple[tuple[str, str], ...]


class Refused(Exception):
    """The specification, or what a generator printed, is refused whole."""


@dataclass
class Vertex:
    """A task that runs a command."""

    name: str
    template: str
    binding: Binding  # the parameters that were replaced, with their values
    plain: bool  # the template was not multiplied
    does: tuple[str, ...]
    max_retries: int
    retry_delay: float
    is_generator: bool
    source: str | None  # the generator that made it
    parents: set[str] = field(default_factory=set)

    @property
    def terms(self) -> tuple[object, ...]:
        return self.max_retries, self.retry_delay, self.is_generator


@dataclass
class Layout:
    """All tasks of a run."""

    vertices: dict[str, Vertex] = field(default_factory=dict)
    templates: dict[str, list[str]] = field(default_factory=dict)  # the names of each one's tasks
    edges: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)  # (parent, child): the parameters that match

    def children_of(self, name: str) -> list[str]:
        return [vertex.name for vertex in self.vertices.values() if name in vertex.parents]

    def descendants(self, names: Iterable[str]) -> set[str]:
        """These tasks and all that depends on them."""
        found, ahead = set(names), list(names)
        while ahead:
            for child in self.children_of(ahead.pop()):
                if child not in found:
                    found.add(child)
                    ahead.append(child)
        return found

    def structural(self, completed: set[str]) -> list[bool]:
        """Of each head and tail, whether it is COMPLETED."""
        found = []
        for template, names in self.templates.items():
            if len(names) == 1:
                continue
            before = [parent for (parent, child), match in self.edges.items() if child == template and not match]
            found.append(all(set(self.templates[parent]) <= completed for parent in before))
            found.append(set(names) <= completed)
        return found


def layout(document: Document, printed: Sequence[Printed] = ()) -> Layout:
    """All tasks of a specification, and those that its generators printed. Raises Refused."""
    found = Layout()
    parameters = document.get("parameters", {})
    _add(found, document["tasks"], parameters, None)
    for generator, tasks in printed:
        add_printed(found, generator, tasks, parameters)
    return _connected(found)


def with_printed(before: Layout, generator: str, tasks: Mapping[str, Any], parameters: Mapping[str, Sequence[str]]) -> Layout:
    """The tasks of before, and those that a generator printed. Raises Refused."""
    found = Layout(
        {name: Vertex(**{**vars(vertex), "parents": set()}) for name, vertex in before.vertices.items()},
        {name: list(names) for name, names in before.templates.items()},
        dict(before.edges),
    )
    add_printed(found, generator, tasks, parameters)
    return _connected(found)


def add_printed(found: Layout, generator: str, tasks: Mapping[str, Any], parameters: Mapping[str, Sequence[str]]) -> None:
    """A new task without parents gets the generator, one without children the generator's children."""
    after = [child for parent, child in found.edges if parent == generator]
    known = set(found.edges)
    _add(found, tasks, parameters, generator)
    new = set(found.edges) - known
    for name in tasks:
        if not any(child == name for _, child in new):
            found.edges[generator, name] = ()
        if not any(parent == name for parent, _ in new):
            found.edges.update({(name, child): () for child in after})


def _add(found: Layout, tasks: Mapping[str, Any], parameters: Mapping[str, Sequence[str]], source: str | None) -> None:
    taken = set(found.vertices) | set(found.templates)
    for template, task in tasks.items():
        command = task["details"]["command"]
        names = sorted(name for name in parameters if any(name in word for word in command))
        combinations = list(product(*(parameters[name] for name in names)))
        made = []
        for values in combinations:
            binding = tuple(zip(names, values, strict=True))
            plain = len(combinations) == 1
            name = template if plain else template + "".join(f".{key}:{value}" for key, value in binding)
            made.append(
                Vertex(
                    name,
                    template,
                    binding,
                    plain,
                    tuple(_filled(word, binding) for word in command),
                    task.get("max_retries", 0),
                    task.get("retry_delay", 0),
                    task.get("is_generator", False),
                    source,
                )
            )
        mine = {template, *(vertex.name for vertex in made)}
        if mine & taken:
            raise Refused(f"{mine & taken} are names of other tasks")
        found.templates[template] = [vertex.name for vertex in made]
        found.vertices.update({vertex.name: vertex for vertex in made})
    for template, task in tasks.items():
        for parent in task.get("parents", ()):
            if isinstance(parent, str):
                _edge(found, parent, template, ())
            else:
                _edge(found, parent["task"], template, tuple(parent["match"]))
        for child in task.get("children", ()):
            _edge(found, template, child, ())


def _edge(found: Layout, parent: str, child: str, match: tuple[str, ...]) -> None:
    if parent not in found.templates or child not in found.templates:
        raise Refused(f"{parent} or {child} is no task")
    found.edges.setdefault((parent, child), match)


def _connected(found: Layout) -> Layout:
    for (parent, child), match in found.edges.items():
        for name in found.templates[child]:
            mine = dict(found.vertices[name].binding)
            for other in found.templates[parent]:
                theirs = dict(found.vertices[other].binding)
                if all(mine.get(key) == theirs.get(key) for key in match):
                    found.vertices[name].parents.add(other)
    return found


def _filled(word: str, binding: Binding) -> str:
    for name, value in binding:
        word = word.replace(name, value)
    return word
