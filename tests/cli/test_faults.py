"""A command that fails prints one message that says what to do, no traceback, and has the exit code that scripts rely on."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from daggyr_program import PROGRAM, Daggyr, Start
from scripted_server import COMPLETED, ScriptedServer
from support.ended import Ended

FULL = Path("/dev/full")


def one_line(ended: Ended) -> str:
    """Return the only line of standard error, without the program's name. Standard output has to be empty."""
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("daggyr: ")
    return lines[0].removeprefix("daggyr: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "7"], "there is no run 7"),
        (["tasks", "7"], "there is no run 7"),
        (["watch", "7"], "there is no run 7"),
        (["logs", "7"], "there is no run 7"),
        (["task", "1", "nowhere"], "run 1 has no task 'nowhere'"),
        (["why", "1", "nowhere"], "run 1 has no task 'nowhere'"),
        (["logs", "1", "nowhere"], "run 1 has no task 'nowhere'"),
        (["logs", "1", "a"], "task a has no attempt yet"),
        (["kill", "1"], "run 1 has ended already"),
        (["mark", "7", "a", "completed"], "there is no run 7"),
        (["mark", "1", "nowhere", "queued"], "run 1 has no task 'nowhere'"),
        (["delete", "7"], "there is no run 7"),
        (["agent", "drain", "h9"], "no agent is called 'h9'"),
    ],
)
async def test_what_is_not_there_is_2(daggyr: Daggyr, server: ScriptedServer, arguments: list[str], said: str) -> None:
    await server.new_run("a").end(COMPLETED)
    ended = await daggyr(*arguments)
    assert (ended.code, one_line(ended)) == (2, said)


async def test_last_without_any_run_is_2(daggyr: Daggyr) -> None:
    ended = await daggyr("show", "last")
    assert (ended.code, one_line(ended)) == (2, "there are no runs yet")


async def test_retry_of_a_run_that_goes_on_is_2(daggyr: Daggyr, server: ScriptedServer) -> None:
    server.new_run("a")
    ended = await daggyr("retry", "last")
    assert (ended.code, one_line(ended)) == (2, "run 1 has not ended yet")


