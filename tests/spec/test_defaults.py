"""Keys that make specifications shorter: `defaults`, `script` with `shell`, and keys with `x-`, which are ignored.

What they say is compared with the same run written out, so that everything behind the specification means the same.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from written_specs import document, executed, graph_of, refused

from daggyr_server.core.graph.graph import Graph
from daggyr_server.spec import (
    PoolLimits,
    SpecificationError,
    decode_json,
    encode_json,
    expand,
    expand_edit,
    expand_generated,
    pieces,
    sizes,
    terms,
)
from daggyr_server.spec.yaml_text import yaml_to_json

TASK: dict[str, Any] = {"details": {"command": ["true"]}}
DEFAULTS: dict[str, Any] = {
    "details": {
        "environment": {"TZ": "UTC", "WHO": "{{A}}"},
        "resources": {"cores": 2, "memory_mb": "1GB"},
        "timeout": "30m",
        "working_directory": "work",
        "stdin": "in",
        "shell": ["bash", "-euo", "pipefail"],
    },
    "max_retries": 2,
    "retry_delay": "5s",
    "pool": "farm",
    "priority": 3,
}


def same(spec: dict[str, Any], written_out: dict[str, Any]) -> None:
    """Two specifications make graphs with the same tasks, policies and commands."""
    one, other = graph_of(spec), graph_of(written_out)
    assert one.policies == other.policies
    assert [one.task_id(number) for number in range(one.size)] == [other.task_id(number) for number in range(other.size)]
    for number in range(one.size):
        if one.task_id(number) not in ("many", "many.tail"):
            assert executed(one, number) == executed(other, number)
            assert one.policy(number) == other.policy(number)


def test_a_task_gets_the_defaults_that_it_does_not_have_itself() -> None:
    own = {
        "details": {
            "command": ["true"],
            "environment": {"TZ": "CET", "X": "y"},
            "resources": {"cores": 1, "gpus": 1},
            "timeout": 0,
            "working_directory": "",
            "stdin": "",
        },
        "max_retries": 0,
        "retry_delay": 0,
        "pool": "hpc",
        "priority": 0,
    }
    inherited = DEFAULTS["details"]
    written: dict[str, Any] = {
        "bare": {**DEFAULTS, "details": {"command": ["true"], **{key: inherited[key] for key in inherited if key != "shell"}}},
        "own": {
            **own,
            "details": {
                **own["details"],
                "environment": {"TZ": "CET", "WHO": "{{A}}", "X": "y"},
                "resources": {"cores": 1, "memory_mb": "1GB", "gpus": 1},
            },
        },
    }
    run = {"parameters": {"{{A}}": ["1", "2"]}}
    # A parameter in the defaults' environment multiplies the task.
    assert graph_of({**run, "defaults": DEFAULTS, "tasks": {"many": TASK}}).size == 4
    same(
        {"parameters": {"{{A}}": ["1"]}, "defaults": DEFAULTS, "tasks": {"bare": TASK, "own": own}},
        {"parameters": {"{{A}}": ["1"]}, "tasks": written},
    )
    # The document stays as it was written.
    spec = {"defaults": DEFAULTS, "tasks": {"bare": TASK}}
    assert json.loads(encode_json(decode_json(document(spec)))) == spec


def test_a_parameter_in_defaults_tells_expansions_apart() -> None:
    graph = graph_of(
        {
            "parameters": {"{{A}}": ["1", "2"]},
            "defaults": {"details": {"environment": {"A": "{{A}}"}}},
            "tasks": {"one": TASK, "two": {**TASK, "parents": [{"task": "one", "match": ["{{A}}"]}]}},
        }
    )
    number = graph.number_of("two.{{A}}:2")
    assert number is not None
    assert {graph.task_id(parent) for parent in graph.parents(number)} == {"two", "one.{{A}}:2"}
    assert executed(graph, number).environment == {"A": "2"}


def test_a_script_is_given_to_a_shell() -> None:
    text = 'echo "{{A}}: $HOME"\n~/bin/x | sort\n'
    for shell, words in ((None, ["/bin/sh", "-eu"]), (["bash", "-e", "-{{A}}"], ["bash", "-e", "-{{A}}"])):
        details: dict[str, Any] = {"script": text, "environment": {"B": "{{A}}"}}
        if shell:
            details["shell"] = shell
        run = {"parameters": {"{{A}}": ["1", "2"]}}
        same(
            {**run, "tasks": {"many": {"details": details}}},
            {**run, "tasks": {"many": {"details": {"command": [*words, "-c", text], "environment": {"B": "{{A}}"}}}}},
        )
        graph = graph_of({**run, "tasks": {"many": {"details": details}}})
        number = graph.number_of("many.{{A}}:2")
        assert number is not None
        assert executed(graph, number).command[-1] == text.replace("{{A}}", "2")
    warned: list[str] = []
    expand(decode_json(document({"tasks": {"a": {"details": {"script": text}}}})), default_pool="d", warnings=warned)
    assert warned == ["tasks.a.details: `{{A}}` is no parameter, and stays as it is; parameters are listed under `parameters`"]
    graph = graph_of({"defaults": {"details": {"shell": ["zsh"]}}, "tasks": {"a": {"details": {"script": "x"}}, "b": TASK}})
    assert [list(executed(graph, number).command) for number in range(2)] == [["zsh", "-c", "x"], ["true"]]


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({}, ["tasks.a.details: `command` is missing; every task has one, or a `script`"]),
        ({"command": ["x"], "script": "x"}, ["tasks.a.details: `command` and `script` are both given; a task has one of them"]),
        (
            {"command": ["x"], "shell": ["sh"]},
            [
                "tasks.a.details.shell: `shell` is given, and there is no `script`; a `command` names its program itself",
            ],
        ),
        ({"script": ""}, ["tasks.a.details.script: the text of a script is needed, an empty text was given"]),
        (
            {"script": ["x"]},
            ["tasks.a.details.script: the text of a script is needed, a list was given; a list of words is a `command`"],
        ),
        (
            {"script": "x\0"},
            [
                "tasks.a.details.script: the text holds a NUL character, which no command or variable can hold; leave it out",
            ],
        ),
        (
            {"script": "x", "shell": []},
            ["tasks.a.details.shell: a list of the shell and its options is needed, an empty one was given"],
        ),
        (
            {"script": "x", "shell": [""]},
            ["tasks.a.details.shell[0]: a shell's name is needed, an empty text was given"],
        ),
        (
            {"shell": "echo hi"},
            [
                'tasks.a.details.shell: a list of the shell and its options is needed, the text "echo hi" was given; '
                "a list is its program and options, such as [bash, -eu]; the text for it is the task's `script`",
                "tasks.a.details: `command` is missing; every task has one, or a `script`",
            ],
        ),
        (
            {"run": "echo hi"},
            [
                "tasks.a.details.run: there is no such key; write a text as `script`, or a list of words as `command`",
            ],
        ),
        (
            {"script": "x", "x-note": 1},
            [
                "tasks.a.details.x-note: there is no such key; "
                "keys that begin with `x-` are ignored at the top and beside `details`, not inside them",
            ],
        ),
    ],
)
def test_wrong_details_are_told(details: dict[str, Any], expected: list[str]) -> None:
    assert refused({"tasks": {"a": {"details": details}}}) == expected


def test_faults_of_defaults_are_told_with_those_of_tasks_each_once() -> None:
    faults = refused(
        {
            "timeout": 5,
            "children": [],
            "defaults": {
                "children": ["b"],
                "environment": {},
                "retries": 1,
                "retry_delay": "5 minutes",
                "details": {
                    "command": ["x"],
                    "pool": "x",
                    "mem": "4GB",
                    "timeout": "1w",
                    "shell": "bash",
                    "environment": {"": ""},
                },
            },
            "tasks": {"a": {"details": {}}, "b": {**TASK, "parents": ["c"]}},
        }
    )
    assert faults == [
        "children: there is no such key; `children` belongs to a task, under `tasks`",
        "timeout: there is no such key; `timeout` belongs to a task, under `tasks`, or into `defaults`",
        "defaults.children: there is no such key; `children` is no default: each task has its own",
        "defaults.environment: there is no such key; `environment` belongs inside `details`",
        "defaults.retries: there is no such key; it is called `max_retries` here",
        'defaults.retry_delay: a number of seconds is needed, the text "5 minutes" was given; write 5m',
        "defaults.details.command: there is no such key; `command` is no default: each task has its own",
        "defaults.details.mem: there is no such key; write it as a resource: resources: {memory_mb: ...}",
        "defaults.details.pool: there is no such key; `pool` belongs beside `details`, not inside it",
        'defaults.details.timeout: a number of seconds is needed, the text "1w" was given; '
        "write seconds, or a time such as 30s, 5m, 2h, 1d",
        'defaults.details.shell: a list of the shell and its options is needed, the text "bash" was given; '
        "a list is its program and options, such as [bash, -eu]; the text for it is the task's `script`",
        'defaults.details.environment."": the name of an environment variable (not empty, without `=`) is needed, '
        "an empty text was given",
        "tasks.a.details: `command` is missing; every task has one, or a `script`",
        "tasks.b.parents[0]: there is no task `c`",
    ]
    for wrong, place in ((None, ""), ([], ""), ({"details": 3}, ".details")):
        (fault,) = refused({"defaults": wrong, "tasks": {"a": TASK}})
        assert fault.startswith(f"defaults{place}: an object ")


def test_a_pool_or_resource_of_the_defaults_that_cannot_be_had_is_told_once() -> None:
    pools = {"small": PoolLimits({"cores": 2}, "`workers`", "cores"), "other": PoolLimits({"cores": 9, "gpus": 1})}
    tasks = {
        "a": TASK,
        "b": TASK,
        "c": {"details": {"command": ["x"], "resources": {"gpus": 2}}, "pool": "other"},
        "d": {"details": {"command": ["x"], "resources": {"gpus": 0}}},
    }
    options = {"pools": pools, "default_pool": "small"}
    assert refused({"defaults": {"pool": "smal"}, "tasks": tasks}, **options) == [
        "defaults.pool: there is no pool `smal`; did you mean `small`?",
        "tasks.c.details.resources.gpus: 2 of `gpus` can never be had: a host of the pool `other` has 1 at most; "
        "ask for less, or choose another pool",
    ]
    faults = refused({"defaults": {"details": {"resources": {"gpus": 1}}}, "tasks": tasks}, **options)
    assert [fault.partition(":")[0] for fault in faults] == ["defaults.details.resources.gpus", "tasks.c.details.resources.gpus"]


def test_defaults_cannot_make_a_small_document_a_huge_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daggyr_server.spec.defaults.MAX_DEFAULTS_BYTES", 10_000)
    tasks = {f"t{number}": TASK for number in range(100)}
    (fault,) = refused({"defaults": {"details": {"stdin": "x" * 100}}, "tasks": tasks})
    assert fault.startswith(
        "defaults.details: the details take 112 bytes in each of 100 tasks; together they take at most 10,000"
    )
    # A run that was accepted stays valid.
    spec = decode_json(document({"defaults": {"details": {"stdin": "x" * 100}}, "tasks": tasks}))
    expand(spec, default_pool="default", limited=False)
    assert sizes.MAX_DEFAULTS_BYTES == 1024**3


def generated(graph: Graph, spec: Any, tasks: Any) -> Graph:
    """`graph` with the tasks that its generator `make` printed."""
    number = graph.number_of("make")
    assert number is not None
    addition = expand_generated(
        document(tasks),
        run_parameters=spec.run_parameters(),
        graph=graph,
        generator=number,
        pools=None,
        default_pool="default",
    )
    graph.extend(addition)
    return graph


def test_generated_tasks_get_the_defaults_too() -> None:
    tasks = {"make": {**TASK, "is_generator": True}}
    spec = decode_json(document({"defaults": {"max_retries": 1, "details": {"shell": ["zsh"]}}, "tasks": tasks}))
    graph = Graph()
    graph.extend(expand(spec, default_pool="default"))
    generated(graph, spec, {"new": {"details": {"script": "x"}, "x-note": 1}, "own": {**TASK, "max_retries": 0}})
    new, own = graph.number_of("new"), graph.number_of("own")
    assert new is not None
    assert own is not None
    assert list(executed(graph, new).command) == ["zsh", "-c", "x"]
    assert [graph.policy(number).max_retries for number in (new, own)] == [1, 0]
    with pytest.raises(SpecificationError, match=r"script: the text of a script is needed"):
        generated(graph, spec, {"bad": {"details": {"script": 5}}})


def test_an_edit_of_defaults_changes_the_tasks_that_get_them() -> None:
    tasks = {"a": TASK, "b": {"details": {"command": ["true"], "environment": {"TZ": "CET"}}}}
    before = {"defaults": {"details": {"environment": {"TZ": "UTC"}, "timeout": "1h"}}, "tasks": tasks}
    after = {"defaults": {"details": {"environment": {"TZ": "GMT"}, "timeout": "2h"}}, "tasks": tasks}
    graph = graph_of(before)

    def edit(spec: dict[str, Any]) -> Any:
        return expand_edit(decode_json(document(spec)), graph=graph, printed=[], pools=None, default_pool="default")

    edited = edit(after)
    assert [edited.edit.carry.forward(number) for number in (2, 3)] == [None, None]
    assert [edited.edit.carry.forward(number) for number in (0, 1)] == [(2, False), (3, True)]
    assert terms(graph, 1, edited.graph, 3) == ["timeout"]
    # The same run written out is the same run.
    out = {name: {"details": {**task["details"], "timeout": 3600}} for name, task in tasks.items()}
    out["a"]["details"]["environment"] = {"TZ": "UTC"}
    edited = edit({"tasks": out})
    assert [edited.edit.carry.forward(number) for number in (0, 1)] == [(2, True), (3, True)]
    assert not edited.adjusted


def test_keys_with_x_are_ignored_at_the_top_and_in_tasks_whatever_they_hold() -> None:
    anything = {"tasks": {"a:": [None, {"b": "\0:"}]}, "details": 1}
    plain = {"pool": "p", "tasks": {"a": {**TASK, "priority": 1}, "b": TASK}}
    noted = {
        "x-": anything,
        "pool": "p",
        "x-tasks": "x",
        "tasks": {"a": {"x-first": anything, **TASK, "priority": 1, "x-z": 1}, "b": {**TASK, "x-:": ":"}},
        "defaults": {"x-note": anything},
    }
    same(noted, plain)
    without = [*(key for key in noted if not key.startswith("x-"))]
    kept = json.loads(encode_json(decode_json(document(noted))))
    assert (sorted(kept), kept["tasks"], kept["defaults"]) == (sorted(without), plain["tasks"], {})
    # A task may be called so; its own keys count as always.
    assert graph_of({"tasks": {"x-a": TASK}}).number_of("x-a") == 0
    assert refused({"tasks": {"x-a": 5}}) == ["tasks.x-a: an object with `details` is needed, the number 5 was given"]
    for text in (b'{"x-a": 1, "x-a": 2, "tasks": {}}', b'{"tasks": {"a": {"details": {"command": ["x"]}, "x-a": 1, "x-a": 2}}}'):
        with pytest.raises(SpecificationError, match="this key stands more than once"):
            decode_json(text)
    with pytest.raises(SpecificationError, match="this key stands more than once"):
        decode_json(b'{"x-a": 1, "pool": "a", "pool": "b", "tasks": {"a": {"details": {"command": ["x"]}, "x-a": 1}}}')


def test_a_large_document_with_ignored_keys_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    tasks = {f"t{number}": {"x-note": {"a": number}, "details": {"script": "x"}, "x-last": ":"} for number in range(100)}
    spec = {"x-top": {"tasks": {"a": 1}}, "defaults": {"priority": 1, "x-y": ":"}, "tasks": tasks, "x-end": 1}
    found = decode_json(bytearray(document(spec)))
    assert json.loads(encode_json(found)) == {
        "defaults": {"priority": 1},
        "tasks": {name: {"details": {"script": "x"}} for name in tasks},
    }


def test_anchors_have_a_home_in_yaml() -> None:
    text = b"""
    x-slow: &slow {timeout: 2h, resources: {memory_mb: 4GB}}
    tasks:
      a: {x-why: 012, details: {<<: *slow, script: "x\\n"}}
    """
    made = json.loads(yaml_to_json(text))
    assert made["tasks"]["a"] == {
        "x-why": "012",
        "details": {"timeout": "2h", "resources": {"memory_mb": "4GB"}, "script": "x\n"},
    }
    graph = graph_of(made)
    assert dict(executed(graph, 0).resources) == {"cores": 1, "memory_mb": 4096}
    assert executed(graph, 0).timeout.seconds == 7200
