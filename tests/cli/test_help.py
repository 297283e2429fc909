"""Every command documents itself: it has help, an example that parses, and a place in the README."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from daggyr_program import Start
from support.loaded_modules import loaded_modules

import daggyr_server
from daggyr_server.cli.main import program
from daggyr_server.cli.options import Command

README = Path(daggyr_server.__file__).parent / "cli" / "README.md"
# The commands of the design, section 6.
EXPECTED = {
    "run", "submit", "runs", "show", "tasks", "task", "why", "watch", "logs", "kill", "retry", "edit", "mark", "delete", "prune",
    "validate", "expand", "schema", "pools", "agents", "agent drain", "agent forget", "help", "completion",
}  # fmt: skip


def commands(group: click.Group = program, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands())


def test_the_commands_are_those_of_the_design() -> None:
    assert set(COMMANDS) == EXPECTED


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_and_one_example_that_parses(name: str) -> None:
    command = COMMANDS[name]
    assert isinstance(command, Command)
    assert command.help
    assert command.get_short_help_str()
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{name} {parameter.opts[0]} says nothing of itself"
    found = re.search(rf"\bdaggyr {name}\b([^)|]*)", command.example)
    assert found, "the example shows another command"
    assert command.make_context(name, shlex.split(found[1])).params is not None
    text = command.get_help(click.Context(command, info_name=f"daggyr {name}"))
    assert text.count("Example:") == 1
    assert command.example in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_tells_of_every_command(name: str) -> None:
    assert f"`daggyr {name}" in README.read_text()


async def test_help_of_the_program_and_of_a_command(start: Start) -> None:
    ended = await (await start("--help")).ended()
    assert ended.code == 0
    assert all(f"  {name.split()[0]} " in ended.out for name in EXPECTED)
    ended = await (await start("agent", "drain", "--help")).ended()
    assert ended.code == 0
    assert "Usage: daggyr agent drain" in ended.out
    assert "daggyr agent drain host1" in ended.out


async def test_a_reader_of_help_that_went_away_is_no_fault(start: Start) -> None:
    for arguments in (("--help",), ("run", "--help"), ("--version",), ("agent",)):
        process = (await start(*arguments)).process
        assert process.stdout is not None
        process.stdout._transport.close()  # type: ignore[attr-defined]
        assert process.stderr is not None
        said = await process.stderr.read()
        assert (await process.wait(), b"Traceback" in said) == (2 if arguments == ("agent",) else 0, False)


async def test_version(start: Start) -> None:
    ended = await (await start("--version")).ended()
    assert (ended.code, ended.out) == (0, f"daggyr {daggyr_server.__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_prints_a_script(start: Start, shell: str) -> None:
    ended = await (await start("completion", shell)).ended()
    assert ended.code == 0
    assert "_DAGGYR_COMPLETE" in ended.out


async def test_completion_completes_commands_and_options(start: Start) -> None:
    words = {"_DAGGYR_COMPLETE": "bash_complete", "COMP_WORDS": "daggyr wa", "COMP_CWORD": "1"}
    assert (await (await start(env=words)).ended()).out == "plain,watch\n"
    words = {"_DAGGYR_COMPLETE": "bash_complete", "COMP_WORDS": "daggyr retry last --dow", "COMP_CWORD": "3"}
    assert (await (await start(env=words)).ended()).out == "plain,--downstream\n"


@pytest.mark.parametrize("arguments", [("--version",), ("--help",)])
async def test_what_needs_no_server_loads_no_network(start: Start, arguments: tuple[str, ...]) -> None:
    """A program that is asked for its help loads no network, no tables and no specifications, so that it answers at once."""
    loaded = loaded_modules((await (await start(*arguments, env={"PYTHONPROFILEIMPORTTIME": "1"})).ended()).err)
    assert "click" in loaded
    assert not loaded & {"grpc", "asyncio", "rich", "google.protobuf", "msgspec", "yaml", "daggyr.client", "daggyr_server.spec"}


async def test_completing_the_name_of_a_command_loads_no_command(start: Start) -> None:
    words = {"_DAGGYR_COMPLETE": "bash_complete", "COMP_WORDS": "daggyr ", "COMP_CWORD": "1", "PYTHONPROFILEIMPORTTIME": "1"}
    ended = await (await start(env=words)).ended()
    assert {line.removeprefix("plain,") for line in ended.out.splitlines()} == {name.split()[0] for name in EXPECTED}
    assert not {name for name in loaded_modules(ended.err) if name.startswith(("daggyr_server.cli.commands", "grpc"))}