async def test_what_runs_is_neither_marked_nor_deleted(daggyr: Daggyr, server: ScriptedServer) -> None:
    await server.new_run("a").start("a")
    ended = await daggyr("mark", "last", "a", "completed")
    assert (ended.code, one_line(ended)) == (2, "task a is with its host: wait for it")
    ended = await daggyr("delete", "1")
    assert (ended.code, one_line(ended)) == (2, "run 1 has not ended: kill it first")
    assert list(server.runs) == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["show"], "Missing argument 'RUN'"),
        (["show", "first"], "'first' is no run: give its number, or `last`"),
        (["runs", "--state", "DONE"], "'DONE' is not one of"),
        (["runs", "--since", "yesterday"], "'yesterday' is no time"),
        (["submit", "--tag", "novalue", "-"], "'novalue' is no tag: write KEY=VALUE"),
        (["--output", "xml", "runs"], "'xml' is not one of"),
        (["submit", "--tag", "a=1", "--tag", "a=2", "-"], "--tag a is given twice"),
        (["retry", "1", "--downstream"], "--downstream goes with --task"),
        (["mark", "1", "a"], "Missing argument 'completed|queued'"),
        (["mark", "1", "a", "errored"], "'errored' is not one of 'completed', 'queued'"),
        (["delete"], "Missing argument 'RUN'"),
        (["delete", "last"], "'last' is not taken here: give the run's number"),
        (["delete", "0"], "'0' is not taken here"),
        (["prune"], "Missing option '--older-than'"),
        (["prune", "--older-than", "soon"], "'soon' is no time"),
        (["run"], "name a specification, or an earlier run with --resume"),
        (["run", "--resume", "last"], "--resume needs the tracker that kept the run"),
        (["run", "--resume", "1", "--tracker", "memory"], "give --tracker sqlite:PATH"),
        (["run", "--resume", "1", "--tracker", "memory:x"], "give --tracker sqlite:PATH"),
        (["run", "--resume", "first", "--tracker", "sqlite:state.db"], "'first' is no run"),
        (["run", "--resume", "1", "--tracker", "sqlite:state.db", "spec.json"], "leave out SPEC, --tag, --param and --pool"),
        (["run", "--resume", "1", "--tracker", "sqlite:state.db", "--tag", "a=1"], "leave out SPEC, --tag, --param and --pool"),
        (["run", "--resume", "1", "--tracker", "sqlite:state.db", "--param", "A=1"], "leave out SPEC, --tag, --param and --pool"),
        (["run", "--resume", "1", "--tracker", "sqlite:state.db", "--pool", "farm"], "leave out SPEC, --tag, --param and --pool"),
        (["--server", "localhost", "runs"], "'localhost' is no address: write HOST:PORT"),
        (["--server", "::1:2503", "runs"], "write an IPv6 host in brackets"),
        (["--tls-cert", "c.pem", "runs"], "--tls-cert and --tls-key go together"),
        (["--tls-ca", "nowhere.pem", "runs"], "cannot read nowhere.pem: No such file"),
        (["--server", "h:1", "run", "-"], "daggyr submit --watch SPEC"),
        (["run", "nowhere.json"], "cannot read nowhere.json: No such file or directory"),
        (["submit", "nowhere.json"], "cannot read nowhere.json: No such file or directory"),
        (["validate", "."], "cannot read .: Is a directory"),
        (["logs", "1", "a", "--attempt", "9" * 20], "is not in the range 1<=x<=4294967295"),
        (["edit", "1", "spec.json", "--revision", "9" * 20], "is not in the range 1<=x<=9223372036854775807"),
        (["validate", ""], "the name of the specification is empty: name a file, or `-`"),
        (["--server", "", "runs"], "the address is empty: write HOST:PORT, or leave the option out"),
        (["runs", "--server", ""], "the address is empty"),
        (["--server", "http://127.0.0.1:1", "runs"], "is no address: write HOST:PORT, without `http://`"),
        (["--token-file", "", "runs"], "the path is empty"),
        (["--token-file", "~no-such-user/token", "runs"], "the home folder that '~no-such-user/token' begins with is not known"),
        (["--tls-ca", "/dev/zero", "runs"], "/dev/zero is larger than 4,194,304 bytes"),
        (["run", "--config", "", "spec.json"], "the path is empty"),
        (["run", "--workers", "65537", "spec.json"], "65537 is not in the range 1<=x<=65536"),
    ],
)
async def test_bad_usage_is_2(daggyr: Daggyr, arguments: list[str], said: str) -> None:
    ended = await daggyr(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


async def test_a_tilde_that_no_shell_saw_is_the_home_folder(daggyr: Daggyr, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"tasks": {"a": {"details": {"command": ["true"]}}}}')
    home = {"HOME": str(tmp_path)}
    ended = await daggyr("--token-file=~/nowhere.token", "runs", env=home)
    assert (ended.code, f"cannot read the token file {tmp_path}/nowhere.token" in ended.err) == (2, True)
    ended = await daggyr("run", "--config=~/nowhere.toml", "spec.json", env=home)
    assert (ended.code, f"'{tmp_path}/nowhere.toml' does not exist" in ended.err) == (2, True)
    assert (await daggyr("run", "--tracker=sqlite:~/state.db", "spec.json", env=home)).code == 0
    ended = await daggyr("run", "--tracker=sqlite:~/state.db", "--resume=last", env=home)
    assert (ended.code, "COMPLETED already" in ended.err) == (0, True)


async def test_a_refused_specification_is_2_with_every_fault(daggyr: Daggyr) -> None:
    document = json.dumps({"tasks": {"refuse": {}}}).encode()
    ended = await daggyr("submit", "-", stdin=document)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "daggyr: the specification on standard input is refused:",
        "  tasks.a: unknown key 'chidlren'",
        "  tasks.b: no command is given",
    ]


