"""What a program loads: only what it needs, so that a short run is not over before its libraries are there.

Names of modules are looked at, never times: these are for a person to measure, on a machine that has nothing else to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.deployment import BIN, plain_environment
from support.loaded_modules import loaded_modules
from support.waiting import DEADLINE, until

# Each belongs to something that a local pool, the memory tracker and a specification in JSON do without.
NOT_NEEDED = {"asyncssh", "prometheus_client", "psycopg", "rich", "yaml", "sqlite3", "http.client"}
PROBES = {"grpc_health.v1.health", "grpc_reflection.v1alpha.reflection"}  # gRPC itself loads the packages around them
PROGRAMS = {"daggyr_server", "daggyr_agent", "click"}
TELL_IMPORTS = {"PYTHONPROFILEIMPORTTIME": "1"}


def of_server(folder: Path, *arguments: str) -> set[str]:
    """What a server with a local pool has loaded once it is ready, and what the agent of that pool has."""
    ready, said = folder / "ready", folder / "said"
    read_end, lifeline = os.pipe()
    command = [BIN / "daggyr-server", "--listen", f"unix:{folder}/s", "--ready-file", ready, "--lifeline", str(read_end)]
    environment = {**plain_environment(), "XDG_STATE_HOME": str(folder), "TMPDIR": str(folder), **TELL_IMPORTS}
    with said.open("w") as log:
        server = subprocess.Popen(
            [*command, *arguments], env=environment, stdin=subprocess.DEVNULL, stderr=log, pass_fds=[read_end]
        )
    os.close(read_end)
    try:
        joined = "daggyr_agent.agent"  # the last thing of the agent's own that it loads
        until(lambda: ready.exists() and joined in loaded_modules(said.read_text()), "a server and its agent")
    finally:
        os.close(lifeline)
        assert server.wait(DEADLINE) == 0
    return loaded_modules(said.read_text())


def printed(code: str) -> list[str]:
    """The words that a program prints."""
    return subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_a_server_with_a_local_pool_and_its_agent_load_what_these_need(tmp_path: Path) -> None:
    loaded = of_server(tmp_path)
    assert not loaded & NOT_NEEDED
    assert loaded >= PROBES  # a server that is not private answers probes


def test_the_server_of_a_single_run_answers_no_probes_and_loads_nothing_for_them(tmp_path: Path) -> None:
    loaded = of_server(tmp_path, "--private-folder", str(tmp_path / "owned"))
    assert not loaded & (NOT_NEEDED | PROBES)


def test_a_run_starts_its_server_before_it_loads_the_network() -> None:
    """Both take about as long, and go on side by side."""
    code = "import sys, daggyr_server.cli.commands.run; print(*sys.modules)"
    loaded = printed(code)
    assert "daggyr_server.cli.server_process" in loaded
    assert not set(loaded) & (NOT_NEEDED | {"asyncio", "grpc", "google.protobuf", "daggyr_server.spec"})


def test_a_run_loads_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"tasks": {"a": {"details": {"command": ["true"]}}}}))
    # An option, and no variable: its server would inherit that, and the command passes on what a server that starts says.
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "daggyr_server.cli", "run", "spec.json"],
        cwd=tmp_path,
        env={**plain_environment(), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert ended.returncode == 0, ended.stderr
    loaded = loaded_modules(ended.stderr)
    assert "daggyr.client" in loaded
    assert not loaded & (NOT_NEEDED | PROBES | {"daggyr_server.spec"})


@pytest.mark.parametrize("module", ["daggyr.client", "daggyr.tokens", "daggyr.checked"])
def test_what_programs_import_brings_neither_server_nor_command_line(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = printed(code)
    assert not {
        name for name in loaded if name.partition(".")[0] in {"daggyr_server", "daggyr_agent", "click", "rich", "asyncssh"}
    }
