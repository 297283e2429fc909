"""TLS with the real programs: a server that asks for certificates, and an agent and commands that have theirs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from server.certificates import Authority
from support.deployment import Deployment

CONFIG = """
[server.tls]
certificate = "{server.certificate}"
key = "{server.key}"
client_ca = "{authority}"
[pools.farm]
executor = "agent"
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Authority(folder, "ours")


def test_a_run_over_tls(deployment: Deployment, authority: Authority) -> None:
    """Every program shows a certificate, and the token as well."""
    server, user = authority.sign("server"), authority.sign("user")
    deployment.start_server(config=CONFIG.format(server=server, authority=authority.certificate))
    tls = ["--tls-ca", str(authority.certificate), "--tls-cert", str(user.certificate), "--tls-key", str(user.key)]
    deployment.start_agent("one", *tls)
    (deployment.work / "spec.json").write_text('{"tasks": {"a": {"details": {"command": ["true"]}}}}')
    ended = deployment.daggyr("--output", "json", *tls, "submit", "--watch", "spec.json")
    assert (ended.code, ended.json["state"]) == (0, "COMPLETED"), ended.err

    stranger = Authority(authority.certificate.parent, "theirs").sign("stranger")
    theirs = ["--tls-ca", str(authority.certificate), "--tls-cert", str(stranger.certificate), "--tls-key", str(stranger.key)]
    for options, words in (
        ([], "if it uses TLS, add --tls"),
        (["--tls"], "name the authority that signed it with --tls-ca"),
        (["--tls-ca", str(authority.certificate)], "--tls-cert"),
        (theirs, "closed the connection"),
    ):
        ended = deployment.daggyr(*options, "runs")
        assert (ended.code, ended.out) == (3, ""), (options, ended.err)
        assert words in ended.err, options
    token = deployment.state / "daggyr" / "agent.token"
    ended = deployment.daggyr(*tls, "--token-file", str(token), "runs")
    assert (ended.code, "client's token" in ended.err) == (2, True)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_off_loopback_it_takes_tls_or_a_word(deployment: Deployment, listen: str) -> None:
    refused = deployment.start("daggyr-server", "--listen", listen)
    assert refused.wait() == 2
    assert "[server.tls]" in refused.said()
    assert "insecure = true" in refused.said()


def test_no_token_in_what_others_can_see(local: Deployment) -> None:
    """Tokens are neither in the arguments nor in the environment of a process, nor in what the daemons write."""
    tokens = [local.token(role) for role in ("client", "agent")]
    seen = [local.logs().encode()]
    for process in local.processes():
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # it has ended
                seen.append(Path(f"/proc/{process.pid}/{name}").read_bytes())
    assert len(seen) > 4
    assert not [text for text in seen for token in tokens if token.encode() in text]
    assert (local.state / "daggyr").stat().st_mode & 0o777 == 0o700
