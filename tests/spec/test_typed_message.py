"""A typed specification means what the document with the same words means, and has the same faults."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from daggyr.v1.run_pb2 import ParentReference, RunSpec, TaskDefinition, Values
from daggyr.v1.task_pb2 import TaskSpec
from daggyr_server.spec import SpecificationError, encode_json, run_spec_from_message


def document(message: RunSpec) -> Any:
    return json.loads(encode_json(run_spec_from_message(message)))


def refused(**tasks: TaskDefinition) -> str:
    with pytest.raises(SpecificationError) as caught:
        run_spec_from_message(RunSpec(tasks=tasks))
    return str(caught.value)


def test_every_field_arrives() -> None:
    message = RunSpec(
        tags={"a": "b"},
        parameters={"{{X}}": Values(values=["1", "2"])},
        pool="p",
        tasks={
            "a": TaskDefinition(
                details=TaskSpec(
                    command=["x", "{{X}}"],
                    environment={"A": "1"},
                    working_directory="d",
                    stdin="",
                    timeout=Duration(seconds=1, nanos=500_000_000),
                    resources={"gpu": 1},
                ),
                children=["b"],
                parents=[ParentReference(task="c"), ParentReference(task="c2", match=["{{X}}"])],
                parameters={"{{Y}}": Values(values=["3"])},
                is_generator=True,
                max_retries=2,
                retry_delay=Duration(seconds=5),
                pool="q",
                priority=-1,
            )
        },
    )
    assert document(message) == {
        "tags": {"a": "b"},
        "parameters": {"{{X}}": ["1", "2"]},
        "pool": "p",
        "tasks": {
            "a": {
                "details": {
                    "command": ["x", "{{X}}"],
                    "environment": {"A": "1"},
                    "working_directory": "d",
                    "stdin": "",
                    "timeout": 1.5,
                    "resources": {"gpu": 1},
                },
                "children": ["b"],
                "parents": ["c", {"task": "c2", "match": ["{{X}}"]}],
                "parameters": {"{{Y}}": ["3"]},
                "is_generator": True,
                "max_retries": 2,
                "retry_delay": 5.0,
                "pool": "q",
                "priority": -1,
            }
        },
    }


def test_empty_fields_are_not_given() -> None:
    message = RunSpec(tasks={"a": TaskDefinition(details=TaskSpec(command=["x"]))})
    assert document(message) == {"tasks": {"a": {"details": {"command": ["x"]}}}}


def test_faults_are_those_of_the_document() -> None:
    good = TaskSpec(command=["x"])
    assert refused() == "tasks: there is no task; a run has one task at least"
    assert refused(a=TaskDefinition()) == "tasks.a: `details` is missing; every task has one"
    assert refused(
        a=TaskDefinition(details=TaskSpec()),
        b=TaskDefinition(details=good, children=["c"], retry_delay=Duration(seconds=-1)),
        c=TaskDefinition(details=TaskSpec(command=["x\0"], whole_stdout_bytes=1)),
        d=TaskDefinition(details=TaskSpec(command=["x"], resources={"cores": -1}), parents=[ParentReference(task="bb")]),
    ).splitlines() == [
        "tasks.a.details.command: a list of the program and its arguments is needed, an empty one was given",
        "tasks.b.retry_delay: a number of seconds from 0 to 1,000,000,000 is needed, -1.0 was given",
        "tasks.c.details.whole_stdout_bytes: there is no such key; "
        "the coordinator sets it for generators: write `is_generator` beside `details`",
        "tasks.c.details.command[0]: the text holds a NUL character, which no command or variable can hold; leave it out",
        "tasks.d.details.resources.cores: a whole number of units from 0 to 9,223,372,036,854,775,807 is needed, -1 was given",
        "tasks.d.parents[0]: there is no task `bb`; did you mean `b`?",
    ]
