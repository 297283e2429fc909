"""Documents that are made to be slow: each would take minutes to hours if work grew faster than the document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from written_specs import document, graph_of

from daggyr_server.core.graph.graph import Graph
from daggyr_server.spec import SpecificationError, decode_json, expand, expand_edit, expand_generated

COUNT = 10_000
TRUE: dict[str, Any] = {"details": {"command": ["true"]}}


def echo(*words: str, **keys: Any) -> dict[str, Any]:
    return {"details": {"command": ["echo", *words]}, **keys}


def numbers(count: int = COUNT) -> list[str]:
    return [str(number) for number in range(count)]


def parameters(count: int = COUNT) -> dict[str, list[str]]:
    return {f"{{{number:05}}}": ["v"] for number in range(count // 10)}


def many_parameters() -> dict[str, Any]:
    return {"parameters": parameters(), "tasks": {f"t{n}": echo("{" * 200) for n in range(1_000)}}


def own_parameters() -> dict[str, Any]:
    return {"parameters": parameters(), "tasks": {f"t{n}": echo("X" * 20, parameters={"X": ["v"]}) for n in range(COUNT)}}


def names_alike() -> dict[str, Any]:
    return {"parameters": {"a" * n + "b": ["v"] for n in range(1, 300)}, "tasks": {"t": echo("a" * 400_000)}}


def names_like_expansions() -> dict[str, Any]:
    return {
        "parameters": {"X": numbers()},
        "tasks": {"a": echo("X"), **{f"a.X:none{number}": TRUE for number in range(COUNT)}},
    }


def dotted_values() -> dict[str, Any]:
    return {"parameters": {"X": ["." * 1_000_000, "x"], "Y": ["1", "2"]}, "tasks": {"a": echo("X", "Y")}}


def matches_of_one_large_task() -> dict[str, Any]:
    child = echo("X", parents=[{"task": "a", "match": ["X"]}])
    return {"parameters": {"X": ["v"]}, "tasks": {"a": echo("X" + "x" * 1_000_000), **{f"b{n}": child for n in range(COUNT)}}}


def matches_of_many_parameters() -> dict[str, Any]:
    names = [f"X{number:05}" for number in range(COUNT // 4)]
    every = echo("".join(names))
    child = {**every, "parents": [{"task": "a", "match": names}]}
    return {"parameters": {name: ["v"] for name in names}, "tasks": {"a": every, "b": child}}


def unknown_keys() -> dict[str, Any]:
    return {"tasks": {"a": {**TRUE, **{f"key{number}": 1 for number in range(100_000)}}}}


def ignored_keys() -> dict[str, Any]:
    many = {f"x-{number}": ":" for number in range(100_000)}
    return {**many, "tasks": {"a": {**TRUE, **many}, **{f"b{number}": {**TRUE, "x-": 1} for number in range(COUNT)}}}


def many_defaults() -> dict[str, Any]:
    resources = {f"r{number}": 1 for number in range(1_000)}
    own = {"details": {"command": ["true"], "resources": {"r0": 1}}}
    return {
        "defaults": {"details": {"resources": resources, "environment": {f"V{number}": "" for number in range(1_000)}}},
        "tasks": {f"t{number}": own if number % 2 else TRUE for number in range(COUNT // 10)},
    }


@pytest.mark.parametrize(
    "make",
    [
        ignored_keys,
        many_defaults,
        many_parameters,
        own_parameters,
        names_alike,
        names_like_expansions,
        dotted_values,
        matches_of_one_large_task,
        matches_of_many_parameters,
        unknown_keys,
    ],
    ids=lambda make: make.__name__,
)
def test_a_document_is_read_in_time_that_grows_as_it_does(make: Callable[[], dict[str, Any]]) -> None:
    try:
        graph_of(make())
    except SpecificationError as error:
        assert len(str(error).encode()) < 64 * 1024


def test_an_edit_that_leaves_one_value_of_many() -> None:
    tasks = {f"t{number}": echo("X") for number in range(1_000)}
    graph = graph_of({"parameters": {"X": numbers()}, "tasks": tasks})
    spec = decode_json(document({"parameters": {"X": [str(COUNT - 1)]}, "tasks": tasks}))
    edited = expand_edit(spec, graph=graph, printed=[], pools=None, default_pool="default")
    assert len(list(edited.edit.carry)) == len(tasks)


def test_generated_tasks_that_name_each_of_many_expansions() -> None:
    generator = {**TRUE, "is_generator": True}
    graph: Graph = graph_of({"parameters": {"X": numbers()}, "tasks": {"a": echo("X"), "generator": generator}})
    printed = document({"b": {**TRUE, "parents": [f"a.X:{number}" for number in range(COUNT)]}})
    addition = expand_generated(
        printed, run_parameters={}, graph=graph, generator=graph.number_of("generator") or 0, pools=None, default_pool="default"
    )
    assert len(addition.edges) == COUNT


def test_matches_that_would_need_more_memory_than_the_document_says() -> None:
    child = echo("X", parents=[{"task": "a", "match": ["X"]}], parameters={"X": ["0", "1"]})
    tasks = {"a": echo("X"), **{f"b{number}": child for number in range(3_000)}}
    with pytest.raises(SpecificationError, match="stand for more than 20,000,000 values"):
        expand(decode_json(document({"parameters": {"X": numbers()}, "tasks": tasks})), default_pool="default")
