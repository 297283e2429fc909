"""README.md tells the truth: its blocks run, its commands are those that there are, its files are there.

The blocks that make what they need (the two at the top) are tested with the bootstrap and the examples instead.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from support.own_network import own_network
from support.readme_examples import ROOT
from support.waiting import DEADLINE

from daggyr_server.cli.commands.help import run_format
from daggyr_server.cli.main import program
from daggyr_server.spec import decode_json, expand
from daggyr_server.spec.keys import RUN, TASK, Key, table
from daggyr_server.spec.yaml_text import yaml_to_json

README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text under a heading of the README."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


class Reader:
    """Who pastes the README's blocks into a shell: a folder with a copy of the examples, and the programs on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("out"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAGGYR_", "XDG_"))}
        self.environment = {
            **kept,
            "PATH": f"{BIN}{os.pathsep}{kept.get('PATH', os.defpath)}",
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def paste(self, line: str) -> str:
        """Run a line that ends by itself; returns its standard output."""
        ended = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert ended.returncode == 0, f"{line}\n{ended.stderr}"
        return ended.stdout


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def block_with(words: str) -> str:
    """The only shell block of the README in which `words` occur."""
    (block,) = (block for block in blocks("sh") if words in block)
    return block


def test_the_run_runs_as_it_is_pasted(reader: Reader) -> None:
    reader.paste(block_with("cat > spec.yaml"))
    assert (reader.folder / "report.txt").read_text().splitlines() == [
        *("1001: 7 11 13", "2023: 7 17 17", "65537: 65537"),
    ]


def test_a_server_and_two_agents_pasted_at_once(reader: Reader) -> None:
    """As it stands, at the default port: on a network of its own, where nobody else has that."""
    own = own_network()
    reader.paste(block_with("cat > spec.yaml"))
    block = block_with("daggyr-server --config")
    server, *agents, listing, _ = block.splitlines()
    assert (len(agents), server.split()[0], agents[0].split()[0]) == (2, "daggyr-server", "daggyr-agent")
    names = {found[1] for agent in agents if (found := re.search(r"--name (\w+)", agent))}
    # Behind the block: both agents join, and what was started is ended, agents before their server, whatever went wrong.
    joined = " ".join(f"until {listing} | grep -q '^{name} '; do sleep 0.1; done;" for name in names)
    end = "jobs -p > pids; for pid in $(sort -rn pids); do kill $pid; wait $pid; done"
    script = reader.folder / "pasted.sh"
    script.write_text(f"trap '{end}' EXIT\nset -e\n{block}{joined}\n")
    ended = subprocess.run(
        [*own, "sh", str(script)],
        cwd=reader.folder,
        env=reader.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"tasks +4: 4 COMPLETED", ended.stdout), ended.stdout
    assert (reader.folder / "state/daggyr/agent.token").exists()


def test_a_command_says_that_it_waits_for_a_server_that_nobody_named(reader: Reader) -> None:
    """On a network where there is none, and where none comes: whether one would come in time is not asked here."""
    command = subprocess.Popen(
        [*own_network(), "daggyr", "agents"],
        cwd=reader.folder,
        env=reader.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        assert command.stderr is not None
        first = command.stderr.readline()
        command.terminate()
    assert first.startswith("daggyr: no server at 127.0.0.1:2503 yet; waiting 10 s"), first


def test_the_default_address_is_the_one_in_the_lines() -> None:
    from daggyr.address import DEFAULT_ADDRESS

    (block,) = (block for block in blocks("sh") if "daggyr-agent" in block)
    assert set(re.findall(r"--coordinator (\S+)", block)) == {DEFAULT_ADDRESS}
    assert "listen" not in re.sub(r"^#.*$", "", (ROOT / "examples/agents/coordinator.toml").read_text(), flags=re.MULTILINE)


def test_the_two_commands_at_the_top_call_what_there_is() -> None:
    first, second = blocks("sh")[:2]
    assert first.startswith("deploy/bootstrap ")
    assert second == "tests/run\n"
    for name in ("deploy/bootstrap", "tests/run"):
        assert os.access(ROOT / name, os.X_OK)
    # What the first one runs is what the example's own README says.
    inner = shlex.split(first)[-1]
    assert inner in (ROOT / "examples/flights/README.md").read_text()


def commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """All commands by the words that call them."""
    found: dict[tuple[str, ...], click.Command] = {}
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                found |= commands(command, (*path, name))
            else:
                found[(*path, name)] = command
    return found


def test_every_command_is_in_the_table_and_every_one_in_it_exists() -> None:
    rows = [row.split("|")[1] for row in section("Commands").splitlines() if row.startswith("| `")]
    calls = [re.sub(r"^daggyr ", "", call) for row in rows for call in re.findall(r"`([^`]+)`", row)]
    known = commands(program)
    listed: set[tuple[str, ...]] = set()
    for call in calls:
        words = re.findall(r"[a-z]\S*|--?[a-z]+", call.replace("[", " ").replace("]", " "))
        names = [word for word in words if not word.startswith("-")]
        name = next((tuple(names[:length]) for length in (2, 1) if tuple(names[:length]) in known), None)
        assert name is not None, f"README.md lists {call!r}, which does not exist"
        listed.add(name)
        options = {option for parameter in known[name].params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)-{1,2}[a-z][a-z-]*", call.replace("[", " ").replace("]", " ")):
            assert option in options, f"README.md gives {call!r} an option {option} that it does not have"
    assert listed == set(known), f"README.md does not list {sorted(set(known) - listed)}"


def test_the_keys_of_the_run_format_are_those_that_are_decoded() -> None:
    from daggyr_server.spec.document import Details, RunSpec, TaskDefinition

    told = set(
        re.findall(r"`([a-z_.]+)`", " ".join(row.split("|")[1] for row in section("The run format").splitlines() if "|" in row))
    )
    details = {f"details.{name}" for name in Details.__struct_fields__}
    assert told == {*RunSpec.__struct_fields__, *details, *TaskDefinition.__struct_fields__} - {"details"}


def test_the_tables_of_the_run_format_are_those_of_the_command_line() -> None:
    text = section("The run format")
    assert text.startswith("\n" + table("key", RUN) + "\n" + table("key of a task", TASK) + "\n"), (
        "README.md has other tables than daggyr_server/spec/keys.py"
    )


@pytest.mark.parametrize("key", RUN, ids=lambda key: ", ".join(key.names))
def test_the_example_of_a_key_of_a_run_is_valid(key: Key) -> None:
    spec = json.loads(yaml_to_json(key.example.encode()))
    assert [name for name in spec if not name.startswith("x-")] == [name for name in key.names if name != "x-..."]
    spec.setdefault("tasks", {"a": {"details": {"command": ["true"]}}})
    expand(decode_json(json.dumps(spec).encode()), default_pool="default")


@pytest.mark.parametrize("key", TASK, ids=lambda key: ", ".join(key.names))
def test_the_example_of_a_key_of_a_task_is_valid(key: Key) -> None:
    task = key.example if key.example.startswith("{") else f"{{{key.example}}}"
    tasks = json.loads(yaml_to_json(f"tasks: {{a: {task}}}".encode()))["tasks"]
    given = tasks["a"]
    for name in key.names:
        outer, _, inner = name.partition(".")
        assert (inner in given[outer]) if inner else outer in given or (outer == "children" and "parents" in given)
    given.setdefault("details", {"command": ["x", "{{MONTH}}"]})
    for parent in given.get("parents", []):
        tasks[parent if isinstance(parent, str) else parent["task"]] = {"details": {"command": ["x", "{{MONTH}}"]}}
    spec = {"parameters": {"{{MONTH}}": ["1", "2"]}, "tasks": tasks}
    expand(decode_json(json.dumps(spec).encode()), default_pool="default")


def test_help_tells_every_key_with_its_example() -> None:
    told = run_format()
    for key in (*RUN, *TASK):
        assert f"\n  {', '.join(key.names)}\n" in told
        assert f"Example: {key.example}\n" in told


def test_words_are_explained_where_they_are_used_first() -> None:
    """Each of these stands in italics once, and nowhere before that as a word of its own (in commands it may)."""
    prose = re.sub(r"^```.*?^```$|`[^`]+`|^#.*?$", "", README, flags=re.MULTILINE | re.DOTALL)
    for word in ("coordinator", "agent", "run", "task", "parameter", "attempt", "token", "pool", "executor", "tracker", "lease"):
        first = re.search(rf"(?i)\b{word}s?\b(?! graphs| it| on| side| by| in| this| a real| from)", prose)
        assert first is not None
        assert prose[first.start() - 1] == "*", f"{word}: {prose[max(0, first.start() - 60) : first.end() + 20]!r}"


def test_it_reads_the_same_on_a_page_of_its_own() -> None:
    """A package's page has the README and nothing beside it: no picture and no link of a relative path."""
    assert not re.findall(r"\]\((?!https?://)[^)]*\)", README)


def test_files_that_are_named_are_there() -> None:
    for name in re.findall(r"`((?:examples|deploy|tests|daggyr_\w+)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name
    for name in ("CONTRIBUTING.md", "LICENSE", "CHANGELOG.md"):
        assert (ROOT / name).exists(), name


def test_the_servers_readme_names_every_file_of_driver_and_api_and_no_other() -> None:
    package = ROOT / "daggyr_server"
    named = set(re.findall(r"`(\w+\.py)`", (package / "README.md").read_text(encoding="utf-8")))
    files = [*package.glob("*.py"), *(package / "driver").rglob("*.py"), *(package / "api").rglob("*.py")]
    assert named == {file.name for file in files if file.name != "__init__.py"}
