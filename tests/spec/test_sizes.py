"""Values that people choose are bounded where they come in, because one message holds them later.

Each refusal names the task, the size and a way out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from written_specs import document, graph_of, refused

from daggyr_server.spec import SpecificationError, decode_json, expand, expand_generated

MOST = 3 * 1024 * 1024
TRUE: dict[str, Any] = {"details": {"command": ["true"]}}


def details(**keys: Any) -> dict[str, Any]:
    return {"details": {"command": ["true"], **keys}}


@pytest.mark.parametrize(
    ("task", "largest"),
    [
        (lambda: details(stdin="x" * MOST), "stdin"),
        (lambda: details(stdin="\N{SNOWMAN}" * (MOST // 3)), "stdin"),
        (lambda: details(command=["true", *["argument"] * 400_000]), "command"),
        (lambda: details(environment={f"V{number}": "" for number in range(400_000)}), "environment"),
        (lambda: details(environment={"V": "x" * MOST}), "environment"),
        (lambda: details(working_directory="x" * MOST), "working_directory"),
    ],
    ids=["stdin", "wide characters", "arguments", "variables", "one variable", "folder"],
)
def test_a_task_that_no_message_could_carry(task: Callable[[], dict[str, Any]], largest: str) -> None:
    (fault,) = refused({"tasks": {"small": TRUE, "large": task()}})
    assert fault.startswith("tasks.large.details: the task takes ")
    assert f"most of them for `{largest}`; a task takes at most 3,145,728; put the text into a file" in fault


@pytest.mark.parametrize("values", [["x" * 1_000], ["x" * 900, "y"]], ids=["one value", "several"])
def test_a_task_that_its_values_make_too_large(values: list[str]) -> None:
    task = details(command=["echo", "X" * 10_000])
    (fault,) = refused({"tasks": {"large": task}, "parameters": {"X": values}})
    assert fault.startswith(f"tasks.large.details: with the values of its parameters, the task takes {len(values[0]):,}"[:70])
    graph_of({"tasks": {"large": task}, "parameters": {"X": ["x" * 300]}})


def test_values_that_multiply_to_more_than_any_memory() -> None:
    task = details(stdin="A" * 1_000_000)
    (fault,) = refused({"tasks": {"large": task}, "parameters": {"A": ["x" * 1_000_000]}})
    assert "takes 1,000,000,000,005 bytes" in fault


def test_the_largest_task_that_is_taken() -> None:
    graph = graph_of({"tasks": {"large": details(stdin="x" * (MOST - 1_000))}})
    assert graph.size == 1


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        (
            {"tags": {"k" * 65_536: "v"}},
            "tags: the tags take 65,537 bytes; a run's take at most 65,536",
        ),
        ({"tags": {str(number): "v" * 700 for number in range(100)}}, "tags: the tags take 70,190 bytes"),
        ({"pool": "p" * 257}, "pool: the name of a pool takes 257 bytes; it takes at most 256"),
        ({"parameters": {"p" * 65_537: ["v"]}}, "parameters: the names of the parameters take 65,537 bytes"),
    ],
    ids=["a tag's key", "tags", "pool", "parameters"],
)
def test_what_a_run_chooses(keys: dict[str, Any], fault: str) -> None:
    (told,) = refused({"tasks": {"a": TRUE}, **keys})
    assert told.startswith(fault)


@pytest.mark.parametrize(
    ("task", "place", "words"),
    [
        ({**TRUE, "pool": "p" * 300}, "tasks.a.pool", "takes 300 bytes"),
        (details(resources={"r" * 300: 1}), "tasks.a.details.resources.", "the name of a resource takes 300 bytes"),
        (details(resources={f"r{number}": 1 for number in range(101)}), "tasks.a.details.resources", "101 resources"),
        ({**TRUE, "parameters": {"p" * 65_537: ["v"]}}, "tasks.a.parameters", "take 65,537 bytes"),
    ],
    ids=["pool", "resource", "resources", "parameters"],
)
def test_what_a_task_chooses(task: dict[str, Any], place: str, words: str) -> None:
    (fault,) = refused({"tasks": {"a": task}})
    assert fault.startswith(place)
    assert words in fault


def test_what_a_generator_prints_is_bounded_as_well() -> None:
    graph = graph_of({"tasks": {"generator": {**TRUE, "is_generator": True}}})
    printed = document({"large": details(stdin="x" * MOST)})
    with pytest.raises(SpecificationError, match=r"^large.details: the task takes .* put the text into a file"):
        expand_generated(printed, run_parameters={}, graph=graph, generator=0, pools=None, default_pool="default")


def test_what_was_accepted_once_is_expanded_again() -> None:
    """A document that a tracker kept is expanded although it is beyond a limit, because it may be older than the limit."""
    spec = decode_json(document({"tags": {"k": "v" * 70_000}, "tasks": {"large": details(stdin="x" * MOST)}}))
    addition = expand(spec, default_pool="default", limited=False)
    assert [segment.size for segment in addition.segments] == [1]


def test_faults_are_bounded_in_number_and_bytes() -> None:
    tasks = {f"{'n' * 900}{number}": {"details": {"command": [], "x" * 5_000: 1}} for number in range(300)}
    with pytest.raises(SpecificationError) as caught:
        decode_json(document({"tasks": tasks}))
    assert caught.value.count == 600
    assert len(str(caught.value).encode()) < 64 * 1024