async def test_no_server_is_3_and_says_how_to_get_one(daggyr: Daggyr, nowhere: str, tmp_path: Path) -> None:
    ended = await daggyr("--server", nowhere, "runs")
    assert ended.code == 3
    assert one_line(ended) == (
        f"no server reached at {nowhere} (connection refused): start one with `daggyr-server`, "
        "or name another with --server or DAGGYR_SERVER"
    )
    ended = await daggyr("--server", f"unix:{tmp_path}/nowhere.sock", "runs")
    assert (ended.code, "no such file or directory" in ended.err) == (3, True)
    ended = await daggyr("--insecure", "--server", "no..such.host:2503", "runs")  # no host can have this name
    assert (ended.code, "no server reached at no..such.host:2503" in ended.err) == (3, True)


async def test_no_token_leaves_this_host_without_tls_unless_told_so(daggyr: Daggyr) -> None:
    """The refusal comes before the name is looked up. No host has this name, so that an allowed call fails without a network."""
    address = "no..such.host:2503"
    ended = await daggyr("--server", address, "runs")
    assert (ended.code, ended.out) == (2, "")
    assert f"the token would go to {address} without TLS" in one_line(ended)
    assert "--insecure" in one_line(ended)
    for insecure in ("1", "true"):
        ended = await daggyr("runs", env={"DAGGYR_SERVER": address, "DAGGYR_INSECURE": insecure})
        assert (ended.code, "no server reached" in one_line(ended)) == (3, True)
    ended = await daggyr("--server", address, "--tls", "runs")
    assert (ended.code, "no server reached" in one_line(ended)) == (3, True)


async def test_no_server_is_3_without_a_token_too(start: Start, nowhere: str, tmp_path: Path) -> None:
    """A user who has never started a server has no token either. The message is about the server, which they need first."""
    ended = await (await start("--server", nowhere, "runs", env={"XDG_STATE_HOME": str(tmp_path / "none")})).ended()
    assert (ended.code, "start one with `daggyr-server`" in ended.err) == (3, True)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
async def test_a_server_that_fails_is_3(daggyr: Daggyr, server: ScriptedServer, code: grpc.StatusCode) -> None:
    server.broken["ListPools"] = [(code, "it broke\nin two lines")]
    ended = await daggyr("pools")
    assert ended.code == 3
    assert f"failed ({code.name}): it broke in two lines" in one_line(ended)


async def test_a_missing_token_says_where_it_was_looked_for(daggyr: Daggyr, tmp_path: Path) -> None:
    ended = await daggyr("runs", env={"XDG_STATE_HOME": str(tmp_path / "none")})
    said = one_line(ended)
    assert ended.code == 2
    assert "wants a valid token" in said
    assert f"looked for {tmp_path}/none/daggyr/client.token" in said
    assert "--token-file or DAGGYR_TOKEN_FILE" in said


async def test_a_wrong_token_is_2_and_is_not_told(daggyr: Daggyr, tmp_path: Path) -> None:
    token = tmp_path / "wrong"
    token.touch(0o600)
    token.write_text("daggyr-client-wrong")
    ended = await daggyr("--token-file", str(token), "runs")
    assert (ended.code, f"the one in {token} is not it" in one_line(ended)) == (2, True)
    assert "daggyr-client-wrong" not in ended.err


async def test_a_token_file_that_cannot_be_used_is_2(daggyr: Daggyr, tmp_path: Path) -> None:
    ended = await daggyr("--token-file", "nowhere", "runs")
    assert (ended.code, one_line(ended)) == (2, "cannot read the token file nowhere: No such file or directory")
    token = tmp_path / "open"
    token.touch()
    token.chmod(0o644)  # the umask does not count
    ended = await daggyr("--token-file", str(token), "runs")
    assert (ended.code, f"chmod 600 {token}" in one_line(ended)) == (2, True)


class Certificate(NamedTuple):
    certificate: bytes
    key: bytes
    authority: Path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for `localhost` that is signed by its own key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    path.write_bytes(pem)
    return Certificate(pem, secret, path)


@pytest.fixture
async def tls_server(certificate: Certificate) -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    await scripted.start(grpc.ssl_server_credentials([(certificate.key, certificate.certificate)]))
    yield scripted
    await scripted.stop()


