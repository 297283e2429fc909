"""Which callers reach the port of the installed programs: many strangers, tokens that are read again, and what files may hold."""

from __future__ import annotations

import contextlib
import datetime
import resource
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.deployment import BIN, FARM, Deployment, follows, shell, task
from support.http2_frames import call, opened, reset
from support.waiting import until

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from certificates import Authority

WATCHES, CONNECTIONS = 9_800, 5_000

# Opens connections that say nothing and health watches without a token, says so, and holds what it got until it is ended.
STRANGER = """
import asyncio, sys, grpc
async def main(address, watches, connections):
    host, _, port = address.rpartition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(connections)]
    async with grpc.aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        calls = [channel.unary_stream("/grpc.health.v1.Health/Watch")(b"") for _ in range(watches)]
        ended = [asyncio.create_task(call.code()) for call in calls]
        await ended[0]
        print(ended[0].result().name, flush=True)
        await asyncio.Event().wait()
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


@contextlib.contextmanager
def stranger(address: str, watches: int, connections: int) -> Iterator[None]:
    command = [BIN / "python", "-c", STRANGER, address, str(watches), str(connections)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "UNAUTHENTICATED\n"
            yield
        finally:
            process.kill()


def descriptors() -> int:
    """How many a process may have here, if it raises its own limit."""
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 2**20)


def test_strangers_in_numbers_keep_nobody_out(farm: Deployment) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the stranger, too
    try:
        connections = min(CONNECTIONS, descriptors() // 4)  # there must be room for more than a stranger
        with stranger(farm.address, WATCHES, connections):
            ended = farm.daggyr("runs")
            assert (ended.code, ended.out) == (0, ""), ended.err
            farm.start_agent("newcomer")
            assert farm.complete({"a": task("true")})["state"] == "COMPLETED"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    server = farm.programs[0].said()
    assert server.count("refused") <= 3, server
    assert "refused a call from 127.0.0.1: UNAUTHENTICATED" in server


def test_calls_that_are_not_utf8_end_nothing_and_leave_nothing_in_the_log(farm: Deployment) -> None:
    """A path, a name of metadata and a token of any bytes, from somebody without a token."""
    odd = bytes(range(128, 256))
    with opened(farm.address) as stranger:
        for stream, path in enumerate((b"/" + odd, odd, b"/daggyr.v1.Runs/ListRuns", b"/grpc.health.v1.Health/Check")):
            stranger.sendall(call(2 * stream + 1, path, (b"authorization", b"Bearer half-a-token" + odd), (b"x-odd", odd)))
        answers = b""
        while b"the call brought no message" not in answers:  # the last one's
            data = stranger.recv(4096)
            assert data, answers
            answers += data
    assert farm.daggyr("runs").code == 0
    farm.start_agent("newcomer")
    assert farm.complete({"a": task("true")})["state"] == "COMPLETED"
    server = farm.programs[0].said()
    assert not [said for said in ("half-a-token", "Traceback", "Unicode", "\\x80", "\x80") if said in server], server


def test_more_calls_than_are_looked_at_at_once_keep_nobody_out(farm: Deployment) -> None:
    """gRPC cancels some of them, whoever makes them: those with a token are made again."""
    health = b"/grpc.health.v1.Health/Check"
    with contextlib.ExitStack() as held:
        for _ in range(20):
            stranger = held.enter_context(opened(farm.address))
            stranger.sendall(b"".join(call(stream, health, complete=False) for stream in range(1, 1_981, 2)))
        hasty = held.enter_context(opened(farm.address))
        with contextlib.suppress(ConnectionError):
            hasty.sendall(b"".join(call(stream, health) + reset(stream) for stream in range(1, 20_001, 2)))
        for _ in range(3):
            ended = farm.daggyr("runs")
            assert (ended.code, ended.out) == (0, ""), ended.err
        farm.start_agent("newcomer")
        assert farm.complete({"a": task("true")})["state"] == "COMPLETED"


def test_handshakes_that_fail_leave_no_line_each(deployment: Deployment) -> None:
    pair = Authority(deployment.folder, "authority").sign("server")
    tls = f'[server.tls]\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\n'
    server = deployment.start_server(config=f"[server]\n{tls}")
    host, _, port = deployment.address.rpartition(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as knocking:
            knocking.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while knocking.recv(4096):
                    pass
    until(lambda: f"the TLS `certificate` {pair.certificate} expires at" in server.said(), "the warning")
    said = server.said()
    assert len([line for line in said.splitlines() if " INFO " not in line and " WARNING " not in line]) == 0, said
    trust = ("--tls-ca", str(deployment.folder / "authority.pem"))
    assert deployment.daggyr(*trust, "runs").code == 0


def test_tasks_get_the_limit_of_descriptors_that_the_server_was_given(deployment: Deployment) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        server = deployment.start_server("--workers", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    deployment.complete({"limit": shell("ulimit -S -n; ulimit -H -n")})
    assert deployment.bytes("logs", "last", "limit").split() == [b"300", str(hard).encode()]


def renew(path: Path) -> str:
    """Put another token into the file, as a person would; returns it."""
    token = f"daggyr-{secrets.token_urlsafe(32)}"
    path.write_text(token + "\n")
    return token


def test_sighup_reads_the_tokens_again(deployment: Deployment) -> None:
    """Old ones are refused from then on, also where calls are under way; agents find the new one by themselves."""
    server = deployment.start_server(config=FARM)
    client, agent = (deployment.state / "daggyr" / f"{role}.token" for role in ("client", "agent"))
    old = deployment.folder / "old.token"
    old.touch(0o600)
    old.write_text(client.read_text())
    worker = deployment.start_agent("worker")
    gate = deployment.gate()
    run_id = deployment.submit({"held": shell(gate.hold)})
    gate.reached()
    watching = deployment.command("--token-file", str(old), "watch", str(run_id))
    follows(watching)

    client.chmod(0o644)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "the tokens stay as they were" in server.said(), "a word on a bad file")
    client.chmod(0o600)
    assert deployment.daggyr("--token-file", str(old), "runs").code == 0

    new = [renew(client), renew(agent)]
    server.process.send_signal(signal.SIGHUP)
    ended = deployment.ended(watching)
    assert (ended.code, "wants a valid token" in ended.err) == (2, True), ended.err
    until(lambda: worker.said().count("connected to ") == 2, "the agent again")
    assert deployment.daggyr("--token-file", str(old), "runs").code == 2
    worker.process.send_signal(signal.SIGHUP)
    until(lambda: "read again for the next session" in worker.said(), "the agent's word on SIGHUP")
    deployment._hang_up()  # the token that it has is an old one
    gate.open()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    assert deployment.attempts(run_id) == {"held": 1}
    assert not [token for token in new if token in deployment.logs()]


def test_sighup_reads_the_certificates_again(deployment: Deployment) -> None:
    authorities = [Authority(deployment.folder, name) for name in ("first", "second")]
    old, new = (authority.sign(f"server-{number}") for number, authority in enumerate(authorities))
    tls = f'[server.tls]\ncertificate = "{old.certificate}"\nkey = "{old.key}"\n'
    server = deployment.start_server(config=f"[server]\n{tls}")
    assert deployment.daggyr("--tls-ca", str(authorities[0].certificate), "runs").code == 0
    old.certificate.write_bytes(new.certificate.read_bytes())
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "the certificates stay as they were" in server.said(), "a word on files that do not fit")
    assert deployment.daggyr("--tls-ca", str(authorities[0].certificate), "runs").code == 0
    old.key.write_bytes(new.key.read_bytes())
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "the tokens and certificates were read again" in server.said(), "new certificates")
    assert deployment.daggyr("--tls-ca", str(authorities[1].certificate), "runs").code == 0
    ended = deployment.daggyr("--tls-ca", str(authorities[0].certificate), "runs")
    assert (ended.code, "is not trusted" in ended.err) == (3, True)


@pytest.mark.parametrize("way", ["delete", "prune"])
def test_nothing_of_a_deleted_task_is_left(deployment: Deployment, way: str) -> None:
    file = deployment.folder / "state.db"
    deployment.start_server("--workers", "1", "--tracker", f"sqlite:{file}")
    variable, printed = "a-secret-in-the-environment", "a-secret-that-was-printed"
    script = "printf '%s-%s-%s-%s-%s' a secret that was printed"
    deployment.complete({"a": shell(script, environment={"SECRET": variable})})
    files = [file, file.with_name("state.db-wal")]
    found = b"".join(path.read_bytes() for path in files)
    assert variable.encode() in found
    assert printed.encode() in found
    deleted = deployment.daggyr(*(["delete", "1"] if way == "delete" else ["prune", "--older-than", "0s"]))
    assert deleted.code == 0, deleted.err
    found = b"".join(path.read_bytes() for path in files)
    assert variable.encode() not in found
    assert printed.encode() not in found
    deployment.goes_on()


def test_an_agent_sends_its_token_off_this_host_over_tls_only(deployment: Deployment) -> None:
    """No host has the name, so that no name server is asked for it."""
    deployment.start_server(config=FARM)
    agent = deployment.start_agent("careful", coordinator="no..such.host:2503", wait=False)
    assert agent.wait() == 2
    assert "the token would go to no..such.host:2503 without TLS" in agent.said()
    assert "--insecure" in agent.said()
    settings = deployment.folder / "agent.toml"
    settings.write_text("insecure = true\n")
    for options in (("--insecure",), ("--config", str(settings))):
        agent = deployment.start_agent("trusting", *options, coordinator="no..such.host:2503", wait=False)
        until(lambda agent=agent: "waiting for a coordinator" in agent.said(), "an agent that waits")  # type: ignore[misc]
        assert agent.end() == 0


def test_what_is_wrong_with_certificates_is_said_by_both_ends(deployment: Deployment) -> None:
    authority = Authority(deployment.folder, "authority")
    late = authority.sign("late", until=datetime.timedelta(days=-1))
    settings = f'{FARM.strip()}\n[server.tls]\ncertificate = "{late.certificate}"\nkey = "{late.key}"\n'
    server = deployment.start_server(config=settings)
    until(lambda: f"`certificate` {late.certificate} expired at" in server.said(), "a warning")
    trust = ("--tls-ca", str(authority.certificate))
    ended = deployment.daggyr(*trust, "runs")
    assert (ended.code, f"the certificate of {deployment.address} has expired" in ended.err) == (3, True), ended.err
    agent = deployment.start_agent("patient", *trust, wait=False)
    until(lambda: f"the certificate of {deployment.address} has expired" in agent.said(), "the agent's word on it")
    assert agent.end() == 0


def test_a_missing_client_certificate_is_said(deployment: Deployment) -> None:
    authority = Authority(deployment.folder, "authority")
    pair = authority.sign("server")
    files = {"certificate": pair.certificate, "key": pair.key, "client_ca": authority.certificate}
    deployment.start_server(config="[server.tls]\n" + "".join(f'{name} = "{path}"\n' for name, path in files.items()))
    ended = deployment.daggyr("--tls-ca", str(authority.certificate), "runs")
    assert (ended.code, "if it asks for a client certificate, give --tls-cert and --tls-key" in ended.err) == (3, True), ended.err
    member = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
    assert deployment.daggyr("--tls-ca", str(authority.certificate), *member, "runs").code == 0
