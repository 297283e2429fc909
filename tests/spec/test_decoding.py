"""`decode_json`: which documents are specifications, and that all faults of a document are told together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from written_specs import document, specifications

from daggyr_server.spec import (
    Details,
    Fault,
    ParentReference,
    RunSpec,
    SpecificationError,
    TaskDefinition,
    decode_json,
    encode_json,
)

FULL = {
    "tags": {"env": "test"},
    "parameters": {"{{DATE}}": ["2022-01-01", "2022-01-02"]},
    "pool": "default",
    "tasks": {
        "extract": {
            "details": {
                "command": ["./extract.sh", "{{DATE}}"],
                "environment": {"DAY": "{{DATE}}"},
                "timeout": 300,
                "resources": {"cores": 1, "memory_mb": 100},
                "working_directory": "work",
                "stdin": "",
            },
            "children": ["load"],
            "max_retries": 2,
            "retry_delay": 5,
        },
        "load": {
            "details": {"command": ["./load.sh", "{{DATE}}"]},
            "parents": [{"task": "extract", "match": ["{{DATE}}"]}, "extract"],
            "parameters": {"{{DATE}}": ["2022-01-01"]},
            "is_generator": False,
            "pool": "hpc",
            "priority": -1,
        },
    },
}
TASK: dict[str, Any] = {"details": {"command": ["true"]}}


def faults(data: bytes) -> list[str]:
    with pytest.raises(SpecificationError) as caught:
        decode_json(data)
    return str(caught.value).splitlines()


def task_faults(task: Any) -> list[str]:
    return faults(document({"tasks": {"a": task}}))


def test_every_key_of_the_design_is_read() -> None:
    spec = decode_json(document(FULL))
    assert spec.tags == {"env": "test"}
    assert spec.pool == "default"
    assert spec.run_parameters() == {"{{DATE}}": ("2022-01-01", "2022-01-02")}
    assert dict(spec.definitions()) == {
        "extract": TaskDefinition(
            details=Details(
                command=["./extract.sh", "{{DATE}}"],
                environment={"DAY": "{{DATE}}"},
                timeout=300.0,
                resources={"cores": 1, "memory_mb": 100},
                working_directory="work",
                stdin="",
            ),
            children=["load"],
            max_retries=2,
            retry_delay=5.0,
        ),
        "load": TaskDefinition(
            details=Details(command=["./load.sh", "{{DATE}}"]),
            parents=[ParentReference(task="extract", match=["{{DATE}}"]), "extract"],
            parameters={"{{DATE}}": ["2022-01-01"]},
            is_generator=False,
            pool="hpc",
            priority=-1,
        ),
    }
    assert spec.definition("load").pool == "hpc"


def test_what_is_not_given_is_unset_and_stays_so() -> None:
    data = document({"tasks": {"a": TASK}})
    spec = decode_json(data)
    assert not any((spec.tags, spec.parameters, spec.pool))
    assert spec.run_parameters() == {}
    assert json.loads(encode_json(spec)) == {"tasks": {"a": TASK}}


@settings(deadline=None)
@given(specifications())
def test_encoding_gives_the_document_back(spec: dict[str, Any]) -> None:
    decoded = decode_json(document(spec))
    assert json.loads(encode_json(decoded)) == spec
    again = decode_json(encode_json(decoded))
    assert encode_json(again) == encode_json(decoded)
    assert list(again.definitions()) == list(decoded.definitions())


def test_tags_and_pool_can_be_put_over_the_documents() -> None:
    spec = decode_json(document(FULL))
    other = spec.with_overrides(tags={"env": "prod", "who": "me"}, pool="farm")
    assert other.tags == {"env": "prod", "who": "me"}
    assert other.pool == "farm"
    assert other.tasks == spec.tasks
    assert spec.with_overrides().pool == "default"
    assert spec.tags == {"env": "test"}
    for options in ({"tags": {"a": "\0"}}, {"pool": "\0"}):
        with pytest.raises(SpecificationError, match="NUL"):
            spec.with_overrides(**options)  # type: ignore[arg-type]


def test_all_faults_are_told_together_each_with_task_place_and_hint() -> None:
    data = document(
        {
            "tag": {},
            "parameters": {"{{A}}": []},
            "tasks": {
                "a": {"details": {"command": ["x"], "children": ["b"], "timeout": "5"}, "children": ["c", "b"], "cmd": 1},
                "b": {"details": {"command": ["a", 5], "env": {}}, "parents": [5, {"task": "x", "mach": []}, "nobody"]},
                "c": {"details": {"command": []}, "children": ["a"], "max_retries": 1.5},
            },
        }
    )
    with pytest.raises(SpecificationError) as caught:
        decode_json(data)
    assert [(fault.task, str(fault)) for fault in caught.value.faults] == [
        (None, "tag: there is no such key; did you mean `tags`?"),
        (None, "parameters.{{A}}: a list of one value at least is needed, an empty one was given"),
        ("a", "tasks.a.cmd: there is no such key; it is called `command`, and belongs inside `details`"),
        ("a", "tasks.a.details.children: there is no such key; `children` belongs beside `details`, not inside it"),
        (
            "a",
            'tasks.a.details.timeout: a number of seconds is needed, the text "5" was given; write it without quotes: 5',
        ),
        ("b", "tasks.b.details.env: there is no such key; it is called `environment` here"),
        ("b", 'tasks.b.details.command[1]: text is needed, the number 5 was given; write it as text: "5"'),
        ("b", "tasks.b.parents[0]: a task's name, or an object with `task` and `match`, is needed, the number 5 was given"),
        ("b", "tasks.b.parents[1].mach: there is no such key; did you mean `match`?"),
        ("c", "tasks.c.details.command: a list of the program and its arguments is needed, an empty one was given"),
        ("c", "tasks.c.max_retries: a whole number is needed, the number 1.5 was given; write 2"),
        ("b", "tasks.b.parents[1]: there is no task `x`"),
        ("b", "tasks.b.parents[2]: there is no task `nobody`"),
        ("a", "tasks.a: tasks wait for each other: a -> c -> a; leave one of these edges out"),
    ]
    assert caught.value.count == 14


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({}, "tasks.a: `details` is missing; every task has one"),
        (3, "tasks.a: an object with `details` is needed, the number 3 was given"),
        ({"details": []}, "tasks.a.details: an object with `command` or `script` is needed, a list was given"),
        (
            {"details": {"command": "echo hi"}},
            "tasks.a.details.command: a list of the program and its arguments is needed, "
            'the text "echo hi" was given; write ["sh", "-c", "echo hi"], '
            "or make it the task's `script`",
        ),
        ({"details": {"command": [""]}}, "tasks.a.details.command[0]: a program's name is needed, an empty text was given"),
        (
            {"details": {"command": ["x", True, None]}},
            'tasks.a.details.command[1]: text is needed, true was given; write it as text: "true"\n'
            "tasks.a.details.command[2]: text is needed, null was given; leave the key out instead",
        ),
        (
            {"details": {"command": ["x\0"]}},
            "tasks.a.details.command[0]: the text holds a NUL character, which no command or variable can hold; leave it out",
        ),
        (
            {"details": {"command": ["x"], "environment": {"A=B": "1"}}},
            "tasks.a.details.environment.A=B: the name of an environment variable (not empty, without `=`) is needed, "
            "`A=B` was given",
        ),
        (
            {"details": {"command": ["x"], "environment": {"A=B": "", "": "1", "OK": 1}}},
            "tasks.a.details.environment.A=B: the name of an environment variable (not empty, without `=`) is needed, "
            "`A=B` was given\n"
            'tasks.a.details.environment."": the name of an environment variable (not empty, without `=`) is needed, '
            "an empty text was given\n"
            'tasks.a.details.environment.OK: text is needed, the number 1 was given; write it as text: "1"',
        ),
        (
            {"details": {"command": ["x"], "resources": {"cores": True, "gpu": -1, "mem": "5", "x": 1.5, "y": 10**40}}},
            "tasks.a.details.resources.cores: a whole number of units is needed, true was given\n"
            "tasks.a.details.resources.gpu: a whole number of units from 0 to 9,223,372,036,854,775,807 is needed, "
            "-1 was given\n"
            "tasks.a.details.resources.mem: a whole number of units is needed, "
            'the text "5" was given; write it without quotes: 5\n'
            "tasks.a.details.resources.x: a whole number of units is needed, the number 1.5 was given; write 2\n"
            "tasks.a.details.resources.y: a whole number of units from 0 to 9,223,372,036,854,775,807 is needed, "
            "a number of more than 30 digits was given",
        ),
        (
            {"details": {"command": ["x"], "timeout": -1}},
            "tasks.a.details.timeout: a number of seconds from 0 to 1,000,000,000 is needed, -1 was given",
        ),
        ({**TASK, "children": "b"}, 'tasks.a.children: a list of task names is needed, the text "b" was given; write ["b"]'),
        (
            {**TASK, "children": None},
            "tasks.a.children: a list of task names is needed, null was given; leave the key out instead",
        ),
        ({**TASK, "isGenerator": True}, "tasks.a.isGenerator: there is no such key; did you mean `is_generator`?"),
        ({**TASK, "command": []}, "tasks.a.command: there is no such key; `command` belongs inside `details`"),
        ({**TASK, "tags": {}}, "tasks.a.tags: there is no such key; `tags` belongs to the run, beside `tasks`"),
        (
            {**TASK, "is_generator": "yes"},
            'tasks.a.is_generator: true or false is needed, the text "yes" was given; write true or false, without quotes',
        ),
        (
            {**TASK, "priority": 2**31},
            "tasks.a.priority: a whole number from -2,147,483,648 to 2,147,483,647 is needed, 2147483648 was given",
        ),
        ({**TASK, "pool": ""}, "tasks.a.pool: the name of a pool is needed, an empty text was given"),
        (
            {**TASK, "parameters": {"": ["x"]}},
            'tasks.a.parameters."": the name of a parameter (not empty) is needed, an empty text was given',
        ),
    ],
)
def test_a_wrong_task_is_told_what_is_needed(task: Any, expected: str) -> None:
    assert "\n".join(task_faults(task)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", 'tasks."": the name of a task is empty'),
        ("a\nb", "tasks.a\\nb: the name of a task holds control characters"),
        ("a\x85b", "tasks.a\\u0085b: the name of a task holds control characters"),
        ("é" * 513, f"tasks.{'é' * 50}...{'é' * 25}: the name of a task is longer than 1,024 bytes"),
    ],
)
def test_a_wrong_name_is_refused(name: str, expected: str) -> None:
    assert faults(document({"tasks": {name: TASK}})) == [expected]


def test_names_of_a_kibibyte_and_odd_characters_are_fine() -> None:
    for name in ("é" * 512, "a b/c:d", "💩", "..", "\xa0"):
        assert list(decode_json(document({"tasks": {name: TASK}})).tasks) == [name]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the document is empty; it holds `tasks`, an object of one task at least"),
        (b"[]", "an object (in braces) is needed; it holds `tasks`"),
        (b"{}", "`tasks` is missing"),
        (b'{"tasks": []}', "tasks: an object (in braces) is needed; tasks stand in it by their names"),
        (b'{"tasks": {}}', "tasks: there is no task; a run has one task at least"),
        (b'{\n "tasks": {"a": nul}}', "line 2, column 17: the document is no JSON: expecting value"),
        (b'{"tasks": {"a": 1}} x', "line 1, column 21: the document is no JSON: extra data"),
        (b'{"tasks": {"\xc3\xa9": }}', "line 1, column 17: the document is no JSON: expecting value"),
        *(
            (
                b'{"tasks": {"a": %s}}' % value,
                "the document is no JSON (RFC 8259); `NaN` and `Infinity` are no numbers, "
                "and a half of a surrogate pair (`\\ud800`) is no character",
            )
            for value in (b"NaN", b"-Infinity", b'"\\ud800"', b'"\\ud800\\u0041"')
        ),
        (b'{"tasks": {"a\xff": 1}}', "line 1, column 14: the document is not UTF-8; save it as UTF-8"),
        (b"[" * 100_000, "the document is nested too deeply"),
        (b'{"command": ["x"], "tasks": {}}', "command: there is no such key; `command` belongs to a task, under `tasks`"),
    ],
)
def test_what_is_no_document_is_told_where(data: bytes, expected: str) -> None:
    assert faults(data)[0] == expected


def test_numbers_beyond_reason_are_refused_without_being_read() -> None:
    for number in (b"9" * 100_000, b"1e999", b"-" + b"9" * 400):
        data = b'{"tasks": {"a": {"details": {"command": ["x"], "timeout": ' + number + b"}}}}"
        assert faults(data)[0].startswith("tasks.a")


@pytest.mark.parametrize(
    ("data", "task", "expected"),
    [
        (b'{"tasks": {"a": %s, "b": %s, "a": %s}}', "a", "tasks.a: a task of this name stands more than once"),
        (b'{"tasks": {"a": %s}, "tasks": {"a": %s, "c": %s}}', None, "tasks: this key stands more than once"),
        (
            b'{"tasks": {"a": {"details": {"command": ["x"], "environment": {"A": "1", "B": "2", "A": "1"}}}}}',
            "a",
            "tasks.a.details.environment.A: this key stands more than once",
        ),
        (
            b'{"tasks": {"b": {"details": {"command": ["x"], "command": ["y"]}}}}',
            "b",
            "tasks.b.details.command: this key stands more than once",
        ),
        (
            b'{"tasks": {"b": {"details": {"command": ["x"]}, "parents": ["b", {"task": "b", "match": [], "task": "b"}]}}}',
            "b",
            "tasks.b.parents[1].task: this key stands more than once",
        ),
        (b'{"tags": {"a": "1", "\\u0061": "1"}, "tasks": {"b": %s}}', None, "tags.a: this key stands more than once"),
        # An escaped colon in one place does not hide a name that is repeated in another place.
        (b'{"tags": {"\\u003a": "", "x": "", "x": ""}, "tasks": {"b": %s}}', None, "tags.x: this key stands more than once"),
        (b'{"tags": {":": "", ":": ""}, "tasks": {"b": %s}}', None, "tags.:: this key stands more than once"),
    ],
)
def test_repeated_keys_are_refused_wherever_they_stand(data: bytes, task: str | None, expected: str) -> None:
    data = data.replace(b"%s", b'{"details": {"command": ["x"]}}')
    with pytest.raises(SpecificationError) as caught:
        decode_json(data)
    fault = caught.value.faults[0]
    assert str(fault) == f"{expected}; all but one would be lost"
    assert fault.task == task


def test_a_fault_in_a_parameter_does_not_make_up_others() -> None:
    child = {"details": {"command": ["X"]}, "parents": [{"task": "a", "match": ["X"]}]}
    spec: Any = {"parameters": {"X": [1, 2]}, "tasks": {"a": {"details": {"command": ["X"]}}, "b": child}}
    assert [line.split(":")[0] for line in faults(document(spec))] == ["parameters.X[0]", "parameters.X[1]"]
    spec = {"parameters": {"X": ["1", "2"]}, "tasks": {"a": {"details": {"command": ["X"], "timeout": ""}}, "b": child}}
    assert [line.split(":")[0] for line in faults(document(spec))] == ["tasks.a.details.timeout"]


def test_a_hundred_faults_are_told_and_the_others_counted() -> None:
    tasks = {f"t{number}": {"details": {"command": []}} for number in range(1_000)}
    with pytest.raises(SpecificationError) as caught:
        decode_json(document({"tasks": tasks}))
    lines = str(caught.value).splitlines()
    assert len(lines) == 101
    assert lines[-1] == "and 900 more"
    assert (len(caught.value.faults), caught.value.count) == (100, 1_000)
    short = caught.value.text(2_000)
    assert len(short.encode()) <= 2_000
    told = len(short.splitlines()) - 1
    assert short.splitlines()[:told] == lines[:told]
    assert short.splitlines()[-1] == f"and {1_000 - told} more"
    assert caught.value.text(100) == "1,000 faults, too long to be told here"


def test_a_fault_is_one_line_whatever_it_speaks_of() -> None:
    for text in ("a\nb", "\x1b[31m", "\u2028", "x" * 10_000):
        line = "\n".join(task_faults({**TASK, text: {text: text}}))
        assert len(line.splitlines()) == 1
        assert line.isprintable()
        assert len(line) < 400
    assert str(Fault(None, "place", "what", "hint")) == "place: what; hint"
    assert str(Fault(None, "", "what")) == "what"


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.sampled_from([2**31, 2**63, 10**20, -(2**31) - 1, 0.5, -0.0, 1e9, 1e10]),
        st.sampled_from(["", "a", "b", "A=B", "\0", "é", "=", "5"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["", "a", "task", "match", "A=", "x\0"]), inner, max_size=2)
    ),
    max_leaves=4,
)
GOOD: dict[str, Any] = {
    "command": ["x", "y"],
    "environment": {"A": ":"},
    "working_directory": "d",
    "stdin": "\0",
    "timeout": 1,
    "resources": {"gpu": 1, "memory_mb": "1.5GB"},
    "script": "x: y",
    "shell": ["bash", "-e"],
}
GOOD_TASK: dict[str, Any] = {
    "children": [],
    "parents": ["b", {"task": "b", "match": []}],
    "parameters": {"P": ["1"]},
    "is_generator": True,
    "max_retries": 1,
    "retry_delay": "5m",
    "pool": "p",
    "priority": -1,
    "x-note": {"a": "b:c", "d": [None]},
}
GOOD_DEFAULTS: dict[str, Any] = {
    "details": {key: value for key, value in GOOD.items() if key not in ("command", "script")},
    **{key: GOOD_TASK[key] for key in ("max_retries", "retry_delay", "pool", "priority", "x-note")},
}


@st.composite
def odd_documents(draw: st.DrawFn) -> dict[str, Any]:
    """Generate specifications of one task and a parent, some of whose values, names or keys are anything."""

    def odd(value: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value[key] for key in draw(st.lists(st.sampled_from(sorted(value)), unique=True))}
        for key in draw(st.lists(st.sampled_from([*value, "details", "x", "x-:"]), max_size=1)):
            kept[key] = draw(JSON)
        return kept

    details = {**({"command": ["x"]} if draw(st.booleans()) else {}), **odd(GOOD)}
    task = {"details": details, **odd(GOOD_TASK)}
    defaults = {**odd(GOOD_DEFAULTS), "details": odd(GOOD_DEFAULTS["details"])}
    header = odd({"tags": {"a": "b"}, "parameters": {"Q": ["1"]}, "pool": "p", "defaults": defaults, "x-note": {"a": ":"}})
    name = draw(st.sampled_from(["a", "a", "a", "", "\0", "\x7f", "a:b", "é" * 513]))
    return {**header, "tasks": {name: task, "b": TASK}}


def outcome(spec: Any, *, escaped: bool) -> RunSpec | list[str]:
    """Return a document's specification or its faults; if `escaped`, a tag has an escape, so that the decoder looks closer."""
    tags = spec.get("tags", {})
    if not isinstance(tags, dict):
        tags = {}
    data = document({**spec, "tags": {**tags, "TAG": ""}}).replace(b"TAG", b"\\u003a" if escaped else b":")
    try:
        return decode_json(data)
    except SpecificationError as error:
        return str(error).splitlines()


@settings(deadline=None, max_examples=500)
@given(odd_documents())
@example({"tasks": {"a": {"details": {"command": ["x"], "stdin": "\0"}}}})
def test_both_ways_of_reading_accept_the_same_documents(spec: dict[str, Any]) -> None:
    fast, careful = outcome(spec, escaped=False), outcome(spec, escaped=True)
    if isinstance(fast, RunSpec):
        assert isinstance(careful, RunSpec)
        assert list(fast.definitions()) == list(careful.definitions())
        for key in ("tags", "parameters", "pool", "defaults"):
            assert getattr(fast, key) == getattr(careful, key)
    else:
        assert fast == careful
        # The words are those of the specification, not those of msgspec.
        assert not any("Expected" in line or "Object" in line for line in fast)
