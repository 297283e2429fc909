"""What an agent shows of itself to a coordinator, and wants to be shown: tokens and TLS."""

from __future__ import annotations

import secrets
from pathlib import Path

import grpc
import pytest
from agent_program import StartAgent, eventually
from scripted_coordinator import Coordinator, key
from server.certificates import Authority
from support.task_specs import spec

from daggyr.tokens import make_token
from daggyr.v1.task_pb2 import SUCCEEDED


async def test_token_goes_with_the_call(start_agent: StartAgent, coordinator: Coordinator, folder: Path) -> None:
    """From the file named, or else the user's own; and not to a socket, which needs none."""
    coordinator.token = token = make_token("agent", folder / "token")
    address = await coordinator.start("127.0.0.1:0")
    agent = start_agent(address, "--token-file", str(folder / "token"), name="named")
    session = await coordinator.session(name="named")
    assert token not in " ".join(agent.command)
    assert session.metadata["authorization"] == f"Bearer {token}"
    make_token("agent", folder / "xdg/daggyr/agent.token")
    coordinator.token = None
    start_agent(address, name="own")
    own = (await coordinator.session(name="own")).metadata["authorization"]
    assert own == "Bearer " + (folder / "xdg/daggyr/agent.token").read_text().strip()
    assert token not in agent.log


async def test_socket_needs_no_token(start_agent: StartAgent, coordinator: Coordinator, address: str, folder: Path) -> None:
    make_token("agent", folder / "xdg/daggyr/agent.token")
    start_agent(address)
    assert "authorization" not in (await coordinator.session()).metadata


async def test_missing_token_is_explained(start_agent: StartAgent, coordinator: Coordinator) -> None:
    coordinator.token = secrets.token_hex()
    agent = start_agent(await coordinator.start("127.0.0.1:0"))
    assert await agent.exit_code() == 2
    assert "--token-file" in agent.log


@pytest.mark.parametrize("text", ["two words", ""])
async def test_token_file_that_holds_no_token_is_refused(start_agent: StartAgent, folder: Path, text: str) -> None:
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(text)
    agent = start_agent("127.0.0.1:1", "--token-file", str(path))
    assert await agent.exit_code() == 2
    assert str(path) in agent.log and "Traceback" not in agent.log


async def test_tls_with_certificates_on_both_sides(start_agent: StartAgent, coordinator: Coordinator, folder: Path) -> None:
    authority = Authority(folder, "authority")
    server, client = authority.sign("server"), authority.sign("client")
    credentials = grpc.ssl_server_credentials(
        [(server.key.read_bytes(), server.certificate.read_bytes())], authority.certificate.read_bytes(), True
    )
    address = await coordinator.start("127.0.0.1:0", credentials)
    trust = ("--tls-ca", str(authority.certificate))
    start_agent(address, *trust, "--tls-cert", str(client.certificate), "--tls-key", str(client.key), name="trusted")
    session = await coordinator.session(name="trusted")
    await session.assign((key(), spec("true")))
    assert (await coordinator.result(key())).outcome == SUCCEEDED
    stranger = start_agent(address, *trust, name="stranger")
    await eventually(lambda: "waiting for a coordinator" in stranger.log, "an agent without certificate does not get in")


async def test_unreadable_tls_file_is_refused(start_agent: StartAgent, folder: Path) -> None:
    agent = start_agent("localhost:1", "--tls-ca", str(folder / "missing.pem"))
    assert await agent.exit_code() == 2
    assert "missing.pem" in agent.log and "Traceback" not in agent.log
