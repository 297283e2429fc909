"""The command line and the configuration file: what they mean, and what is said of their faults."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from agent_program import PROGRAM, StartAgent
from scripted_coordinator import Coordinator

from daggyr.checked import ConfigurationError
from daggyr_agent.config import UsageError, read_config

NOWHERE = ("--coordinator", "unix:/nowhere")


def one_line(error: BaseException) -> str:
    """The error as the program prints it."""
    return " ".join(line.strip() for line in str(error).splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "coordinator: there is none; write --coordinator HOST:2503"),
        (["--coordinator", "host"], "'host' is no address: write HOST:PORT"),
        (["--coordinator", "::1:2503"], "[::1]:2503"),
        ([*NOWHERE, "--frobnicate"], "--frobnicate"),
        ([*NOWHERE, "--resource", "cores"], "write NAME=UNITS"),
        ([*NOWHERE, "--resource", "cores=two"], "--resource.cores: expected a whole number, found text"),
        ([*NOWHERE, "--resource", "cores=-1"], "--resource.cores: expected a whole number of at least 0, found -1"),
        ([*NOWHERE, "--resource", "cores=0"], "at least 1"),
        ([*NOWHERE, "--resource", "gpus=1", "--resource", "gpus=2"], "--resource: gpus is given twice"),
        ([*NOWHERE, "--resource", f"bytes={2**63}"], "--resource.bytes: expected a whole number of at most 1000000000000000"),
        ([*NOWHERE, "--resource", "=3"], "--resource: '' is no word; write one word"),
        ([*NOWHERE, "--name", "a/b"], "cannot name a folder"),
        ([*NOWHERE, "--name", ".."], "cannot name a folder"),
        ([*NOWHERE, "--name", "ü" * 150], "cannot name a folder"),
        ([*NOWHERE, "--pool", "two words"], "--pool: 'two words' is no word; write one word"),
        ([*NOWHERE, "--log-level", "loud"], "--log-level: expected one of debug, info, warning, error"),
        ([*NOWHERE, "--tls-cert", "cert.pem"], "tls_cert and tls_key go together"),
        # An empty path comes from a variable that a script never set.
        *(([*NOWHERE, f"--{name}="], f"--{name}: expected a path") for name in ("state-dir", "token-file", "tls-ca", "tls-cert")),
        ([*NOWHERE, "--config="], "--config: expected a path"),
        ([*NOWHERE, "--lifeline", "pipe"], "'pipe' is no number of a file descriptor"),
        ([*NOWHERE, "--lifeline", "987654"], "no file descriptor 987654 was inherited"),
        ([*NOWHERE, "--lifeline", "9" * 30], "is no number of a file descriptor"),
        ([*NOWHERE, "--lifeline", "-1"], "'-1' is no number of a file descriptor"),
        ([*NOWHERE, "--config", "/no/such/file.toml"], "/no/such/file.toml has a fault: the file: cannot be read"),
        ([*NOWHERE, "--config", "/dev/zero"], "/dev/zero has a fault: the file: is larger than 1,048,576 bytes"),
        (["--coordinator", "https://host:2503"], "write HOST:PORT, without `https://`"),
    ],
)
def test_fault_of_usage_is_told(arguments: list[str], words: str) -> None:
    with pytest.raises((UsageError, ConfigurationError)) as raised:
        read_config(arguments, os.environ)
    assert words in one_line(raised.value)
    assert "faults:" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("coordinator = ", "is no TOML"),
        ("coordinator = 3", "coordinator: expected text, found a whole number"),
        ('token_file = ""', "token_file: expected a path"),
        ("noop = 1", "noop: expected true or false, found a whole number"),
        ("[pools.default]", "pools: unknown key; did you mean `pool`?"),
        ("resource = 3", "resource: expected a table, found a whole number"),
        ("resource = {cores = 1.5}", "resource.cores: expected a whole number, found a number"),
        ("resource = {cores = true}", "resource.cores: expected a whole number, found true or false"),
    ],
)
def test_fault_of_the_file_names_it(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    nowhere = [] if text.startswith("coordinator") else NOWHERE
    with pytest.raises(ConfigurationError) as raised:
        read_config(["--config", str(path), *nowhere], os.environ)
    assert str(raised.value).startswith(f"{path} has a fault:")
    assert words in one_line(raised.value)


def test_the_faults_of_file_and_command_line_are_told_together_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('name = "a/b"\npool = "x y"\n')
    ended = subprocess.run(
        [PROGRAM, "--config", tmp_path / "agent.toml", "--log-level", "loud"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    for place in (
        " name: 'a/b' cannot",
        " pool: 'x y' is no word;",
        " --log-level: expected one of",
        " coordinator: there is none;",
    ):
        assert place in ended.stderr


def test_a_home_folder_is_meant_by_a_tilde_that_no_shell_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "agent.toml").write_text('name = "of-the-file"')
    assert read_config(["--config=~/agent.toml", *NOWHERE], os.environ).name == "of-the-file"


def test_command_line_goes_over_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        'coordinator = "host:1"\nname = "file"\npool = "file"\nstate-dir = "/s"\nnoop = true\n[resource]\ngpus = 2\ncores = 7\n'
    )
    config = read_config(["--config", str(path), "--name", "line", "--resource", "cores=9"], {})
    assert (config.coordinator, config.name, config.pool, config.state_dir) == ("host:1", "line", "file", Path("/s"))
    assert config.noop is True
    assert dict(config.resources).items() >= {"gpus": 2, "cores": 9}.items()
    assert config.resources["memory_mb"] > 0


def test_defaults(tmp_path: Path) -> None:
    config = read_config(["--coordinator", "host:2503"], {"XDG_STATE_HOME": str(tmp_path)})
    assert config.name == os.uname().nodename
    assert (config.pool, config.noop, config.tls, config.token_file, config.lifeline) == ("default", False, None, None, None)
    assert config.resources["cores"] == len(os.sched_getaffinity(0))
    assert 0 < config.resources["memory_mb"] <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    assert config.state_dir == tmp_path / "daggyr/agents" / config.name


def test_path_of_a_socket_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config(["--coordinator", "unix:agent.sock"], {}).coordinator == f"unix:{tmp_path}/agent.sock"


def test_program_says_a_fault_on_stderr_with_code_2() -> None:
    ended = subprocess.run([PROGRAM, "--frobnicate"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("daggyr-agent: ") and ended.stderr.count("\n") == 1


def test_help_and_version_go_to_stdout() -> None:
    helped = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=False)
    assert helped.returncode == 0 and "--coordinator" in helped.stdout and "Example:" in helped.stdout
    told = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and told.stdout.startswith("daggyr-agent ")


async def test_second_agent_in_a_state_folder_is_refused(start_agent: StartAgent, address: str, coordinator: Coordinator) -> None:
    first = start_agent(address)
    await coordinator.session()
    second = start_agent(address)
    assert await second.exit_code() == 2
    [line] = second.log.splitlines()
    assert f"process {first.pid} uses the state folder {first.state}" in line and "--state-dir" in line
    assert len(coordinator.sessions) == 1


@pytest.mark.parametrize("what", ["file", "missing parent of a file", "id"])
async def test_state_folder_that_cannot_be_used_is_refused(start_agent: StartAgent, folder: Path, what: str) -> None:
    (folder / "file").touch()
    (folder / "state").mkdir()
    (folder / "state/agent-id").write_text("\n")
    path = {"file": folder / "file", "missing parent of a file": folder / "file/state", "id": folder / "state"}[what]
    agent = start_agent("unix:/nowhere", "--state-dir", str(path))
    assert await agent.exit_code() == 2
    [line] = agent.log.splitlines()
    assert str(path) in line
