"""YAML documents: scalars stay what they are, and faults of the YAML are told with their place."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from written_specs import specifications

from daggyr_server.spec import SpecificationError, decode_json, expand
from daggyr_server.spec.yaml_text import yaml_to_json


def loaded(text: str | bytes) -> Any:
    return json.loads(yaml_to_json(text.encode() if isinstance(text, str) else text))


def refused(text: str | bytes) -> list[str]:
    with pytest.raises(SpecificationError) as caught:
        yaml_to_json(text.encode() if isinstance(text, str) else text)
    return str(caught.value).splitlines()


@pytest.fixture(params=["with libyaml", "without libyaml"])
def _either_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without libyaml":
        monkeypatch.delattr(yaml, "CBaseLoader", raising=False)


@pytest.mark.usefixtures("_either_parser")
def test_scalars_are_text_where_text_belongs_and_numbers_where_numbers_do() -> None:
    text = """
    tags: {no: yes, 1: 2022-01-01}
    parameters: {"{{M}}": [1, 02, 0x10, 1e3, ~, null, no, 12:30:00, "5", '']}
    pool: 7
    tasks:
      on:
        details:
          command: [sleep, 5, 012, true]
          environment: {A: 1.50}
          timeout: 1.5
          resources: {cores: 2, memory_mb: 100}
          stdin: 3
        children: [1]
        parents: [2, {task: 3, match: [4]}]
        parameters: {P: [5]}
        is_generator: True
        max_retries: 2
        retry_delay: 1e1
        priority: -3
    """
    assert loaded(text) == {
        "tags": {"no": "yes", "1": "2022-01-01"},
        "parameters": {"{{M}}": ["1", "02", "0x10", "1e3", "~", "null", "no", "12:30:00", "5", ""]},
        "pool": "7",
        "tasks": {
            "on": {
                "details": {
                    "command": ["sleep", "5", "012", "true"],
                    "environment": {"A": "1.50"},
                    "timeout": 1.5,
                    "resources": {"cores": 2, "memory_mb": 100},
                    "stdin": "3",
                },
                "children": ["1"],
                "parents": ["2", {"task": "3", "match": ["4"]}],
                "parameters": {"P": ["5"]},
                "is_generator": True,
                "max_retries": 2,
                "retry_delay": 10.0,
                "priority": -3,
            }
        },
    }


@pytest.mark.parametrize("scalar", ["012", "+5", "0x10", "1_000", "yes", "~", "''", ".5", "1e999", "9" * 50, "five", "1.0"])
def test_what_is_no_number_as_json_writes_it_is_left_for_the_specification_to_refuse(scalar: str) -> None:
    data = yaml_to_json(f"tasks: {{a: {{details: {{command: [x]}}, max_retries: {scalar}}}}}".encode())
    with pytest.raises(SpecificationError, match=r"tasks\.a\.max_retries: a whole number is needed"):
        decode_json(data)


@settings(deadline=None)
@given(specifications())
def test_a_specification_means_the_same_as_yaml_and_as_json(spec: dict[str, Any]) -> None:
    assert loaded(yaml.safe_dump(spec, allow_unicode=True)) == spec
    assert loaded(json.dumps(spec)) == spec


@pytest.mark.usefixtures("_either_parser")
def test_anchors_aliases_and_merges_work() -> None:
    text = """
    tasks:
      a: &task {details: &details {command: [x], timeout: 5}, max_retries: 2}
      b: *task
      c:
        <<: *task
        max_retries: 3
      d:
        details: {<<: [{stdin: first}, *details, {stdin: second, timeout: 9}], "<<": text}
    """
    details = {"command": ["x"], "timeout": 5}
    assert loaded(text)["tasks"] == {
        "a": {"details": details, "max_retries": 2},
        "b": {"details": details, "max_retries": 2},
        "c": {"details": details, "max_retries": 3},
        "d": {"details": {**details, "stdin": "first", "<<": "text"}},
    }


@pytest.mark.usefixtures("_either_parser")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", ["line 3, column 1: the key `a` stands more than once here; all but one would be lost"]),
        (
            "x: {k: 1, 'k': 2}\n? [a]\n: 1\ny: !!python/name:os.system ''\n--- {}\n",
            [
                "line 1, column 11: the key `k` stands more than once here; all but one would be lost",
                "line 2, column 3: a key is a list or an object; keys are text",
                "line 4, column 4: the tag `tag:yaml.org,2002:python/name:os.system` means nothing here; leave it out",
                "line 5, column 1: a second document begins here; a file holds one specification",
            ],
        ),
        ("<<: text", ["line 1, column 5: `<<` takes mappings only; write aliases of mappings behind it"]),
        (
            "a: [{{N}}]",
            ['line 1, column 6: a key is a list or an object; keys are text, and braces need quotes: "{{NAME}}"'],
        ),
        ("a: *b", ["line 1, column 4: the document is no YAML: there is no anchor `b`"]),
        ("a: &a [*a]", ["line 1, column 8: the document is no YAML: the alias `a` is part of what it stands for"]),
        ("[" * 101, ["line 1, column 101: the document is no YAML: nested too deeply"]),
    ],
)
def test_what_is_wrong_as_yaml_is_told_where(text: str, expected: list[str]) -> None:
    assert refused(text) == expected


@pytest.mark.usefixtures("_either_parser")
@pytest.mark.parametrize(
    "data", [b"a: [1,\n b: {", b"a: b: c", b"a: \xff", b"a: \x01", b"\tx", b"a: 'x", b"%YAML 9.9\n---\na: 1"]
)
def test_what_is_no_yaml_is_told_in_a_line(data: bytes) -> None:
    (line,) = refused(data)
    assert "the document is no YAML: " in line


@pytest.mark.usefixtures("_either_parser")
@pytest.mark.parametrize("text", ["\ta: 1", "tasks:\n\ta: 1", "tasks:\n  a:\n  \tb: 1\n  c: 1"])
def test_tabs_are_named_where_they_are_the_fault(text: str) -> None:
    (line,) = refused(text)
    assert line.endswith("; indent with spaces, not with tabs")


@pytest.mark.usefixtures("_either_parser")
def test_aliases_of_aliases_are_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 40)]
    assert refused("\n".join(lines)) == [
        "line 7, column 20: the document is no YAML: aliases stand for more than 16,777,216 bytes"
    ]
    merges = ["a0: &a0 {x: 1}"]
    merges += [f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 100)}]}}" for level in range(1, 40)]
    assert len(refused("\n".join(merges))) == 1


def test_an_empty_document_is_no_specification() -> None:
    for text in ("", "# nothing\n", "---\n"):
        with pytest.raises(SpecificationError, match="an object"):
            decode_json(yaml_to_json(text.encode()))


def test_other_encodings_with_a_mark_are_read() -> None:
    text = "tasks: {é: {details: {command: [x]}}}"
    for encoding in ("utf-8-sig", "utf-16"):
        assert list(loaded(text.encode(encoding))["tasks"]) == ["é"]


def test_the_designs_example_expands() -> None:
    text = """
    tags: {env: test}
    parameters: {"{{DATE}}": ["2022-01-01", "2022-01-02"]}
    pool: default                                     # optional
    tasks:
      extract:
        details:
          command: [./extract.sh, "{{DATE}}"]         # strings; no shell unless you call one
          environment: {DAY: "{{DATE}}"}
          timeout: 300                                # seconds; 0 or absent: none
          resources: {cores: 1, memory_mb: 100}       # any name: integer; cores is 1 unless given
          working_directory: work                     # optional
          stdin: ""                                   # optional; absent: /dev/null
        children: [load]
        max_retries: 2
        retry_delay: 5                                # seconds, doubling; default 0
      other: {details: {command: [echo, "{{DATE}}"]}}
      load:
        details: {command: [./load.sh, "{{DATE}}"]}
        parents: [{task: other, match: ["{{DATE}}"]}] # or plain names
        parameters: {"{{DATE}}": [2022-01-02]}        # the task's own, over the run's
        is_generator: false
        pool: hpc                                     # optional, over the run's
        priority: 0                                   # higher first
    """
    addition = expand(decode_json(yaml_to_json(text.encode())), default_pool="default")
    assert [policy.pool for policy in addition.policies] == ["default", "default", "hpc"]
    assert sum(segment.size for segment in addition.segments) == 9
