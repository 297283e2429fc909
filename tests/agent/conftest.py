"""What the agent's tests ask for: a coordinator, and agents that talk to it and end with the test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from agent_program import MARK, PATIENT, PROGRAM, AgentProcess, StartAgent
from scripted_coordinator import Coordinator


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: a unix socket's has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="daggyr-")).resolve()
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def coordinator() -> AsyncIterator[Coordinator]:
    coordinator = Coordinator()
    yield coordinator
    await coordinator.stop()


@pytest.fixture
async def address(coordinator: Coordinator, folder: Path) -> str:
    """Where the coordinator listens."""
    return await coordinator.start(f"unix:{folder}/coordinator.sock")


@pytest.fixture
def start_agent(folder: Path) -> Iterator[StartAgent]:
    """Starts agents: `start_agent(address, "--more", "arguments", name=..., environment={...})`.

    They are patient, but for those whose own limits a test is about.
    """
    agents: list[AgentProcess] = []

    def start(
        address: str,
        *arguments: str,
        name: str = "agent",
        cores: int | None = 2,
        environment: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        prefix: tuple[str, ...] = (),
        patient: bool = True,
    ) -> AgentProcess:
        home = folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        state = folder / f"state-{name}"
        more = (f"--pass-environment={MARK}", *(() if cores is None else ("--resource", f"cores={cores}")))
        agent = AgentProcess(
            home,
            state,
            (
                *(*prefix, *(PATIENT if patient else (str(PROGRAM),))),
                *("--coordinator", address, "--name", name, "--state-dir", str(state), *more, *arguments),
            ),
            {**os.environ, "XDG_STATE_HOME": str(folder / "xdg"), **(environment or {})},
            pass_fds,
        )
        agents.append(agent)
        return agent

    yield start
    for agent in agents:
        agent.end()


@pytest.fixture
def agent(start_agent: StartAgent, address: str) -> AgentProcess:
    """An agent of two cores."""
    return start_agent(address)
