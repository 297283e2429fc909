"""`match`: which expansions wait for which, in every combination of tasks with one and with many expansions."""

from __future__ import annotations

from typing import Any

from written_specs import graph_of, named_edges, refused

from daggyr_server.core.graph.segments import ExpandedSegment


def task(*words: str, parents: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"details": {"command": ["run", *words]}, **({"parents": parents} if parents else {}), **fields}


def match(name: str, *parameters: str) -> dict[str, Any]:
    return {"task": name, "match": list(parameters)}


def spec(a: dict[str, Any], b: dict[str, Any], **parameters: list[str]) -> dict[str, Any]:
    return {"parameters": parameters, "tasks": {"a": a, "b": b}}


def between(found: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the edges from tasks of a to tasks of b."""
    return {(above, below) for above, below in named_edges(graph_of(found)) if above[0] == "a" and below[0] == "b"}


def rules(found: dict[str, Any]) -> int:
    segments = [segment for segment in graph_of(found).segments if isinstance(segment, ExpandedSegment)]
    return sum(len(segment.match_children) for segment in segments)


def test_each_expansion_waits_for_its_equal() -> None:
    found = spec(task("X"), task("X", parents=[match("a", "X")]), X=["1", "2"])
    assert between(found) == {("a.X:1", "b.X:1"), ("a.X:2", "b.X:2")}


def test_a_parent_of_more_parameters_is_waited_for_in_all_of_the_others() -> None:
    found = spec(task("X", "Y"), task("X", parents=[match("a", "X")]), X=["1", "2"], Y=["p", "q"])
    assert between(found) == {(f"a.X:{x}.Y:{y}", f"b.X:{x}") for x in "12" for y in "pq"}


def test_a_child_of_more_parameters_waits_in_all_of_the_others() -> None:
    found = spec(task("Y"), task("X", "Y", parents=[match("a", "Y")]), X=["1", "2"], Y=["p", "q"])
    assert between(found) == {(f"a.Y:{y}", f"b.X:{x}.Y:{y}") for x in "12" for y in "pq"}


def test_a_match_of_some_common_parameters_leaves_the_others_free() -> None:
    found = spec(task("X", "Y"), task("X", "Y", parents=[match("a", "X")]), X=["1", "2"], Y=["p", "q"])
    assert between(found) == {(f"a.X:{x}.Y:{y}", f"b.X:{x}.Y:{z}") for x in "12" for y in "pq" for z in "pq"}


def test_values_may_be_some_of_the_parents_in_another_order() -> None:
    child = task("X", parents=[match("a", "X")], parameters={"X": ["3", "1"]})
    assert between(spec(task("X"), child, X=["1", "2", "3"])) == {("a.X:1", "b.X:1"), ("a.X:3", "b.X:3")}


def test_a_single_child_waits_for_the_expansions_that_have_its_value() -> None:
    child = task("X", parents=[match("a", "X")], parameters={"X": ["2"]})
    assert between(spec(task("X", "Y"), child, X=["1", "2"], Y=["p", "q"])) == {("a.X:2.Y:p", "b"), ("a.X:2.Y:q", "b")}


def test_a_single_parent_is_waited_for_by_all() -> None:
    parent = task("X", parameters={"X": ["1"]})
    child = task("X", "Y", parents=[match("a", "X")], parameters={"X": ["1"]})
    found = spec(parent, child, X=["1", "2"], Y=["p", "q"])
    assert between(found) == {("a", "b")}
    assert rules(found) == 0


def test_two_single_tasks_with_equal_values_have_a_plain_edge() -> None:
    found = spec(task("X"), task("X", parents=[match("a", "X")]), X=["1"])
    assert between(found) == {("a", "b")}


def test_single_values_alone_do_not_tell_expansions_apart() -> None:
    found = spec(task("X", "Y"), task("X", "Y", parents=[match("a", "X")]), X=["1"], Y=["p", "q"])
    assert between(found) == {("a.tail", "b")}
    assert rules(found) == 0


def test_a_single_value_beside_a_matched_one_changes_nothing() -> None:
    found = spec(task("X", "Y"), task("X", "Y", parents=[match("a", "X", "Y")]), X=["1"], Y=["p", "q"])
    assert between(found) == {(f"a.X:1.Y:{y}", f"b.X:1.Y:{y}") for y in "pq"}


def test_a_match_of_nothing_waits_for_all() -> None:
    assert between(spec(task("X"), task("X", parents=[match("a")]), X=["1", "2"])) == {("a.tail", "b")}


def test_the_same_match_twice_counts_once() -> None:
    child = task("X", "Y", parents=[match("a", "X", "Y"), match("a", "Y", "X", "Y")])
    found = spec(task("X", "Y"), child, X=["1", "2"], Y=["p", "q"])
    assert between(found) == {(f"a.X:{x}.Y:{y}", f"b.X:{x}.Y:{y}") for x in "12" for y in "pq"}
    assert rules(found) == 1


def test_a_plain_edge_beside_a_match_says_more() -> None:
    found = spec(task("X", children=["b"]), task("X", parents=[match("a", "X")]), X=["1", "2"])
    assert between(found) == {("a.tail", "b")}
    assert rules(found) == 0


def test_two_different_matches_of_one_parent_are_refused() -> None:
    found = spec(task("X", "Y"), task("X", "Y", parents=[match("a", "X"), match("a", "Y")]), X=["1", "2"], Y=["p", "q"])
    assert refused(found) == ["tasks.b.parents[1]: the parent `a` has another `match` already; name all parameters in one"]


def test_a_parameter_that_is_not_in_both_is_refused() -> None:
    hint = "match parameters that stand in the command, environment, working_directory or stdin of both"
    place = "tasks.b.parents[0]: the parameter"
    assert refused(spec(task("X"), task(parents=[match("a", "X")]), X=["1", "2"])) == [
        f"{place} `X` of this `match` is not replaced in `b`; {hint}"
    ]
    assert refused(spec(task("X"), task("X", parents=[match("a", "Z", "X")]), X=["1", "2"])) == [
        f"{place} `Z` of this `match` is not replaced in `a` and `b`; {hint}"
    ]


def test_values_that_the_parent_does_not_have_are_refused_by_name() -> None:
    child = task("X", parents=[match("a", "X")], parameters={"X": ["1", *"abcdefgh"]})
    assert refused(spec(task("X"), child, X=["1", "2"])) == [
        "tasks.b.parents[0]: the parent `a` has no expansion with `X` equal to `a`, `b`, `c`, `d`, `e` and 3 more; "
        "each value of the child must be one of the parent's"
    ]
    single = task("X", parents=[match("a", "X")], parameters={"X": ["9"]})
    assert len(refused(spec(task("X"), single, X=["1"]))) == 1


def test_a_match_that_stands_for_too_many_pairs_is_refused() -> None:
    many = [str(number) for number in range(20_000)]
    found = spec(task("X", "Y"), task("X", "Y", parents=[match("a", "X")]), X=["1", "2"], Y=many)
    assert refused(found) == [
        "tasks.b.parents[0]: this `match` stands for 800,000,000 pairs of tasks, more than 100,000,000; "
        "match more parameters, or leave `match` out to wait for all of the parent"
    ]


def test_cycles_through_matches_are_refused() -> None:
    own = spec(task("X", parents=[match("a", "X")]), task(), X=["1", "2"])
    assert refused(own) == ["tasks.a: tasks wait for each other: a -> a; leave one of these edges out"]
    across = spec(
        task("X", "Y", parents=[match("b", "X")]), task("X", "Y", parents=[match("a", "Y")]), X=["1", "2"], Y=["p", "q"]
    )
    assert refused(across) == ["tasks.a: tasks wait for each other: a -> b -> a; leave one of these edges out"]
    back = spec(task("X", parents=["b"]), task("X", parents=[match("a", "X")]), X=["1", "2"])
    assert refused(back) == ["tasks.a: tasks wait for each other: a -> b -> a; leave one of these edges out"]
