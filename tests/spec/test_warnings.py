"""Warnings of specifications that are valid, but most likely not meant: each names the likeliest text and is told few times."""

from __future__ import annotations

from typing import Any

import pytest
from written_specs import document

from daggyr_server.spec import decode_json, expand

DATE = {"{{DATE}}": ["1", "2"]}


def echo(*words: str, **keys: Any) -> dict[str, Any]:
    return {"details": {"command": ["echo", *words]}, **keys}


def warnings(tasks: dict[str, Any], **keys: Any) -> list[str]:
    told: list[str] = []
    expand(decode_json(document({"tasks": tasks, **keys})), default_pool="default", warnings=told)
    return told


@pytest.mark.parametrize(
    ("word", "likely"),
    [("{{DAET}}", "{{DATE}}"), ("{{ DATE }}", "{{DATE}}"), ("{{date}}", "{{DATE}}"), ("x{{DATES}}y", "{{DATE}}")],
)
def test_a_parameter_that_is_misspelt(word: str, likely: str) -> None:
    (told,) = warnings({"a": echo("{{DATE}}"), "b": echo(word)}, parameters=DATE)
    assert told.startswith("tasks.b.details: `{{")
    assert told.endswith(f"is no parameter, and stays as it is; did you mean `{likely}`?")


def test_a_parameter_that_occurs_in_no_task_and_what_is_there_instead() -> None:
    assert warnings({"a": echo("{{DAET}}")}, parameters=DATE) == [
        "tasks.a.details: `{{DAET}}` is no parameter, and stays as it is; did you mean `{{DATE}}`?",
        "parameters.{{DATE}}: the parameter `{{DATE}}` does not occur in any task, and multiplies nothing; "
        "did you mean it where `{{DAET}}` stands?",
    ]


def test_a_tasks_own_parameter_that_does_not_occur_in_it() -> None:
    (told,) = warnings({"a": echo("x", parameters=DATE), "b": echo("{{DATE}}")}, parameters=DATE)
    assert told == "tasks.a.parameters.{{DATE}}: the parameter `{{DATE}}` does not occur in the task, and multiplies nothing"


def test_another_style_of_names_is_only_told_of_where_it_is_alike() -> None:
    (told,) = warnings({"a": echo("$DATE $DAET $HOME $PATH")}, parameters={"$DATE": ["1"]})
    assert "`$DAET` is no parameter, and stays as it is; did you mean `$DATE`?" in told


@pytest.mark.parametrize(
    ("tasks", "parameters"),
    [
        ({"a": echo("{{DATE}}")}, DATE),
        ({"a": echo("docker", "--format", "{{.Names}}", "{{")}, {}),
        ({"a": echo("x", is_generator=True)}, DATE),  # what the generator prints may use the parameter
        ({"a": echo("DATE")}, {"DATE": ["1"]}),
    ],
    ids=["used", "another program's", "generator", "no style"],
)
def test_nothing_is_told_of_what_may_well_be_meant(tasks: dict[str, Any], parameters: dict[str, Any]) -> None:
    assert warnings(tasks, parameters=parameters) == []


def test_many_mistakes_make_few_warnings() -> None:
    told = warnings({f"t{number}": echo(f"{{{{A{number}}}}}", "{{B}}") for number in range(3_000)})
    assert len(told) == 21
    assert told[-1].endswith(" more")
    assert len(warnings({f"t{number}": echo("{{B}}") for number in range(3_000)})) == 1


def test_a_program_with_blanks_and_a_home_that_no_shell_looks_up() -> None:
    assert warnings(
        {
            "a": {"details": {"command": ["echo hi"]}},
            "b": {"details": {"command": ["~/bin/x"], "working_directory": "~"}},
            "fine": {"details": {"command": ["./my program", "a~", "sh", "-c", "~/bin/x"]}},
        }
    ) == [
        "tasks.a.details.command[0]: `echo hi` is taken as one program's name; "
        'write ["echo", "hi"] if it is a program and its arguments',
        "tasks.b.details.command[0]: the `~` of `~/bin/x` stays as it is, because no shell reads it; write the whole path",
        "tasks.b.details.working_directory: the `~` of `~` stays as it is, because no shell reads it; write the whole path",
    ]
