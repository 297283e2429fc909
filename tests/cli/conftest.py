"""The fixtures of this folder: a scripted server with a token, and the real program `daggyr` to talk to it.

The server is in the test's process and on loopback. Programs that still run when a test ends are killed.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from daggyr_program import PROGRAM, Daggyr, Process, Start
from scripted_server import TOKEN, ScriptedServer
from support import preloaded
from support.ended import Ended


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which no program listens or will listen, because its port is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has a token; it has no variable DAGGYR_* of the user who runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DAGGYR_", "XDG_"))}
    state = tmp_path / "state"
    token = state / "daggyr" / "client.token"
    token.parent.mkdir(parents=True, mode=0o700)
    token.touch(mode=0o600)
    token.write_text(TOKEN + "\n")
    return {**inherited, "XDG_STATE_HOME": str(state), "TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONWARNINGS": "error"}


@pytest.fixture
async def start(environment: dict[str, str], tmp_path: Path) -> AsyncIterator[Start]:
    """A function that starts `daggyr` with arguments in tmp_path. Programs that still run in the end are killed."""
    processes: list[asyncio.subprocess.Process] = []

    async def begin(*arguments: str, env: dict[str, str] | None = None) -> Process:
        process = await preloaded.create_subprocess_exec(
            PROGRAM,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**environment, **(env or {})},
            cwd=tmp_path,
        )
        processes.append(process)
        return Process(process)

    yield begin
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def daggyr(start: Start, server: ScriptedServer) -> Daggyr:
    """A function that runs `daggyr` to its end, with the scripted server as its server."""

    async def run(*arguments: str, stdin: bytes | None = None, env: dict[str, str] | None = None) -> Ended:
        chosen = {"DAGGYR_SERVER": f"127.0.0.1:{server.port}", **(env or {})}
        return await (await start(*arguments, env=chosen)).ended(stdin)

    return run
