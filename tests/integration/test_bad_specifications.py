"""Specifications with faults: the real server refuses them whole, with place and advice, before anything runs.

What the server answers is asked of it from this process, and the command has to tell just that. What the command finds by itself
is tested with the command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.deployment import Deployment, shell, task

POOLS = """
[server]
default_pool = "default"
[pools.default]
executor = "local"
workers = 2
[pools.farm]
executor = "agent"
"""

TRUE = task("true")
X = {"{{X}}": ["1", "2"]}
ECHO = task("echo", "{{X}}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One server for all that it refuses. In the end it has no run, and takes one."""
    made = Deployment(tmp_path_factory.mktemp("specifications"))
    try:
        made.start_server(config=POOLS)
        yield made
        assert made.runs() == []
        made.goes_on()
    finally:
        made.close()


def answered(deployment: Deployment, document: object) -> list[str]:
    """The faults that the server answers with, which is all that a client is told of a specification that it refuses."""
    with pytest.raises(grpc.RpcError) as refused:
        deployment.submit_document(json.dumps(document))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    return str(refused.value.details()).splitlines()  # type: ignore[attr-defined]


def refused(deployment: Deployment, document: object, suffix: str = ".json") -> list[str]:
    """Return the faults that `submit` tells of."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    path = deployment.folder / f"refused{suffix}"
    path.write_bytes(data)
    ended = deployment.daggyr("submit", str(path))
    assert (ended.code, ended.out) == (2, "")
    first, *others = ended.err.splitlines()
    assert first.startswith(f"daggyr: {path} is refused:")
    return [line.strip() for line in others] or [first.removeprefix(f"daggyr: {path} is refused: ")]


def matched(**keys: Any) -> dict[str, Any]:
    """Return two tasks of which `b` has a `match` on `a`."""
    return {"tasks": {"a": ECHO, "b": ECHO, **keys}, "parameters": X}


def child(*names: str, **keys: Any) -> dict[str, Any]:
    return {**ECHO, "parents": [{"task": "a", "match": list(names)}], **keys}


@pytest.mark.parametrize(
    ("document", "place", "words"),
    [
        ({"tasks": {"a": task("true", parents=["b"]), "b": task("true", parents=["a"])}}, "tasks.a", "a -> b -> a"),
        ({"tasks": {"a": task("true", children=["a"])}}, "tasks.a", "a -> a"),
        ({"tasks": {"load": task("true", parents=["extrct"]), "extract": TRUE}}, "tasks.load.parents[0]", "`extract`?"),
        ({"tasks": {"load": task("true", children=["extrct"]), "extract": TRUE}}, "tasks.load.children[0]", "`extract`?"),
        ({"tasks": {"a": TRUE}, "task": {}}, "task", "did you mean `tasks`?"),
        ({"tasks": {"a": task("true", max_retires=1)}}, "tasks.a.max_retires", "did you mean `max_retries`?"),
        (
            {"tasks": {"a": {"details": {"command": ["true"], "children": []}}}},
            "tasks.a.details.children",
            "`children` belongs beside `details`, not inside it",
        ),
        ({"tasks": {"a": {**TRUE, "timeout": 3}}}, "tasks.a.timeout", "belongs inside `details`"),
        ({"tasks": {"a": {"details": {"command": "echo hi"}}}}, "tasks.a.details.command", 'write ["sh", "-c", "echo hi"]'),
        ({"tasks": {"a": task()}}, "tasks.a.details.command", "an empty one was given"),
        ({"tasks": {"a": task("")}}, "tasks.a.details.command[0]", "a program's name is needed"),
        ({"tasks": {"a": {"details": {"command": ["sleep", 1]}}}}, "tasks.a.details.command[1]", 'write it as text: "1"'),
        ({"tasks": {"a": task("tr\0ue")}}, "tasks.a.details.command[0]", "NUL character"),
        ({"tasks": {"a": {}}}, "tasks.a", "`details` is missing"),
        ({"tags": {}}, "", "`tasks` is missing"),
        ({"tasks": {}}, "tasks", "there is no task"),
        ([1], "", "an object (in braces) is needed"),
        ({"tasks": {"a": TRUE}, "pool": "farn"}, "pool", "did you mean `farm`?"),
        ({"tasks": {"a": task("true", pool="nope")}}, "tasks.a.pool", "the pools are `default` and `farm`"),
        ({"tasks": {"a": task("true", resources={"cores": 3})}}, "tasks.a.details.resources.cores", "`default` has 2 at most"),
        ({"tasks": {"a": task("true", resources={"gpus": 1})}}, "tasks.a.details.resources.gpus", "can never be had"),
        ({"tasks": {"a": task("true", resources={"memory_mb": 10**12})}}, "tasks.a.details.resources.memory_mb", "at most"),
        ({"tasks": {"a": task("true", resources={"cores": 0.5})}}, "tasks.a.details.resources.cores", "a whole number"),
        ({"tasks": {"a": task("true", max_retries=-1)}}, "tasks.a.max_retries", "-1 was given"),
        *(
            ({"tasks": {"a": task("true", **{key: ["b"]})}}, f"tasks.a.{key}", "it is called `parents` here")
            for key in ("depends", "dependsOn", "depends_on", "needs", "requires")
        ),
        *(
            ({"tasks": {"a": {"details": {"command": ["true"], key: "x"}}}}, f"tasks.a.details.{key}", words)
            for key, words in {
                "run": "write a text as `script`, or a list of words as `command`",
                "shell": "the text for it is the task's `script`",
                "env": "called `environment` here",
                "cwd": "called `working_directory` here",
                "retries": "called `max_retries`, and belongs beside `details`",
                "mem": "resources: {memory_mb: ...}",
                "cpus": "resources: {cores: ...}",
                "gpu": "resources: {gpus: ...}",
            }.items()
        ),
        ({"tasks": {"a": task("true", script="x")}}, "tasks.a.details", "`command` and `script` are both given"),
        ({"tasks": {"a": task("true", timeout="5 minutes")}}, "tasks.a.details.timeout", "write 5m"),
        ({"tasks": {"a": task("true", resources={"memory_mb": "4G"})}}, "tasks.a.details.resources.memory_mb", "write 4GB"),
        ({"tasks": {"a": task("true", resources={"cores": "4GB"})}}, "tasks.a.details.resources.cores", "without a unit"),
        ({"tasks": {"a": TRUE}, "defaults": {"pool": "farn"}}, "defaults.pool", "did you mean `farm`?"),
        ({"tasks": {"a": TRUE}, "defaults": {"children": []}}, "defaults.children", "each task has its own"),
        ({"tasks": {"a": task("true", resources={"cores": "0.5"})}}, "tasks.a.details.resources.cores", "write 1, or 0"),
        (
            {"tasks": {"a": task("true", resources={"gpus": 1})}},
            "tasks.a.details.resources.gpus",
            "daggyr-agent --resource gpus=1",
        ),
        ({"tasks": {"a": task("true", stdin="x" * 3_200_000)}}, "tasks.a.details", "put the text into a file"),
        ({"tasks": {"a": TRUE}, "tags": {"k" * 65_536: "v"}}, "tags", "a run's take at most 65,536"),
        ({"tasks": {"a": task("true", retry_delay="5")}}, "tasks.a.retry_delay", "write it without quotes: 5"),
        ({"tasks": {"a": task("true", is_generator="yes")}}, "tasks.a.is_generator", "true or false"),
        ({"tasks": {"a": task("true", pool=None)}}, "tasks.a.pool", "leave the key out"),
        ({"tasks": {"a": task("true", environment={"A=B": "x"})}}, "tasks.a.details.environment.A=B", "without `=`"),
        ({"tasks": {"a": TRUE}, "tags": {"n": 1}}, "tags.n", "text is needed"),
        ({"tasks": {"a": ECHO}, "parameters": {"{{X}}": ["1", "1"]}}, "parameters.{{X}}", "more than once"),
        ({"tasks": {"a": ECHO}, "parameters": {"{{X}}": []}}, "parameters.{{X}}", "one value at least"),
        ({"tasks": {"a": TRUE}, "parameters": {"": ["1"]}}, 'parameters.""', "not empty"),
        ({"tasks": {"": TRUE}}, "tasks.", "the name of a task is empty"),
        ({"tasks": {"a\tb": TRUE}}, "tasks.a\\tb", "control characters"),
        ({"tasks": {"é" * 513: TRUE}}, "tasks.", "longer than 1,024 bytes"),
        ({"tasks": {"a": ECHO, "a.tail": TRUE}, "parameters": X}, "tasks.a.tail", "rename one of the two"),
        ({"tasks": {"a": ECHO, "a.{{X}}:1": TRUE}, "parameters": X}, "tasks.a.{{X}}:1", "rename one of the two"),
        (matched(a=TRUE, b=child("{{X}}")), "tasks.b.parents[0]", "is not replaced in `a`"),
        (matched(b=child("{{Y}}")), "tasks.b.parents[0]", "is not replaced in `a` and `b`"),
        (matched(b=child("{{X}}", parameters={"{{X}}": ["1", "3"]})), "tasks.b.parents[0]", "equal to `3`"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_fault_is_told_with_its_place_and_what_to_do(shared: Deployment, document: object, place: str, words: str) -> None:
    (fault,) = answered(shared, document)
    assert fault.startswith(place)
    assert words in fault
    assert refused(shared, document) == [fault]


@pytest.mark.parametrize(
    "tasks", [{"a\tb": TRUE}, {"é" * 513: TRUE}, {"a": task("true", pool="nope", max_retires=1), "": TRUE}, {}]
)
def test_the_command_tells_what_the_server_answers(shared: Deployment, tasks: dict[str, object]) -> None:
    """Line by line, with exit code 2 and nothing on standard output."""
    faults = answered(shared, {"tasks": tasks})
    assert len(faults) == (3 if "a" in tasks else 1)
    assert refused(shared, {"tasks": tasks}) == faults


@pytest.mark.parametrize(
    ("data", "suffix", "fault"),
    [
        (b'{"tasks": {', ".json", "line 1, column 12: the document is no JSON: "),
        (b"", ".json", "the document is empty; it holds `tasks`"),
        (b"", ".yaml", "the document is empty; it holds `tasks`"),
        (b"---\n", ".yaml", "the document is empty; it holds `tasks`"),
        (b"# nothing\n", ".yaml", "the document is empty; it holds `tasks`"),
        (b'{"tasks": {"\xe9": {}}}', ".json", "line 1, column 13: the document is not UTF-8; save it as UTF-8"),
        (
            b'{"tasks": {"a": {"details": {"command": ["true"]}}, "a": {"details": {"command": ["false"]}}}}',
            ".json",
            "tasks.a: a task of this name stands more than once; all but one would be lost",
        ),
        (
            b"tasks:\n  a: {details: {command: [x]}}\n  a: {details: {command: [y]}}\n",
            ".yaml",
            "line 3, column 3: the key `a` stands more than once here; all but one would be lost",
        ),
        (b"tasks: [\n", ".yaml", "line 2, column 1: the document is no YAML: "),
        (b"tasks: &a [*a]\n", ".yaml", "line 1, column 12: the document is no YAML: the alias `a` is part of "),
        (b"tasks: !!python/object:os.system {}\n", ".yaml", "line 1, column 8: the tag "),
    ],
)
def test_a_document_that_cannot_be_read(shared: Deployment, data: bytes, suffix: str, fault: str) -> None:
    assert refused(shared, data, suffix)[0].startswith(fault)


def test_a_document_that_is_one_long_text(shared: Deployment) -> None:
    data = b'"' + b"x" * 100_000_000 + b'"'  # made here, so that not every process that collects tests makes it
    assert refused(shared, data, ".json")[0].startswith("line 1, column 1: a text of 100,000,000 bytes begins here")


def test_all_faults_come_together_and_nothing_runs(deployment: Deployment) -> None:
    """This holds for a server of the command's own, too."""
    spec = deployment.spec(
        {
            "sound": shell("touch ran"),
            "first": task("true", parents=["nowhere"], chidlren=[]),
            "second": {"details": {"command": [], "resources": {"cores": "two"}}},
            "third": task("true", pool="nope", parents=["fourth"], timeout="long", resources={"gpus": 1}),
            "greedy": task("true", retry_delay=-1, resources={"gpus": 1}),
            "fourth": task("true", parents=["third"]),
        },
        tagz={},
    )
    ended = deployment.daggyr("--output", "json", "run", spec)
    assert (ended.code, ended.out) == (2, "")
    first, *faults = ended.err.splitlines()
    assert first == f"daggyr: {spec} is refused:"
    for place in (
        "tagz",
        "tasks.first.chidlren",
        "tasks.first.parents[0]",
        "tasks.second.details.command",
        "tasks.second.details.resources.cores",
        "tasks.third.details.timeout",
        "tasks.third.pool",
        "tasks.third",
        "tasks.greedy.retry_delay",
        "tasks.greedy.details.resources.gpus",
    ):
        assert [fault for fault in faults if fault.startswith(f"  {place}: ")], (place, faults)
    assert len(faults) == 10
    assert deployment.read("ran") == ""
    assert not list(deployment.work.iterdir())