async def test_tls(start: Start, tls_server: ScriptedServer, certificate: Certificate) -> None:
    tls_server.new_run("a")
    ended = await (
        await start("--tls-ca", str(certificate.authority), "show", "1", "--server", f"localhost:{tls_server.port}")
    ).ended()
    assert (ended.code, ended.err) == (0, "")


async def test_a_tls_server_without_tls_is_told_apart(start: Start, tls_server: ScriptedServer) -> None:
    ended = await (await start("--server", f"localhost:{tls_server.port}", "runs")).ended()
    assert ended.code == 3
    assert re.search(r"closed the connection: if it uses TLS, add --tls \(and --tls-ca FILE", one_line(ended))


async def test_tls_without_a_tls_server_is_told_apart(daggyr: Daggyr, certificate: Certificate) -> None:
    ended = await daggyr("--tls-ca", str(certificate.authority), "runs")
    assert (ended.code, "does not speak TLS: leave out --tls" in one_line(ended)) == (3, True)


async def test_a_certificate_of_an_unknown_authority_is_told_apart(start: Start, tls_server: ScriptedServer) -> None:
    ended = await (await start("--tls", "--server", f"localhost:{tls_server.port}", "runs")).ended()
    assert (ended.code, "is not trusted: name the authority" in one_line(ended)) == (3, True)


async def test_a_certificate_of_another_name_is_told_apart(
    start: Start, tls_server: ScriptedServer, certificate: Certificate
) -> None:
    address = f"127.0.0.1:{tls_server.port}"
    ended = await (await start("--tls-ca", str(certificate.authority), "--server", address, "runs")).ended()
    assert (ended.code, "is for another name" in one_line(ended)) == (3, True)


async def test_an_authority_that_is_no_certificate_is_told_apart(start: Start, tls_server: ScriptedServer) -> None:
    ended = await (await start("--tls-ca", __file__, "--server", f"localhost:{tls_server.port}", "runs")).ended()
    assert (ended.code, "take PEM files" in one_line(ended)) == (3, True)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
async def test_a_full_disk_is_told(environment: dict[str, str], server: ScriptedServer) -> None:
    server.new_run("a")
    sink = os.open(FULL, os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "show", "1", "--server", f"127.0.0.1:{server.port}",
        stdout=sink, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    os.close(sink)
    _, err = await process.communicate()
    assert process.returncode == 2
    assert err == b"daggyr: cannot write to standard output: No space left on device\n"


SIZES = "5000000 bytes, the most is 4194304"
ANSWER = f"the answer of the server at {{address}} is larger than one message ({SIZES}): is it of an earlier version?"
SENT = f"what was to be sent is larger than one message ({SIZES}): submit it as a file, in parts, or with less in it"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("Stream removed (CLIENT: Received message larger than max (5000000 vs. 4194304))", ANSWER),
        ("SERVER: Sent message larger than max (5000000 vs. 4194304)", ANSWER),
        ("SERVER: Received message larger than max (5000000 vs. 4194304)", SENT),
        ("the run has 30 tasks; the most is 20", "the run has 30 tasks; the most is 20"),
    ],
)
async def test_what_is_too_large_is_the_side_that_is(daggyr: Daggyr, server: ScriptedServer, words: str, said: str) -> None:
    server.new_run("a")
    server.broken["GetRun"] = [(grpc.StatusCode.RESOURCE_EXHAUSTED, words)]
    ended = await daggyr("show", "1")
    assert (ended.code, one_line(ended)) == (2, said.format(address=f"127.0.0.1:{server.port}"))


async def test_a_server_that_waited_for_the_document_says_so(daggyr: Daggyr, server: ScriptedServer) -> None:
    server.new_run("a")
    server.broken["GetRun"] = [(grpc.StatusCode.DEADLINE_EXCEEDED, "nothing of the specification came for 30 s")]
    ended = await daggyr("show", "1")
    assert ended.code == 3
    assert "waited for the specification and gave up: nothing of the specification came for 30 s" in one_line(ended)
