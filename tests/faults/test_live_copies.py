"""A tracker whose files are copied, all of them, while a server uses it: the copy is not served beside it on the same host."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import msgspec
from support.deployment import Deployment, Program, shell
from support.waiting import until
from test_restored_copies import server_command


def started(deployment: Deployment, folder: Path) -> Program:
    folder.mkdir(exist_ok=True)
    return deployment.start_server("--workers", "2", "--tracker", f"sqlite:{folder}/state.db")


def served(deployment: Deployment, folder: Path) -> tuple[int, str]:
    """How a server on the tracker of this folder ends."""
    ended = server_command(deployment, "--tracker", f"sqlite:{folder}/state.db", "--listen", "127.0.0.1:0")
    return ended.code, ended.err


def test_a_copy_of_all_files_is_refused_while_the_tracker_is_served(deployment: Deployment) -> None:
    """Nothing runs twice, and the server that was there may be started again, which it could not once the copy had begun."""
    folder, copy = deployment.folder / "tracker", deployment.folder / "copy"
    server = started(deployment, folder)
    gate = deployment.gate()
    run_id = deployment.submit({"a": shell(f"echo ran >> a; {gate.hold}"), "b": shell("echo ran >> b")})
    gate.reached()
    shutil.copytree(folder, copy)
    code, words = served(deployment, copy)
    assert code == 2, words
    assert f"is a copy of {folder}/state.db, which process {server.process.pid} serves on this host" in words
    assert "daggyr-server backup" in words
    assert (deployment.read("a"), deployment.states(run_id)["a"]) == ("ran\n", "RUNNING")
    left = list(deployment.temporary.iterdir())
    server.end(signal.SIGKILL)
    started(deployment, folder)
    until(lambda: not any(path.exists() for path in left), "the end of what the server that was killed left")
    gate.open()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    assert deployment.read("b") == "ran\n"


def test_what_a_version_before_wrote_of_a_start_is_read(deployment: Deployment) -> None:
    """It does not tell which process that was, and the next start is taken."""
    folder = deployment.folder / "tracker"
    started(deployment, folder).end()
    (seen,) = (deployment.state / "daggyr" / "trackers").iterdir()
    start = msgspec.json.decode(seen.read_bytes())
    seen.write_bytes(msgspec.json.encode({name: start[name] for name in ("epoch", "life")}))
    started(deployment, folder)
    deployment.goes_on()
