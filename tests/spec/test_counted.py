"""Which task a new one counts its attempts on from: the last one of its name, whatever either of them was."""

from __future__ import annotations

import json
from typing import Any

from daggyr_server.core.graph.graph import Graph
from daggyr_server.spec import decode_json, expand, expand_edit

Tasks = dict[str, dict[str, Any]]


class Edited:
    """A run's graph through edits."""

    def __init__(self, tasks: Tasks) -> None:
        self.graph = Graph()
        self.graph.extend(expand(_spec(tasks), default_pool="main"))

    def edit(self, tasks: Tasks) -> None:
        edit = expand_edit(_spec(tasks), graph=self.graph, printed=[], pools=None, default_pool="main").edit
        self.graph.retire(edit.carry)
        for addition in edit.additions:
            self.graph.extend(addition)

    def lineage(self, name: str) -> list[str]:
        """The names that a task had, newest first."""
        number = self.graph.number_of(name)
        assert number is not None
        return [self.graph.task_id(known) for known in self.graph.lineage(number)]


def _spec(tasks: Tasks) -> Any:
    return decode_json(json.dumps({"tasks": tasks}).encode())


def task(*values: str, word: str = "run") -> dict[str, Any]:
    """A task, multiplied by values of a parameter if there are any."""
    found: dict[str, Any] = {"details": {"command": [word, *(["V"] if values else [])]}}
    return {**found, "parameters": {"V": list(values)}} if values else found


def test_a_task_that_was_away_for_two_edits() -> None:
    run = Edited({"a": task(), "b": task()})
    run.edit({"b": task()})
    run.edit({"b": task(word="other")})
    run.edit({"a": task(), "b": task()})
    assert run.lineage("a") == ["a", "a"]
    assert run.lineage("b") == ["b"] * 4
    run.edit({"b": task()})
    run.edit({"b": task(), "a": task(word="other")})
    assert run.lineage("a") == ["a", "a", "a"]


def test_expansions_that_come_again_by_and_by() -> None:
    """Stretches of values, some of which were taken away by one edit and some by another."""
    run = Edited({"a": task("1", "2", "3", "4", "5")})
    run.edit({"a": task("1", "3", "5")})
    run.edit({"a": task("3", "9")})
    run.edit({"a": task("9", "5", "4", "3", "2", "1", "0")})
    lengths = {value: len(run.lineage(f"a.V:{value}")) for value in "9543210"}
    assert lengths == {"9": 2, "5": 3, "4": 2, "3": 4, "2": 2, "1": 3, "0": 1}


def test_expansions_that_come_again_together_are_one_stretch() -> None:
    values = [str(number) for number in range(1_000)]
    run = Edited({"a": task(*values), "b": task()})
    run.edit({"b": task()})
    run.edit({"a": task(*values), "b": task()})
    assert len(list(run.graph.counted_from)) == 1
    assert run.lineage("a.V:999") == ["a.V:999"] * 2


def test_what_was_an_expansion_is_a_task_of_its_own_and_the_other_way_round() -> None:
    run = Edited({"a": task("1", "2")})
    run.edit({"a.V:1": task()})
    assert run.lineage("a.V:1") == ["a.V:1"] * 2
    run.edit({"a": task("1", "2")})
    assert run.lineage("a.V:1") == ["a.V:1"] * 3
    assert run.lineage("a.V:2") == ["a.V:2"] * 2


def test_a_name_that_another_task_had_meanwhile() -> None:
    """`a` is first the one with the value 1, then the head of two, then the one with the value 2, which has its own attempts."""
    run = Edited({"a": task("1")})
    run.edit({"a": task("1", "2")})
    run.edit({"a": task("2")})
    assert run.lineage("a") == ["a", "a.V:2"]
    number = run.graph.number_of("a")
    assert number is not None
    # Its numbers begin above those that the first `a` had, all the same.
    assert run.graph.counted_from.back(number) == 0


def test_a_task_keeps_its_name_when_its_only_value_is_another() -> None:
    run = Edited({"a": task("1")})
    run.edit({"a": task("2")})
    run.edit({"a": task()})
    assert run.lineage("a") == ["a"] * 3
