"""Other values for a document's parameters: what `--param` makes of a document, and which names it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from written_specs import document

from daggyr_server.spec import SpecificationError, decode_json
from daggyr_server.spec.given import with_values

TASK: dict[str, Any] = {"details": {"command": ["x", "{{DATE}}", "<N>"]}}
RUN: dict[str, Any] = {
    "x-note": {"b": 1},
    "parameters": {"{{DATE}}": ["2026-01-01"], "<N>": ["1", "2"]},
    "tasks": {"a": TASK, "b": {**TASK, "parameters": {"{{OWN}}": ["o"]}}},
}


def given(spec: Any, **values: list[str]) -> tuple[Any, list[str]]:
    warnings: list[str] = []
    data = spec if isinstance(spec, bytes) else document(spec)
    return json.loads(with_values(data, values, warnings)), warnings


def refused(spec: Any, values: dict[str, list[str]]) -> list[str]:
    with pytest.raises(SpecificationError) as caught:
        with_values(document(spec), values, [])
    return str(caught.value).splitlines()


def test_a_parameter_gets_other_values_and_nothing_else_changes() -> None:
    for name in ("DATE", "{{DATE}}", "{DATE}"):
        made, warnings = given(RUN, **{name: ["2026-02-01", 'a"\\']})
        assert made == {**RUN, "parameters": {"{{DATE}}": ["2026-02-01", 'a"\\'], "<N>": ["1", "2"]}}
        assert list(made) == list(RUN)
        assert list(made["parameters"]) == list(RUN["parameters"])
        assert not warnings
    made, _ = given(b"\xef\xbb\xbf" + document(RUN), N=["7"], DATE=["d"])
    assert made["parameters"] == {"{{DATE}}": ["d"], "<N>": ["7"]}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("DAET", "--param DAET: the run has no such parameter; did you mean `DATE`?"),
        ("POINT", "--param POINT: the run has no such parameter; its parameters are `{{DATE}}` and `<N>`"),
        (
            "OWN",
            "--param OWN: the run has no such parameter; the task `b` has it as its own; "
            "--param is for those under `parameters` of the run",
        ),
    ],
)
def test_a_name_that_means_no_parameter_of_the_run_is_refused(name: str, fault: str) -> None:
    assert refused(RUN, {name: ["1"]}) == [fault]
    assert refused(RUN, {name: ["1"], "N": ["2"], "!": ["3"]}) == [
        fault,
        "--param !: the run has no such parameter; its parameters are `{{DATE}}` and `<N>`",
    ]


def test_a_name_that_could_mean_two_parameters_or_means_one_twice() -> None:
    two = {**RUN, "parameters": {"{{DATE}}": ["1"], "<DATE>": ["2"]}}
    assert refused(two, {"DATE": ["3"]}) == ["--param DATE: `{{DATE}}` and `<DATE>` could be meant; write the whole name"]
    assert given(two, **{"<DATE>": ["3"]})[0]["parameters"] == {"{{DATE}}": ["1"], "<DATE>": ["3"]}
    assert refused(RUN, {"DATE": ["1"], "{{DATE}}": ["2"]}) == [
        "--param {{DATE}}: `{{DATE}}` is given values twice; write them into a file, one a line: NAME=@FILE"
    ]
    assert refused({"tasks": {"a": TASK}}, {"DATE": ["3"]}) == [
        "--param DATE: the run has no such parameter; it has none; they are listed under `parameters`"
    ]


def test_the_faults_of_the_document_are_told_with_those_of_names() -> None:
    spec = {**RUN, "tasks": {"a": {**TASK, "parents": ["b"], "needs": []}}}
    assert refused(spec, {"DAET": ["1"]}) == [
        "--param DAET: the run has no such parameter; did you mean `DATE`?",
        "tasks.a.needs: there is no such key; it is called `parents` here",
        "tasks.a.parents[0]: there is no task `b`",
    ]


def test_a_task_that_keeps_values_of_its_own_is_told() -> None:
    spec = {**RUN, "tasks": {"a": TASK, "b": {**TASK, "parameters": {"{{DATE}}": ["o"]}}}}
    made, warnings = given(spec, DATE=["d"])
    assert made["tasks"] == spec["tasks"]
    assert warnings == ["tasks.b.parameters: the task keeps its own values of `{{DATE}}`, whatever --param says"]


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"\xff", b'{"parameters": 5, "tasks": {}}', b'{"parameters": {}, "tasks": 5}'),
        b'{"parameters": {"A": ["1"]}, "parameters": {"A": ["2"]}, "tasks": {"a": {"details": {"command": ["A"]}}}}',
        b'{"parameters": {"A": ["1"], "A": ["2"]}, "tasks": {"a": {"details": {"command": ["A"]}}}}',
        b'{"parameters": {"A": ["1"], "\\u0041": ["2"]}, "tasks": {"a": {"details": {"command": ["A"]}}}}',
        b'{"pool": "a", "pool": "b\\u003a", "parameters": {"A": ["1"]}, "tasks": {"a": {"details": {"command": ["A"]}}}}',
    ],
)
def test_a_document_that_is_wrong_comes_back_so_that_its_faults_are_told(text: bytes) -> None:
    assert with_values(text, {"A": ["3"]}, []) == text
    with pytest.raises(SpecificationError):
        decode_json(text)


def test_wrong_values_are_told_by_whoever_reads_the_document() -> None:
    from written_specs import refused as told

    made, _ = given(RUN, DATE=["1", "1"])
    assert told(made) == ["parameters.{{DATE}}: the list has `1` more than once; each value makes a task of its own"]
