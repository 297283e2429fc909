"""Specifications for tests, and the naive expansion that is compared with the symbolic graphs of `expand`.

The naive side makes every task and edge by name, straight from the design's words. It shares no code with the package but the
rule of substitution.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import fastjsonschema
import pytest
from hypothesis import strategies as st

from daggyr.substitution import Filling, Substitution
from daggyr.v1.task_pb2 import TaskSpec, TaskTemplate
from daggyr_server.core.graph.graph import Graph
from daggyr_server.core.graph.segments import Kind
from daggyr_server.spec import SpecificationError, decode_json, expand
from daggyr_server.spec.schema import json_schema

validate = fastjsonschema.compile(json_schema(), use_default=False)  # raises JsonSchemaException
PARAMETERS = ("{{A}}", "{{B}}", "{{C}}")


def document(spec: Any) -> bytes:
    return json.dumps(spec).encode()


def graph_of(spec: Any) -> Graph:
    """Return the graph of a specification. Whatever becomes a graph is valid under the schema for editors, too."""
    graph = Graph()
    graph.extend(expand(decode_json(document(spec)), default_pool="default"))
    validate(spec)
    return graph


def refused(spec: Any, **options: Any) -> list[str]:
    """Return the faults of a specification that is refused, a line each. `options` are those of `expand`."""
    with pytest.raises(SpecificationError) as caught:
        expand(decode_json(document(spec)), **{"default_pool": "default", **options})
    return str(caught.value).splitlines()


def named_edges(graph: Graph) -> set[tuple[str, str]]:
    return {(graph.task_id(number), graph.task_id(child)) for number in range(graph.size) for child in graph.children(number)}


def executed(graph: Graph, number: int) -> TaskSpec:
    """Return what an executor would run for a task, with the values filled in as executors fill them in."""
    details = graph.details(number)
    template = TaskTemplate(spec=TaskSpec.FromString(details.template), parameters=details.parameters)
    return Filling(template).spec(details.values)


@dataclass
class Naive:
    """All tasks and edges of a specification, written down."""

    commands: dict[str, list[str] | None] = field(default_factory=dict)  # None if the task is structural
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    edges: set[tuple[str, str]] = field(default_factory=set)


def naive(spec: Mapping[str, Any]) -> Naive:
    """Expand a valid specification task by task."""
    made = Naive()
    expansions: dict[str, dict[str, dict[str, str]]] = {}  # by task: the names of its expansions and their values
    for name, task in spec["tasks"].items():
        scope = {**spec.get("parameters", {}), **task.get("parameters", {})}
        rule = Substitution(list(scope))
        details = task["details"]
        environment = details.get("environment", {})
        used = sorted(rule.occurring([*details["command"], *environment.values()]))
        combinations = [dict(zip(used, values, strict=True)) for values in product(*(scope[key] for key in used))]
        multiplied = len(combinations) > 1
        expansions[name] = {}
        for values in combinations:
            expansion = ".".join([name, *(f"{key}:{value}" for key, value in values.items())]) if multiplied else name
            expansions[name][expansion] = values
            made.commands[expansion] = [rule.apply(word, {**dict.fromkeys(scope, ""), **values}) for word in details["command"]]
            made.environments[expansion] = {
                key: rule.apply(text, {**dict.fromkeys(scope, ""), **values}) for key, text in environment.items()
            }
        if multiplied:
            made.commands[name] = made.commands[f"{name}.tail"] = None
            made.edges |= {(name, expansion) for expansion in expansions[name]}
            made.edges |= {(expansion, f"{name}.tail") for expansion in expansions[name]}

    def end(name: str) -> str:
        return f"{name}.tail" if len(expansions[name]) > 1 else name

    for name, task in spec["tasks"].items():
        made.edges |= {(end(name), child) for child in task.get("children", [])}
        for parent in task.get("parents", []):
            if isinstance(parent, str) or not parent.get("match"):
                made.edges.add((end(parent if isinstance(parent, str) else parent["task"]), name))
                continue
            made.edges |= {
                (above, below)
                for above, values in expansions[parent["task"]].items()
                for below, own in expansions[name].items()
                if all(values[key] == own[key] for key in parent["match"])
            }
    return made


def waits_for(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return all pairs of which the first waits for the second, directly or not."""
    below: dict[str, set[str]] = {}
    for above, name in edges:
        below.setdefault(above, set()).add(name)
    reached = set()
    for start in below:
        stack, seen = [start], set()
        while stack:
            for name in below.get(stack.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    stack.append(name)
        reached |= {(start, name) for name in seen}
    return reached


def without_structure(pairs: set[tuple[str, str]], made: Naive) -> set[tuple[str, str]]:
    """Keep the pairs of which both tasks run something."""
    return {(above, below) for above, below in pairs if made.commands[above] is not None and made.commands[below] is not None}


def structural(graph: Graph) -> set[str]:
    return {graph.task_id(number) for number in range(graph.size) if graph.kind(number) is not Kind.TASK}


@st.composite
def specifications(draw: st.DrawFn) -> dict[str, Any]:
    """Generate valid specifications: parameters of the run and of tasks, edges from both ends and twice, matches of all kinds."""
    values = st.lists(st.sampled_from(["1", "2", "3"]), min_size=1, max_size=3, unique=True)
    scope: dict[str, list[str]] = draw(st.dictionaries(st.sampled_from(PARAMETERS), values, min_size=1))
    often = st.sampled_from([True, True, True, False])
    names = draw(st.permutations(["t", "t2", "u.v", "w", "x"]))[: draw(st.integers(1, 5))]
    tasks: dict[str, Any] = {}
    replaced: dict[str, dict[str, list[str]]] = {}
    for index, name in enumerate(names):
        own: dict[str, list[str]] = {} if draw(often) else draw(st.dictionaries(st.sampled_from(PARAMETERS), values))
        known = {**scope, **own}
        words = draw(st.lists(st.sampled_from([*sorted(known) * 2, *PARAMETERS, "{{AB}}", "x"]), min_size=1, max_size=3))
        environment = draw(st.dictionaries(st.sampled_from(["E", "{{A}}"]), st.sampled_from([*PARAMETERS, "y"]), max_size=1))
        used = {word for word in [*words, *environment.values()] if word in known}
        replaced[name] = {key: known[key] for key in used}
        task: dict[str, Any] = {"details": {"command": ["run", "-".join(words)]}}
        task.update({"parameters": own} if own else {})
        task["details"].update({"environment": environment} if environment else {})
        earlier = names[:index]
        parents: list[Any] = []
        for parent in draw(st.lists(st.sampled_from(earlier), min_size=1, max_size=3)) if earlier and draw(often) else []:
            common = [key for key in used if set(known[key]) <= set(replaced[parent].get(key, ()))]
            match = draw(st.lists(st.sampled_from(common), min_size=1)) if common and draw(often) else []
            if any(isinstance(other, dict) and other["task"] == parent for other in parents):
                match = []
            as_object = match or draw(st.booleans())
            parents.append({"task": parent, **({"match": match} if match else {})} if as_object else parent)
        task.update({"parents": parents} if parents else {})
        for parent in draw(st.lists(st.sampled_from(earlier), max_size=2)) if earlier and not draw(often) else []:
            tasks[parent].setdefault("children", []).append(name)
        tasks[name] = task
    shuffled = draw(st.permutations(list(tasks)))
    return {"parameters": scope, "tasks": {name: tasks[name] for name in shuffled}}
