"""Finds a cycle in a graph of numbered vertices, in time linear in its edges and without recursion.

`assembly` calls this for the tasks of a document, and `existing` for generated tasks beside those of their run. It knows no
tasks.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from daggyr_server.spec.faults import shown

_MOST_SHOWN = 10


def find_cycle(count: int, children: Callable[[int], Sequence[int]]) -> list[int] | None:
    """The vertices of one cycle in the order of its edges, with its smallest vertex first; None if there is no cycle.

    Vertices are 0 to `count` - 1. This is Kahn's algorithm: it takes away vertices that wait for nothing until there are none.
    Each vertex that remains has a parent that remains, so that following parents leads round a cycle.
    """
    waiting = array("I", bytes(4 * count))
    for vertex in range(count):
        for child in children(vertex):
            waiting[child] += 1
    ready = [vertex for vertex in range(count) if not waiting[vertex]]
    taken = 0
    while ready:
        taken += 1
        for child in children(ready.pop()):
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    if taken == count:
        return None
    before: dict[int, int] = {}
    for vertex in range(count):
        if waiting[vertex]:
            for child in children(vertex):
                if waiting[child]:
                    before.setdefault(child, vertex)
    vertex = next(iter(before))
    steps: dict[int, None] = {}
    while vertex not in steps:
        steps[vertex] = None
        vertex = before[vertex]
    backwards = list(steps)
    cycle = backwards[backwards.index(vertex) :][::-1]
    smallest = cycle.index(min(cycle))
    return cycle[smallest:] + cycle[:smallest]


def path(cycle: Sequence[int], name: Callable[[int], str]) -> str:
    """A cycle as a text for people: `a -> b -> a`. A long one is shortened."""
    names = [shown(name(vertex)) for vertex in cycle[:_MOST_SHOWN]]
    if len(cycle) > _MOST_SHOWN:
        names.append(f"({len(cycle) - _MOST_SHOWN:,} more)")
    return " -> ".join([*names, names[0]])