@pytest.mark.parametrize("letter", ["x", "\N{SNOWMAN}"])
def test_more_faults_than_an_answer_holds(shared: Deployment, letter: str) -> None:
    """The first faults are told, and how many more there are."""
    name = letter * 30
    faults = refused(shared, {"tasks": {f"{name}-{number}": task("true", parents=["nowhere"]) for number in range(500)}})
    assert faults[0] == f"tasks.{name}-0.parents[0]: there is no task `nowhere`"
    assert len(faults) > 10
    assert faults[-1] == f"and {500 - len(faults) + 1} more"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere.json", "cannot read nowhere.json: No such file or directory"),
        (".", "cannot read .: Is a directory"),
        ("/dev/null", "/dev/null is refused: "),
    ],
)
@pytest.mark.parametrize("command", ["run", "submit", "validate", "expand"])
def test_no_such_file(shared: Deployment, command: str, spec: str, words: str) -> None:
    ended = shared.daggyr(command, spec)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"daggyr: {words}")
    assert len(ended.err.splitlines()) == 1


def test_a_larger_document_or_run_than_the_server_takes(deployment: Deployment) -> None:
    deployment.start_server(config="[server]\nmax_run_bytes = 2000\nmax_run_tasks = 100\n")
    long = deployment.daggyr("submit", deployment.spec({"a": task("true", "x" * 3000)}))
    wide = deployment.daggyr("submit", deployment.spec({"a": ECHO}, parameters={"{{X}}": [str(n) for n in range(99)]}))
    for ended, setting in ((long, "max_run_bytes"), (wide, "max_run_tasks")):
        assert (ended.code, ended.out) == (2, "")
        assert setting in ended.err
    deployment.goes_on()


