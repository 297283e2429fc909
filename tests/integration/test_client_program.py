"""The program in protos/daggyr/README.md, as it stands there, against a real server: submit, wait, read, and typed errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.deployment import Deployment, plain_environment
from support.readme_examples import ROOT
from support.waiting import DEADLINE

README = ROOT / "protos/daggyr/README.md"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (text,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    path = tmp_path / "program.py"
    path.write_text(text)
    return path


def ended(program: Path, address: str, state: Path) -> subprocess.CompletedProcess[str]:
    """How the program ended, and what it said."""
    return subprocess.run(
        [sys.executable, "-P", program, address],
        env={**plain_environment(), "XDG_STATE_HOME": str(state)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def test_the_program_of_the_readme_runs_something(deployment: Deployment, program: Path) -> None:
    deployment.start_server()
    said = ended(program, deployment.address, deployment.state)
    assert (said.returncode, said.stdout, said.stderr) == (0, "hello\nSTATE_COMPLETED\n", "")
    (run,) = deployment.runs()
    assert run["tags"] == {"by": "program"}


def test_it_tells_a_refusal_from_a_server_that_is_not_there(deployment: Deployment, program: Path, tmp_path: Path) -> None:
    deployment.start_server()
    folder = tmp_path / "another/daggyr"
    folder.mkdir(parents=True)
    (folder / "client.token").touch(mode=0o600)
    (folder / "client.token").write_text("daggyr-client-of-another-server")
    refused = ended(program, deployment.address, folder.parent)
    assert refused.returncode == 1
    assert refused.stderr.startswith("the server refused (UNAUTHENTICATED): ")
    unreached = ended(program, f"unix:{tmp_path}/nothing.sock", deployment.state)
    assert unreached.returncode == 1
    assert unreached.stderr.startswith(f"no server at unix:{tmp_path}/nothing.sock: ")
