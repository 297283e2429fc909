"""`expand`: the graph of a specification equals what a naive expansion writes down, and costs no more than its document."""

from __future__ import annotations

import gc
import tracemalloc
from array import array
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from written_specs import (
    document,
    executed,
    graph_of,
    naive,
    named_edges,
    refused,
    specifications,
    structural,
    waits_for,
    without_structure,
)

from daggyr.v1.task_pb2 import TaskSpec
from daggyr_server.core.graph.graph import Graph
from daggyr_server.core.graph.segments import ExpandedSegment, Kind, PlainSegment, Policy
from daggyr_server.spec import PoolLimits, decode_json, expand

ORIGINAL = {
    "tags": {"abc": "def"},
    "parameters": {"{{DATE}}": ["2022-01-01", "2022-01-02"]},
    "tasks": {"a": {"details": {"command": ["echo", "{{DATE}}"], "environment": {"TEST_ENV": "{{DATE}}"}}}},
}


@settings(deadline=None, max_examples=200)
@given(specifications())
def test_a_graph_is_what_the_naive_expansion_writes_down(spec: dict[str, Any]) -> None:
    graph, expected = graph_of(spec), naive(spec)
    names = [graph.task_id(number) for number in range(graph.size)]
    assert sorted(names) == sorted(expected.commands)
    assert structural(graph) == {name for name, command in expected.commands.items() if command is None}
    for number, name in enumerate(names):
        if graph.kind(number) is Kind.TASK:
            task = executed(graph, number)
            assert list(task.command) == expected.commands[name]
            assert dict(task.environment) == expected.environments[name]
        assert len(set(graph.children(number))) == len(graph.children(number))
    # A match may be a plain edge to a head instead of edges to all expansions behind it, because the order of commands is the
    # same.
    assert without_structure(waits_for(named_edges(graph)), expected) == without_structure(waits_for(expected.edges), expected)
    degrees = graph.indegrees()
    assert degrees == array("I", [len(graph.parents(number)) for number in range(graph.size)])


@settings(deadline=None)
@given(specifications())
def test_plain_tasks_share_one_segment_before_the_others(spec: dict[str, Any]) -> None:
    addition = expand(decode_json(document(spec)), default_pool="default")
    kinds = [type(segment) for segment in addition.segments]
    assert kinds.count(PlainSegment) <= 1
    assert PlainSegment not in kinds[1:]
    assert addition.edges == []
    Graph().extend(addition)


def test_the_original_run_has_a_head_two_expansions_and_a_tail() -> None:
    graph = graph_of(ORIGINAL)
    assert [graph.task_id(number) for number in range(graph.size)] == [
        "a",
        "a.{{DATE}}:2022-01-01",
        "a.{{DATE}}:2022-01-02",
        "a.tail",
    ]
    assert named_edges(graph) == {
        ("a", "a.{{DATE}}:2022-01-01"),
        ("a", "a.{{DATE}}:2022-01-02"),
        ("a.{{DATE}}:2022-01-01", "a.tail"),
        ("a.{{DATE}}:2022-01-02", "a.tail"),
    }
    task = executed(graph, 2)
    assert list(task.command) == ["echo", "2022-01-02"]
    assert dict(task.environment) == {"TEST_ENV": "2022-01-02"}


def test_details_are_deterministic_task_specs() -> None:
    details = {
        "command": ["{{X}}", "b"],
        "environment": {"Z": "{{X}}", "A": "1"},
        "working_directory": "w/{{X}}",
        "stdin": "in {{X}}\0",
        "timeout": 1.5,
        "resources": {"memory_mb": 100, "gpu": 0},
    }
    graph = graph_of({"parameters": {"{{X}}": ["v"]}, "tasks": {"a": {"details": details}}})
    expected = TaskSpec(
        command=["v", "b"],
        environment={"A": "1", "Z": "v"},
        working_directory="w/v",
        stdin="in v\0",
        timeout=Duration(seconds=1, nanos=500_000_000),
        resources={"cores": 1, "gpu": 0, "memory_mb": 100},
    )
    assert graph.details(0).template == expected.SerializeToString(deterministic=True)
    assert graph.details(0).parameters == ()
    assert graph.policies == [Policy("default", (("cores", 1), ("memory_mb", 100)), timeout=1.5)]


def test_values_are_not_searched_again_and_the_longest_name_wins() -> None:
    spec = {
        "parameters": {"X": ["Y"], "XX": ["two"], "Y": ["never"]},
        "tasks": {"a": {"details": {"command": ["X XX XXX", "{{XX}}"]}}},
    }
    graph = graph_of(spec)
    assert list(executed(graph, 0).command) == ["Y two twoY", "{{two}}"]