def test_a_wrong_configuration_ends_the_server_before_it_listens(tmp_path: Path, deployment: Deployment) -> None:
    (deployment.folder / "bad.toml").write_text('[server]\nlisten = "0.0.0.0:0"\nlese = 3\n[pools.a]\nexecutor = "lokal"\n')
    program = deployment.start("daggyr-server", "--config", str(deployment.folder / "bad.toml"))
    assert program.wait() == 2
    said = program.said()
    assert "server.lese: unknown key; did you mean `lease`?" in said
    assert "insecure = true" in said
    assert "local" in said


@pytest.mark.parametrize("command", ["validate", "expand", "submit", "run"])
@pytest.mark.parametrize("output", ["table", "json"])
def test_what_is_valid_and_most_likely_not_meant_is_told(shared: Deployment, command: str, output: str, tmp_path: Path) -> None:
    """The warning is on standard error, whatever the output is, and does not change the exit code."""
    tasks = {"a": task("true", "{{DAET}}"), "b": task("true", "{{DATE}}", "~/x", working_directory="/")}
    path = tmp_path / "spec.json"
    path.write_bytes(json.dumps({"tasks": tasks, "parameters": {"{{DATE}}": ["1"]}}).encode("utf-8-sig"))
    ended = shared.daggyr("--output", output, command, str(path))
    assert ended.code == 0
    told = [line for line in ended.err.splitlines() if line.startswith("warning: ")]
    assert told == [
        "warning: tasks.b.details.command[2]: the `~` of `~/x` stays as it is, because no shell reads it; write the whole path",
        "warning: tasks.a.details: `{{DAET}}` is no parameter, and stays as it is; did you mean `{{DATE}}`?",
    ]
    if command == "submit":
        run_id = json.loads(ended.out)["run_id"] if output == "json" else int(ended.out)
        shared.watch(run_id)
        shared.daggyr("delete", str(run_id))
