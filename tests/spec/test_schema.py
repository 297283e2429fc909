"""The JSON Schema of the run format: whatever is accepted is valid under it, and what is wrong in one value is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
import yaml
from hypothesis import given, settings
from support.readme_examples import ROOT
from test_decoding import FULL, odd_documents
from written_specs import document, specifications, validate

from daggyr_server.spec import SpecificationError, decode_json, expand
from daggyr_server.spec.document import DefaultDetails, Defaults, Details, ParentReference, RunSpec, TaskDefinition
from daggyr_server.spec.schema import DRAFT, json_schema
from daggyr_server.spec.yaml_text import yaml_to_json

SCHEMA = json_schema()
TASK: dict[str, Any] = {"details": {"command": ["x"]}}


class EditorsLoader(yaml.SafeLoader):
    """Reads YAML as a language server does (YAML 1.2's core schema, as far as it matters): a date is text."""


EditorsLoader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def as_an_editor_reads(text: str) -> Any:
    return yaml.load(text, Loader=EditorsLoader)


def accepted(spec: Any) -> bool:
    """Whether `spec` is valid; the same document as YAML is, too."""
    try:
        expand(decode_json(document(spec)), default_pool="default")
    except SpecificationError:
        return False
    return True


def is_valid(spec: Any) -> bool:
    try:
        validate(spec)
    except fastjsonschema.JsonSchemaException:
        return False
    return True


def test_every_key_is_in_it_with_words_and_an_example() -> None:
    assert SCHEMA["$schema"] == DRAFT
    shapes = SCHEMA["definitions"]
    assert set(shapes) == {"Defaults", "DefaultDetails", "Details", "ParentReference", "TaskDefinition"}
    for declared in (RunSpec, Defaults, DefaultDetails, Details, ParentReference, TaskDefinition):
        shape = SCHEMA if declared is RunSpec else shapes[declared.__name__]
        assert set(shape["properties"]) == set(declared.__struct_fields__)
        for name, told in shape["properties"].items():
            if declared is not ParentReference and name != "details":
                assert "Example: " in told["description"], name
    # What is for those who change the code stays out.
    assert "\n" not in json.dumps(SCHEMA).replace(r"(?!\\n)", "")


EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_are_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if "tasks:" in text:
        validate(as_an_editor_reads(text))
        validate(json.loads(yaml_to_json(text.encode())))


def test_the_readmes_specifications_are_valid() -> None:
    found = re.findall(r"cat > \S+\.yaml << 'EOF'\n(.*?)^EOF$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    for text in found:
        validate(as_an_editor_reads(text))


def test_a_specification_with_every_key_is_valid() -> None:
    validate(FULL)
    details = {"script": "x", "shell": ["sh"], "timeout": "1.5h", "resources": {"memory_mb": "1GB", "gpus": 1}}
    validate({**FULL, "x-a": 1, "tasks": {"a": {"details": details, "x-b": None}}, "defaults": {"x-c": [], "retry_delay": "1d"}})
    # In YAML, these are text, because text belongs there.
    text = (
        "tags: {year: 2026}\nparameters: {N: [1, 2.5, true]}\ntasks: {1: {details: {command: [sleep, 1], environment: {A: 5}}}}\n"
    )
    decode_json(yaml_to_json(text.encode()))
    read = as_an_editor_reads(text)
    read["tasks"] = {str(name): task for name, task in read["tasks"].items()}
    validate(read)


@settings(deadline=None, max_examples=100)
@given(specifications())
def test_specifications_of_the_other_tests_are_valid(spec: dict[str, Any]) -> None:
    validate(spec)


@settings(deadline=None, max_examples=300)
@given(odd_documents())
def test_what_is_accepted_is_valid(spec: dict[str, Any]) -> None:
    if accepted(spec):
        validate(spec)


def details(**keys: Any) -> dict[str, Any]:
    return {"tasks": {"a": {"details": {"command": ["x"], **keys}}}}


@pytest.mark.parametrize(
    "spec",
    [
        *({}, [], {"tasks": {}}, {"tasks": []}, {"tasks": {"a": 1}}, {"tasks": {"a": {}}}, {"tasks": {"a": {"details": {}}}}),
        *({"tasks": {"a": TASK}, "task": {}}, {"tasks": {"a": TASK}, "pool": ""}, {"tasks": {"a": TASK}, "tags": []}),
        *({"tasks": {"a": TASK}, "parameters": {"A": []}}, {"tasks": {"a": TASK}, "parameters": {"": ["1"]}}),
        *({"tasks": {"a": TASK}, "defaults": {key: wrong}} for key, wrong in (("children", []), ("details", []), ("pool", ""))),
        *({"tasks": {"a": TASK}, "defaults": {"details": {key: ["x"]}}} for key in ("command", "script", "environment")),
        *(
            {"tasks": {"a": {**TASK, key: 1}}}
            for key in ("depends", "dependsOn", "needs", "run", "script", "env", "retries", "mem")
        ),
        *({"tasks": {"a": {**TASK, "max_retries": wrong}}} for wrong in (-1, 1.5, "two", None, 2**31)),
        *({"tasks": {"a": {**TASK, "retry_delay": wrong}}} for wrong in (-1, "5", "5 m", "1w", None, 2e9)),
        *({"tasks": {"a": {**TASK, "is_generator": wrong}}} for wrong in (1, "yes", None)),
        *({"tasks": {"a": {**TASK, "parents": wrong}}} for wrong in ("b", [[]], [{"match": ["A"]}], [{"task": "b", "mach": []}])),
        *(details(command=wrong) for wrong in ("echo hi", [], [""], None, [["x"]])),
        *(details(timeout=wrong) for wrong in ("5", "5M", "5m ", "1h30m", -1, None, "99999d")),
        *(details(resources={"memory_mb": wrong}) for wrong in ("4", "4G", "GB", -1, 0.5, None)),
        *(details(resources={"cores": wrong}) for wrong in ("4GB", 0.5, "1", 2**63)),
        *(details(environment=wrong) for wrong in ({"A=B": "x"}, {"": "x"}, {"A": []}, ["A=B"])),
        *(details(**{key: "x"}) for key in ("script", "shell", "cwd", "env", "cpus", "gpu", "x-note")),
        details(shell=["sh"]),
        *({"tasks": {"a": {"details": {"script": "x", "shell": wrong}}}} for wrong in ("sh", [], [""])),
        {"tasks": {"a": {"details": {"script": ""}}}},
        *({"tasks": {"a": {**TASK, key: {}}}} for key in ("retry", "allow_failure", "options")),
        *({"tasks": {"a": TASK}, key: {}} for key in ("finally", "max_failures")),
    ],
    ids=str,
)
def test_what_is_wrong_in_one_value_is_not_valid(spec: Any) -> None:
    assert not accepted(spec)
    assert not is_valid(spec)