def test_absent_and_zero_timeouts_are_none_and_an_empty_stdin_is_one() -> None:
    tasks = {
        "a": {"details": {"command": ["x"]}},
        "b": {"details": {"command": ["x"], "timeout": 0}},
        "c": {"details": {"command": ["x"], "stdin": ""}},
    }
    graph = graph_of({"tasks": tasks})
    a, b, c = (executed(graph, number) for number in range(3))
    assert not a.HasField("timeout")
    assert not b.HasField("timeout")
    assert a == b
    assert graph.details(0).template is graph.details(1).template
    assert not a.HasField("stdin")
    assert c.HasField("stdin")


def test_generators_may_print_64_mib_and_policies_are_shared() -> None:
    task = {"details": {"command": ["x"]}, "max_retries": 2, "retry_delay": 5, "priority": -1, "pool": "hpc"}
    graph = graph_of({"tasks": {"a": task, "b": {**task, "is_generator": True}, "c": task, "d": {**task, "is_generator": False}}})
    policy = Policy("hpc", (("cores", 1),), -1, 2, 5.0, False)
    assert graph.policies == [policy, Policy("hpc", (("cores", 1),), -1, 2, 5.0, True)]
    assert [graph.policy_index(number) for number in range(4)] == [0, 1, 0, 0]
    assert executed(graph, 1).whole_stdout_bytes == 64 * 1024 * 1024
    assert executed(graph, 0).whole_stdout_bytes == 0


@pytest.mark.parametrize(("run_pool", "expected"), [(None, "fallback"), ("mine", "mine")])
def test_a_task_goes_to_its_pool_else_the_runs_else_the_default(run_pool: str | None, expected: str) -> None:
    tasks = {"a": {"details": {"command": ["x"]}}, "b": {"details": {"command": ["x"]}, "pool": "own"}}
    spec = decode_json(document({"tasks": tasks, **({"pool": run_pool} if run_pool else {})}))
    pools = {"fallback": PoolLimits(), "mine": PoolLimits(), "own": PoolLimits()}
    graph = Graph()
    graph.extend(expand(spec, pools=pools, default_pool="fallback"))
    assert [graph.policy(number).pool for number in range(2)] == [expected, "own"]


def test_a_million_combinations_cost_their_values_only() -> None:
    values = [str(number) for number in range(1_000)]
    data = document(
        {
            "parameters": {"{{A}}": values, "{{B}}": values},
            "tasks": {
                "a": {"details": {"command": ["x", "{{A}}", "{{B}}"]}},
                "b": {"details": {"command": ["x", "{{A}}"]}, "parents": [{"task": "a", "match": ["{{A}}"]}]},
                "c": {
                    "details": {"command": ["x", "{{B}}", "{{A}}"]},
                    "parents": [{"task": "a", "match": ["{{A}}", "{{B}}"]}, "b"],
                },
            },
        }
    )
    spec = decode_json(data)
    expand(spec, default_pool="default")  # fills what is made once a process
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        addition = expand(spec, default_pool="default")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    gc.collect()
    assert len(gc.get_objects()) - objects < 500
    assert peak < 2_000_000
    graph = Graph()
    graph.extend(addition)
    assert graph.size == 2 * 1_000_002 + 1_002
    assert all(isinstance(segment, ExpandedSegment) for segment in graph.segments)
    number = graph.number_of("b.{{A}}:7")
    assert number is not None
    assert len(graph.parents(number)) == 1_001
    number = graph.number_of("c.{{A}}:7.{{B}}:8")
    assert number is not None
    assert [graph.task_id(parent) for parent in graph.parents(number)] == ["a.{{A}}:7.{{B}}:8", "c"]


def test_more_tasks_than_a_run_holds_are_refused() -> None:
    values = [str(number) for number in range(2_000)]
    spec = {
        "parameters": {"{{A}}": values, "{{B}}": values, "{{C}}": values},
        "tasks": {"a": {"details": {"command": ["{{A}}{{B}}{{C}}"]}, "children": ["b"]}, "b": {"details": {"command": ["x"]}}},
    }
    assert refused(spec) == [
        "tasks.a: the combinations (2,000 of `{{A}}` x 2,000 of `{{B}}` x 2,000 of `{{C}}`) are more than a run can hold"
    ]
    two = {
        "parameters": {"{{A}}": values[:1_500], "{{B}}": values, "{{C}}": values[:1_000]},
        "tasks": {name: {"details": {"command": ["{{A}}{{B}}{{C}}"]}} for name in "ab"},
    }
    assert refused(two) == ["tasks: the run would have 6,000,000,004 tasks, expansions included; it holds at most 4,294,967,295"]


def test_values_that_cannot_be_parts_of_names_are_refused() -> None:
    def spec(*values: str) -> Any:
        return {"parameters": {"{{A}}": values}, "tasks": {"a": {"details": {"command": ["{{A}}"]}}}}

    assert refused(spec("x", "a\nb")) == [
        "tasks.a: the values of `{{A}}` become part of task names, and hold control characters; "
        "give the text to the task in a file, or by way of its environment"
    ]
    assert refused(spec("x", "é" * 511)) == [
        "tasks.a: with the values of {{A}}, the names of its tasks are longer than 1,024 bytes; use shorter values"
    ]
    # A parameter with a single value adds nothing to the name.
    assert graph_of(spec("a\nb" * 1_000)).size == 1
    # A name has at most 1 KiB: "a" + ".{{A}}:" + 1,016.
    assert graph_of(spec("x", "y" * 1_016)).size == 4
    assert len(refused(spec("x", "y" * 1_017))) == 1


