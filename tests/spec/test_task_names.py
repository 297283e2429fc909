"""Every task, expansion, head and tail has a name of its own. Specifications in which two names are equal are refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from written_specs import graph_of, refused

from daggyr_server.core.graph.segments import ExpandedSegment


def spec(parameters: dict[str, Sequence[str]], **commands: str) -> dict[str, Any]:
    tasks = {name: {"details": {"command": ["run", word]}} for name, word in commands.items()}
    return {"parameters": parameters, "tasks": tasks}


def test_a_task_called_like_an_expansion_is_refused() -> None:
    found = spec({"X": ["1", "2"]}, **{"a": "X", "a.X:2": "none"})
    assert refused(found) == [
        "tasks.a.X:2: the name `a.X:2` would also be that of a task that `a` expands to; rename one of the two"
    ]


def test_a_task_called_like_a_tail_is_refused_but_not_beside_a_single_task() -> None:
    assert len(refused(spec({"X": ["1", "2"]}, **{"a.tail": "none", "a": "X"}))) == 1
    assert graph_of(spec({"X": ["1"]}, **{"a.tail": "none", "a": "X"})).size == 2


def test_expansions_of_two_tasks_with_one_name_are_refused() -> None:
    found = spec({"X": ["1.Y:2", "3"], "Y": ["2", "4"]}, **{"a": "X", "a.X:1": "Y"})
    assert refused(found) == [
        "tasks.a.X:1: the name `a.X:1.Y:2` would also be that of a task that `a` expands to; rename one of the two"
    ]
    # A head has the name of an expansion, and so has a tail.
    assert len(refused(spec({"X": ["1", "2"], "Y": ["2", "4"]}, **{"a": "X", "a.X:1": "Y"}))) == 1
    assert len(refused(spec({"X": ["1.tail", "2"], "Y": ["2", "4"]}, **{"a": "X", "a.X:1": "Y"}))) == 1


def test_alike_names_that_differ_are_fine() -> None:
    assert graph_of(spec({"DATE": ["1", "2"]}, **{"t": "DATE", "t.D": "DATE", "t.tailor": "x", "t.DATE:3": "x"})).size == 10


def test_two_expansions_of_one_task_with_one_name_are_refused() -> None:
    found = spec({"A": ["1", "1.B:2"], "B": ["2.B:3", "3"]}, t="AB")
    found["tasks"]["t"]["details"]["command"] = ["A", "B"]
    assert refused(found) == [
        "tasks.t: two of its expansions would be called `t.A:1.B:2.B:3`, the one with A=`1`, B=`2.B:3` and the one with "
        "A=`1.B:2`, B=`3`; choose other values"
    ]
    # What stands before the values that are alike is that of both.
    found = spec({"A": ["0", "1"], "B": ["1", "1.C:2"], "C": ["3", "2.C:3"]}, t="ABC")
    found["tasks"]["t"]["details"]["command"] = ["A", "B", "C"]
    assert refused(found) == [
        "tasks.t: two of its expansions would be called `t.A:0.B:1.C:2.C:3`, the one with A=`0`, B=`1`, C=`2.C:3` and "
        "the one with A=`0`, B=`1.C:2`, C=`3`; choose other values"
    ]
    found = spec({"A": ["1", "1.B:2"], "B": ["2.B:3", "3"]}, t="AB")
    found["tasks"]["t"]["details"]["command"] = ["A", "B"]
    found["parameters"]["B"] = ["2", "3"]
    assert graph_of(found).size == 6


TEXTS = st.text(alphabet="1.B:", max_size=5)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_specification_is_refused_exactly_if_two_names_are_equal(data: st.DataObject) -> None:
    parameters = {
        name: data.draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True))
        for name in data.draw(st.lists(st.sampled_from(["A", "B", "B:", "C.B"]), min_size=1, max_size=3, unique=True))
    }
    names = data.draw(st.lists(st.sampled_from(["t", "t.B:1", "t.tail", "t.C", "t.B:", "t.A:1.B:1"]), min_size=1, unique=True))
    used = {name: data.draw(st.lists(st.sampled_from(sorted(parameters)), unique=True)) for name in names}
    tasks = {name: {"details": {"command": ["run", *used[name]]}} for name in names}

    every: list[str] = []
    for name in names:
        # The longest name wins, so that there is no `B` within `B:`.
        keys = sorted(used[name])
        combinations = list(product(*(parameters[key] for key in keys)))
        every.append(name)
        if len(combinations) > 1:
            every.append(f"{name}.tail")
            every += [
                ".".join([name, *(f"{key}:{value}" for key, value in zip(keys, values, strict=True))]) for values in combinations
            ]
    found = {"parameters": parameters, "tasks": tasks}
    if len(set(every)) == len(every):
        graph = graph_of(found)
        assert sorted(graph.task_id(number) for number in range(graph.size)) == sorted(every)
    else:
        refused(found)


def test_large_lists_of_values_are_compared_in_time() -> None:
    values = [f"{number}.x" for number in range(100_000)]
    found = spec({"A": values, "B": ["1", "2"]}, **{"t": "A", "t.A:7": "B", "t.A:7.x.y": "B"})
    found["tasks"]["u"] = {"details": {"command": ["A", "B"]}}
    graph = graph_of(found)
    assert graph.size == 100_002 + 4 + 4 + 200_002
    assert sum(isinstance(segment, ExpandedSegment) for segment in graph.segments) == 4
