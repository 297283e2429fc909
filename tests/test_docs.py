"""README.md tells the truth: its blocks run, its commands are those that there are, its files are there.

The blocks that make what they need (the two at the top) are tested with the bootstrap and the examples instead.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from readme_examples import ROOT
from waiting import DEADLINE

from daggyr_server.cli.main import program

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
        self.daemons: list[subprocess.Popen[bytes]] = []

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

    def start(self, line: str) -> None:
        """Run a line that ends in `&`."""
        words = shlex.split(line, comments=True)
        assert words.pop() == "&"
        with (self.folder / "log").open("ab") as log:
            self.daemons.append(
                subprocess.Popen(words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stderr=log)
            )

    def wait_for(self, path: Path) -> str:
        """What is in a file, once it is there."""
        deadline = time.monotonic() + DEADLINE
        while not path.exists():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.01)
        return path.read_text()

    def close(self) -> None:
        # In the order opposite to the start: an agent without its server waits for the next one.
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(DEADLINE)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    made.close()


def write_specification(folder: Path) -> None:
    """The README's example of a run, with the scripts that it calls."""
    (text,) = blocks("yaml")
    (folder / "spec.yaml").write_text(text)
    for name, script in (("extract", 'test $# = 1 && echo "$1" > "extracted-$1"'), ("load", "cat extracted-* > loaded")):
        (folder / f"{name}.sh").write_text(f"#!/bin/sh\n{script}\n")
        (folder / f"{name}.sh").chmod(0o755)


def test_the_run_runs_as_it_is_described(reader: Reader) -> None:
    write_specification(reader.folder)
    assert "`daggyr run spec.yaml`" in section("A run")
    assert "4 COMPLETED" in reader.paste("daggyr run spec.yaml")  # three of `extract`, and `load`
    assert (reader.folder / "loaded").read_text().split() == ["01", "02", "03"]


def test_a_server_and_two_agents_in_five_lines(reader: Reader) -> None:
    """As they stand there, but for the port: on a host where others test, too, the server takes a free one."""
    write_specification(reader.folder)
    (block,) = (block for block in blocks("sh") if "daggyr-agent" in block)
    server, *agents, listing, submission = block.splitlines()
    assert (len(agents), server.split()[0], agents[0].split()[0]) == (2, "daggyr-server", "daggyr-agent")
    ready = reader.folder / "ready"
    reader.start(server.replace("daggyr-server", f"daggyr-server --listen 127.0.0.1:0 --ready-file {ready}", 1))
    address = reader.wait_for(ready).strip()
    reader.environment["DAGGYR_SERVER"] = address
    for agent in agents:
        assert "--coordinator 127.0.0.1:2503" in agent
        reader.start(agent.replace("127.0.0.1:2503", address))
    reader.paste(listing)
    assert "6 COMPLETED" in reader.paste(submission)
    names = {found[1] for agent in agents if (found := re.search(r"--name (\w+)", agent))}
    deadline = time.monotonic() + DEADLINE
    while not names <= {line.split()[0] for line in reader.paste(listing).splitlines()}:
        assert time.monotonic() < deadline
    assert (reader.folder / "state/daggyr/agent.token").exists()


def test_the_default_address_is_the_one_in_the_lines() -> None:
    from daggyr.channel import DEFAULT_ADDRESS

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


def test_files_that_are_named_are_there() -> None:
    for name in re.findall(r"`((?:examples|deploy|tests|daggyr_\w+)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name
    for name in ("CONTRIBUTING.md", "LICENSE", "CHANGELOG.md"):
        assert (ROOT / name).exists(), name