def test_repeated_values_are_refused_used_or_not() -> None:
    spec = {
        "parameters": {"{{A}}": ["1", "2", "1", "2", "3"]},
        "tasks": {"a": {"details": {"command": ["x"]}, "parameters": {"{{B}}": ["y", "y"]}}},
    }
    assert refused(spec) == [
        "parameters.{{A}}: the list has `1` and `2` more than once; each value makes a task of its own",
        "tasks.a.parameters.{{B}}: the list has `y` more than once; each value makes a task of its own",
    ]


def test_unknown_tasks_are_refused_with_the_nearest_name() -> None:
    spec = {
        "tasks": {
            "extract": {"details": {"command": ["x"]}, "children": ["laod", "nothing_like_it"]},
            "load": {"details": {"command": ["x"]}, "parents": ["extract", {"task": "extrct", "match": ["{{A}}"]}]},
        }
    }
    assert refused(spec) == [
        "tasks.extract.children[0]: there is no task `laod`; did you mean `load`?",
        "tasks.extract.children[1]: there is no task `nothing_like_it`",
        "tasks.load.parents[1]: there is no task `extrct`; did you mean `extract`?",
    ]


def test_a_cycle_is_shown_as_a_path() -> None:
    def ring(*names: str) -> Any:
        following = dict(zip(names, [*names[1:], names[0]], strict=True))
        return {"tasks": {name: {"details": {"command": ["x"]}, "children": [following[name]]} for name in names}}

    assert refused(ring("a", "b")) == ["tasks.a: tasks wait for each other: a -> b -> a; leave one of these edges out"]
    assert refused(ring("a")) == ["tasks.a: tasks wait for each other: a -> a; leave one of these edges out"]
    large = refused(ring(*(f"t{number}" for number in range(50_000))))
    assert large == [
        "tasks.t0: tasks wait for each other: t0 -> t1 -> t2 -> t3 -> t4 -> t5 -> t6 -> t7 -> t8 -> t9 "
        "-> (49,990 more) -> t0; leave one of these edges out"
    ]
    spec = ring("b", "c", "d")
    spec["tasks"]["a"] = {"details": {"command": ["x"]}, "children": ["b"]}
    spec["tasks"]["e"] = {"details": {"command": ["x"]}, "parents": ["d"]}
    assert refused(spec) == ["tasks.b: tasks wait for each other: b -> c -> d -> b; leave one of these edges out"]


def test_pools_that_there_are_not_are_refused() -> None:
    pools = {"default": PoolLimits(), "hpc": PoolLimits()}
    task = {"details": {"command": ["x"]}}
    assert refused({"tasks": {"a": {**task, "pool": "hcp"}, "b": {**task, "pool": "zzz"}}}, pools=pools) == [
        "tasks.a.pool: there is no pool `hcp`; did you mean `hpc`?",
        "tasks.b.pool: there is no pool `zzz`; the pools are `default` and `hpc`",
    ]
    # A run's pool that is unknown is one fault, not one fault for each task.
    assert refused({"pool": "hpcc", "tasks": {"a": task, "b": task}}, pools=pools) == [
        "pool: there is no pool `hpcc`; did you mean `hpc`?"
    ]
    assert refused({"tasks": {"a": task}}, pools=pools, default_pool="gone") == [
        "pool: there is no pool `gone`; the specification names no pool, so this is the default one"
    ]


def test_resources_that_a_pool_can_never_have_are_refused_naming_the_setting() -> None:
    pools = {
        "default": PoolLimits({"cores": 8, "memory_mb": 1000}, "`workers` of [pools.default]"),
        "agents": PoolLimits(),
    }

    def task(pool: str, **resources: int) -> Any:
        return {"details": {"command": ["x"], "resources": resources}, "pool": pool}

    spec = {
        "tasks": {
            "fits": task("default", cores=8, memory_mb=1000, gpu=0),
            "large": task("default", cores=9),
            "other": task("default", gpu=1),
            "any": task("agents", gpu=64),
        }
    }
    assert refused(spec, pools=pools) == [
        "tasks.large.details.resources.cores: 9 of `cores` can never be had: a host of the pool `default` has 8 at most; "
        "change `workers` of [pools.default], or ask for less",
        "tasks.other.details.resources.gpu: 1 of `gpu` can never be had: a host of the pool `default` has none; "
        "change `workers` of [pools.default], or ask for less",
    ]


def test_nothing_is_known_of_pools_without_them() -> None:
    spec = {"pool": "anything", "tasks": {"a": {"details": {"command": ["x"], "resources": {"gpu": 99}}}}}
    assert graph_of(spec).policies == [Policy("anything", (("cores", 1), ("gpu", 99)))]
