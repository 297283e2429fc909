"""`expand_generated`: what generators print is added to the run's graph, or is refused for a reason and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_specs import document, executed, graph_of, naive, named_edges, specifications, waits_for

from daggyr_server.core.graph.graph import Addition, Graph
from daggyr_server.core.graph.segments import Policy
from daggyr_server.spec import PoolLimits, SpecificationError, expand_generated

TASK: dict[str, Any] = {"details": {"command": ["x"]}}
VALUES = {"{{A}}": ("1", "2"), "{{B}}": ("p",)}


def run(**tasks: dict[str, Any]) -> Graph:
    """Return the graph of a run that has the parameters above."""
    parameters = {name: list(values) for name, values in VALUES.items()}
    return graph_of({"parameters": parameters, "tasks": {name: {**TASK, **task} for name, task in tasks.items()}})


def expanded(**fields: Any) -> dict[str, Any]:
    return {"details": {"command": ["x", "{{A}}"]}, **fields}


def generate(graph: Graph, generator: str, tasks: Any, **options: Any) -> Addition:
    number = graph.number_of(generator)
    assert number is not None
    arguments = {"run_parameters": VALUES, "pools": None, "default_pool": "default", **options}
    data = tasks if isinstance(tasks, bytes) else document(tasks)
    return expand_generated(data, graph=graph, generator=number, **arguments)


def extended(graph: Graph, generator: str, tasks: Any) -> set[tuple[str, str]]:
    """Return the edges that come with generated tasks, but for those inside of expanded tasks."""
    before = named_edges(graph)
    graph.extend(generate(graph, generator, tasks))
    return {edge for edge in named_edges(graph) - before if edge[0] != edge[1].partition(".")[0] != edge[0].partition(".")[0]}


def refused(graph: Graph, generator: str, tasks: Any, **options: Any) -> list[str]:
    before = named_edges(graph)
    with pytest.raises(SpecificationError) as caught:
        generate(graph, generator, tasks, **options)
    assert named_edges(graph) == before
    return str(caught.value).splitlines()


def test_tasks_come_between_the_generator_and_its_children() -> None:
    graph = run(gen={"children": ["after", "other"]}, after={}, other={})
    found = extended(graph, "gen", {"new": TASK, "chain": {**TASK, "children": ["new"]}})
    assert found == {("gen", "chain"), ("chain", "new"), ("new", "after"), ("new", "other")}


def test_a_generator_at_the_end_of_a_run_may_go_on() -> None:
    assert extended(run(gen={}), "gen", {"new": TASK}) == {("gen", "new")}


def test_no_tasks_change_nothing() -> None:
    assert generate(run(gen={"children": ["b"]}, b={}), "gen", {}) == Addition()


def test_tasks_are_expanded_with_the_runs_parameters() -> None:
    graph = run(gen={"children": ["after"]}, after={})
    addition = generate(graph, "gen", {"new": {"details": {"command": ["x", "{{A}}", "{{B}}"]}}, "one": TASK})
    assert [segment.base for segment in addition.segments] == [2, 3]
    graph.extend(addition)
    names = ["one", "new", "new.{{A}}:1.{{B}}:p", "new.{{A}}:2.{{B}}:p", "new.tail"]
    assert [graph.task_id(number) for number in range(2, graph.size)] == names
    assert list(executed(graph, 4).command) == ["x", "1", "p"]
    assert {edge for edge in named_edges(graph) if "after" in edge} == {("gen", "after"), ("one", "after"), ("new.tail", "after")}


def test_parents_may_be_any_task_of_the_run() -> None:
    graph = run(gen={}, other={}, wide=expanded())
    tasks = {
        "a": {**TASK, "parents": ["other", "gen", {"task": "other"}]},
        "b": {**TASK, "parents": ["wide", "wide.{{A}}:2"]},
        "c": {**TASK, "parents": ["wide.tail", "a"]},
    }
    assert extended(graph, "gen", tasks) == {
        ("other", "a"),
        ("gen", "a"),
        ("wide.tail", "b"),
        ("wide.{{A}}:2", "b"),
        ("wide.tail", "c"),
        ("a", "c"),
    }


def test_children_may_be_descendants_of_the_generator_only() -> None:
    graph = run(gen={"children": ["b"]}, b={"children": ["wide"]}, wide=expanded(), other={}, before={"children": ["gen"]})
    found = extended(graph, "gen", {"new": {**TASK, "children": ["wide", "wide.tail", "b", "wide"]}})
    assert found == {("gen", "new"), ("new", "b"), ("new", "wide"), ("new", "wide.tail")}
    hint = "does not depend on the generator; children of generated tasks come with them or descend from their generator"
    assert refused(graph, "gen", {"n": {**TASK, "children": ["other", "before", "gen", "nobody"]}}) == [
        "n.children[3]: there is no task `nobody`",
        f"n.children[0]: the child `other` {hint}",
        f"n.children[1]: the child `before` {hint}",
        f"n.children[2]: the child `gen` {hint}",
    ]


def test_an_expansion_that_generates_holds_its_tail_back() -> None:
    graph = run(gen=expanded(children=["after"]), after={})
    assert extended(graph, "gen.{{A}}:1", {"new": TASK}) == {("gen.{{A}}:1", "new"), ("new", "gen.tail")}


def test_a_matched_child_of_a_generator_waits_for_what_it_generates() -> None:
    graph = run(gen=expanded(), after=expanded(parents=[{"task": "gen", "match": ["{{A}}"]}]))
    assert extended(graph, "gen.{{A}}:1", {"new": TASK}) == {
        ("gen.{{A}}:1", "new"),
        ("new", "gen.tail"),
        ("new", "after.{{A}}:1"),
    }


def test_new_tasks_match_new_and_existing_ones() -> None:
    graph = run(gen={}, wide=expanded())
    tasks = {
        "new": expanded(parents=[{"task": "wide", "match": ["{{A}}"]}]),
        "more": expanded(parents=[{"task": "new", "match": ["{{A}}"]}]),
        "one": {
            "details": {"command": ["{{A}}"]},
            "parameters": {"{{A}}": ["2"]},
            "parents": [{"task": "wide", "match": ["{{A}}"]}],
        },
    }
    found = extended(graph, "gen", tasks)
    assert found == {
        ("wide.{{A}}:1", "new.{{A}}:1"),
        ("wide.{{A}}:2", "new.{{A}}:2"),
        ("new.{{A}}:1", "more.{{A}}:1"),
        ("new.{{A}}:2", "more.{{A}}:2"),
        ("wide.{{A}}:2", "one"),
    }
    single = run(gen={}, narrow={})
    assert refused(single, "gen", {"new": expanded(parents=[{"task": "narrow", "match": ["{{A}}"]}])}) == [
        "new.parents[0]: the parent `narrow` has no expansions that could be matched; name it without `match`"
    ]
    lacking = {**expanded(parents=[{"task": "wide", "match": ["{{A}}"]}]), "parameters": {"{{A}}": ["1", "9"]}}
    assert refused(graph, "gen", {"lacking": lacking}) == [
        "lacking.parents[0]: the parent `wide` has no expansion with `{{A}}` equal to `9`; "
        "each value of the child must be one of the parent's"
    ]


def test_names_that_the_run_has_are_refused() -> None:
    graph = run(gen={}, wide=expanded(), **{"t.tail": {}, "u.{{A}}:1": {}, "v.{{A}}:1": expanded()})
    hint = "give the generated task another name"
    assert refused(graph, "gen", {"gen": TASK, "wide.tail": TASK, "wide.{{A}}:2": TASK, "wide": TASK, "fine": TASK}) == [
        f"gen: the run has a task `gen` already; {hint}",
        f"wide.tail: the run has a task `wide.tail` already; {hint}",
        f"wide.{{{{A}}}}:2: the run has a task `wide.{{{{A}}}}:2` already; {hint}",
        f"wide: the run has a task `wide` already; {hint}",
    ]
    assert refused(graph, "gen", {"t": expanded(), "u": expanded(), "v": expanded()}) == [
        f"t: the run has a task `t.tail` already; {hint}",
        f"u: the run has a task `u.{{{{A}}}}:1` already; {hint}",
        f"v: the run has a task `v.{{{{A}}}}:1` already; {hint}",
    ]
    odd = graph_of({"tasks": {"gen": TASK, "w.X:1": {"details": {"command": ["Y"]}, "parameters": {"Y": ["2", "3"]}}}})
    clash = {"w": {"details": {"command": ["X"]}, "parameters": {"X": ["1.Y:2", "4"]}}}
    assert refused(odd, "gen", clash) == [f"w: the run has a task `w.X:1.Y:2` already; {hint}"]
    odd = graph_of({"tasks": {"gen": TASK, **clash}})
    clash = {"w.X:1": {"details": {"command": ["Y"]}, "parameters": {"Y": ["2", "3"]}}}
    assert refused(odd, "gen", clash) == [f"w.X:1: the run has a task `w.X:1.Y:2` already; {hint}"]


def test_cycles_among_new_tasks_and_through_the_run_are_refused() -> None:
    graph = run(gen={"children": ["b"]}, b={"children": ["c"]}, c={})
    ring = {"x": {**TASK, "children": ["y"]}, "y": {**TASK, "children": ["x"]}}
    assert refused(graph, "gen", ring) == ["x: tasks wait for each other: x -> y -> x; leave one of these edges out"]
    through = {"x": {**TASK, "parents": ["c"], "children": ["y"]}, "y": {**TASK, "children": ["b"]}}
    assert refused(graph, "gen", through) == ["x: tasks wait for each other: x -> y -> b -> c -> x; leave one of these edges out"]
    # A task without children gets those of the generator, here `b`, for which it waits itself.
    assert refused(graph, "gen", {"x": {**TASK, "parents": ["b"]}}) == [
        "x: tasks wait for each other: x -> b -> x; leave one of these edges out"
    ]
    assert extended(graph, "gen", {"x": {**TASK, "parents": ["b"], "children": ["c"]}}) == {("b", "x"), ("x", "c")}


def test_policies_are_used_again_and_new_ones_come_behind() -> None:
    graph = run(gen={}, b={"priority": 5})
    addition = generate(graph, "gen", {"x": TASK, "y": {**TASK, "priority": 7}, "z": {**TASK, "priority": 5}})
    assert addition.policies == [Policy("default", (("cores", 1),), 7)]
    graph.extend(addition)
    assert [graph.policy(number).priority for number in range(graph.size)] == [0, 5, 0, 7, 5]
    assert [graph.policy_index(number) for number in range(graph.size)] == [0, 1, 0, 2, 1]


def test_pools_are_checked() -> None:
    graph = run(gen={})
    pools = {"default": PoolLimits({"cores": 2}, "`workers`")}
    tasks = {"x": {**TASK, "pool": "nowhere"}, "y": {"details": {"command": ["x"], "resources": {"cores": 3}}}}
    assert refused(graph, "gen", tasks, pools=pools) == [
        "x.pool: there is no pool `nowhere`; the pools are `default`",
        "y.details.resources.cores: 3 of `cores` can never be had: a host of the pool `default` has 2 at most; "
        "change `workers`, or ask for less",
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the document is empty; print {} if there are no tasks"),
        (b"hello\n", "line 1, column 1: the document is no JSON: expecting value"),
        (b"[]", "an object (in braces) is needed; tasks stand in it by their names"),
        (b'{"tasks": {}}', "tasks: a generator prints tasks, not a run; print the object alone that stands under `tasks`"),
        (b'{"tasks": {"a": {"details": {"command": ["x"]}}}, "tags": {}}', "tasks: a generator prints tasks, not a run"),
        (b'{"tasks": {"details": {}}}', "tasks.details: `command` is missing"),
        (b'{"a": 1, "a": 2}', "a: a task of this name stands more than once; all but one would be lost"),
        (b'{"a": {"details": {"command": []}}}', "a.details.command: a list of the program and its arguments is needed"),
        (b'{"": {"details": {"command": ["x"]}}}', '"": the name of a task is empty'),
        (b'{"a": {"details": {"command": ["x"]}, "parents": ["gem"]}}', "a.parents[0]: there is no task `gem`"),
    ],
)
def test_rubbish_is_refused_with_the_reason(data: bytes, expected: str) -> None:
    assert refused(run(gen={}), "gen", data)[0].startswith(expected)


def test_a_great_many_edges_are_refused() -> None:
    after = {f"after{number}": {} for number in range(4_000)}
    graph = run(gen={"children": list(after)}, **after)
    tasks = {f"n{number}": TASK for number in range(4_000)}
    assert refused(graph, "gen", tasks) == [
        "the generated tasks would have 16,000,000 edges to the run's tasks, more than 10,000,000; "
        "generate one more task, with all the others as parents"
    ]


@settings(deadline=None, max_examples=200)
@given(specifications(), st.data())
def test_what_is_accepted_keeps_the_rules_and_what_is_refused_breaks_one(spec: dict[str, Any], data: st.DataObject) -> None:
    graph = graph_of(spec)
    existing = [graph.task_id(number) for number in range(graph.size)]
    generator = data.draw(st.sampled_from([name for name in existing if naive(spec).commands[name] is not None]))
    names = data.draw(st.lists(st.sampled_from(["n1", "n2", "n3"]), min_size=1, unique=True))
    ends = [*names, *existing]
    tasks = {
        name: {
            **TASK,
            "parents": data.draw(st.lists(st.sampled_from(ends), max_size=2)),
            "children": data.draw(st.lists(st.sampled_from(ends), max_size=2)),
        }
        for name in names
    }

    edges = set(named_edges(graph))
    heads = {name for name, command in naive(spec).commands.items() if command is None and f"{name}.tail" in existing}
    new = {(f"{parent}.tail" if parent in heads else parent, name) for name in names for parent in tasks[name]["parents"]}
    new |= {(name, child) for name in names for child in tasks[name]["children"]}
    before = waits_for(edges)
    allowed = all(child in names or (generator, child) in before for _, child in new)
    roots = [name for name in names if not any(child == name for _, child in new)]
    leaves = [name for name in names if not any(parent == name for parent, _ in new)]
    new |= {(generator, name) for name in roots}
    new |= {(name, child) for name in leaves for parent, child in edges if parent == generator}
    cyclic = any(above == below for above, below in waits_for(edges | new))
    try:
        addition = generate(graph, generator, tasks)
    except SpecificationError:
        assert not allowed or cyclic
        return
    assert allowed
    assert not cyclic
    graph.extend(addition)
    assert named_edges(graph) == edges | new
    for number in range(graph.size):
        assert {graph.task_id(parent) for parent in graph.parents(number)} == {
            above for above, below in edges | new if below == graph.task_id(number)
        }
