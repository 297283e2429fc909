"""Metrics: what the real server tells a scrape of itself, which callers it tells, and that nothing is left in the end."""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from server.certificates import Authority
from support.deployment import PATIENT, Deployment, own_address, shell, task
from support.metrics_scrape import address_said, eventually, scrape
from support.readme_examples import ROOT
from support.waiting import DEADLINE, until

CONFIG = """
[server]
metrics = "127.0.0.1:0"
[pools.default]
executor = "local"
workers = 2
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One server for all that only ask it; whatever they do, it then takes a run and completes it."""
    made = Deployment(tmp_path_factory.mktemp("metrics"))
    try:
        made.start_server(config=CONFIG)
        yield made
        made.goes_on()
    finally:
        made.close()


@pytest.fixture
def asked(shared: Deployment) -> str:
    """The address of its metrics."""
    return address_said(shared.programs[0].said())


@pytest.fixture
def address(deployment: Deployment) -> str:
    """The address of the metrics of a server with a local pool of two workers."""
    return address_said(deployment.start_server(config=CONFIG).said())


def test_the_figures_of_a_run_that_ended(deployment: Deployment, address: str) -> None:
    spec = {
        "split": task("echo", "X", parameters={"X": ["1", "2", "3"]}, children=["bad"]),
        "bad": task("false", max_retries=2),
        "never": task("true", parents=["bad"]),
    }
    deployment.submit(spec)
    found = eventually(address, deployment.token(), "daggyr_runs", 1, state="ERRORED")
    assert (found.status, found.headers["content-type"].split(";")[0]) == (200, "text/plain")
    assert found.values("daggyr_runs", "state") == {"ERRORED": 1}
    assert found.values("daggyr_tasks", "state") == {}  # of runs that have not ended
    ended = found.values("daggyr_attempts_ended_total", "outcome", pool="default", executor="local")
    assert ended == {"SUCCEEDED": 3, "FAILED": 3}
    assert found.value("daggyr_pool_ready_tasks", pool="default") == 0
    assert found.values("daggyr_pool_used_units", "resource") == {}
    assert found.value("daggyr_tracker_trouble") == 0
    commits = found.value("daggyr_commit_duration_seconds_count")
    assert 1 <= commits <= found.value("daggyr_committed_records_total")
    assert found.value("daggyr_commit_duration_seconds_bucket", le="+Inf") == commits
    assert found.value("daggyr_commit_duration_seconds_sum") >= 0
    assert found.value("daggyr_event_loop_lag_seconds") >= 0
    assert found.value("process_resident_memory_bytes") > 1e6


def test_the_figures_of_a_run_that_goes_on(deployment: Deployment, address: str) -> None:
    gate = deployment.gate()
    held = shell(gate.hold, resources={"cores": 2}, children=["after"])
    run_id = deployment.submit({"held": held, "after": task("true"), "waiting": task("true", priority=-1)})
    gate.reached()
    found = eventually(address, deployment.token(), "daggyr_tasks", 1, state="RUNNING")
    assert found.values("daggyr_runs", "state") == {"RUNNING": 1}
    assert found.values("daggyr_tasks", "state") == {"QUEUED": 2, "RUNNING": 1}
    assert found.value("daggyr_pool_ready_tasks", pool="default") == 1
    assert found.values("daggyr_pool_hosts", "state", pool="default") == {"available": 1}
    assert found.value("daggyr_pool_offered_units", resource="cores") == 2
    assert found.values("daggyr_pool_used_units", "resource") == {"cores": 2}
    gate.open()
    found = eventually(address, deployment.token(), "daggyr_runs", 1, state="COMPLETED")
    assert found.values("daggyr_attempts_ended_total", "outcome") == {"SUCCEEDED": 3}
    assert found.value("daggyr_pool_ready_tasks", pool="default") == 0
    assert deployment.daggyr("delete", str(run_id)).code == 0
    eventually(address, deployment.token(), "daggyr_runs", 0, state="COMPLETED")


def test_the_page_tells_of_all_metrics(shared: Deployment, asked: str) -> None:
    page = (ROOT / "deploy" / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (.*?) \|", page, re.MULTILINE)
    told = {name.removesuffix("_total"): kind for kind, names in rows for name in re.findall(r"`(daggyr_\w+)`", names)}
    found = scrape(asked, shared.token()).kinds
    assert told == {name: kind for name, kind in found.items() if not name.startswith("process_")}


def test_agents_come_drain_and_go(deployment: Deployment) -> None:
    config = f'[server]\nmetrics = "127.0.0.1:0"\n{PATIENT}\n[pools.farm]\nexecutor = "agent"\n'
    address = address_said(deployment.start_server(config=config).said())
    found = scrape(address, deployment.token())
    assert found.values("daggyr_pool_hosts", "state", pool="farm") == {}
    agent = deployment.start_agent("one", "--resource", "cores=3")
    found = eventually(address, deployment.token(), "daggyr_pool_hosts", 1, pool="farm", executor="agent", state="available")
    assert found.value("daggyr_pool_offered_units", pool="farm", resource="cores") == 3
    gate = deployment.gate()
    deployment.submit({"held": shell(gate.hold)})
    gate.reached()
    assert deployment.daggyr("agent", "drain", "one").code == 0
    found = eventually(address, deployment.token(), "daggyr_pool_hosts", 1, pool="farm", state="draining")
    assert found.values("daggyr_pool_offered_units", "resource") == {}
    gate.open()
    agent.wait()
    found = eventually(address, deployment.token(), "daggyr_pool_hosts", 0, pool="farm", state="draining")
    assert found.values("daggyr_pool_hosts", "state", pool="farm") == {}


def test_who_has_not_the_clients_token_gets_nothing(shared: Deployment, asked: str) -> None:
    client, agent = shared.token(), shared.token("agent")
    for authorization, status in (
        (None, 401),
        ("", 401),
        (f"Bearer {client}x", 401),
        (f"Bearer {client[:-1]}", 401),
        (f"Basic {client}", 401),
        (client, 401),
        ("Bearer \xe4", 401),
        (f"Bearer {agent}", 403),
    ):
        for path in ("/metrics", "/", "/nothing"):
            found = scrape(asked, authorization=authorization, path=path)
            assert found.status == status, authorization
            assert "credentials_file" in found.text and "daggyr_" not in found.text
            assert (found.headers.get("www-authenticate") == 'Bearer realm="daggyr"') is (status == 401)
    assert scrape(asked, authorization=f"bearer {client}").status == 200
    assert not [token for token in (client, agent) if token in shared.logs()]


def test_nothing_else_is_there(shared: Deployment, asked: str) -> None:
    token = shared.token()
    assert scrape(asked, token, path="/").status == 404
    assert scrape(asked, token, path="/metrics?x=1").status == 200
    found = scrape(asked, token, method="POST")
    assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")
    found = scrape(asked, token, method="HEAD")
    assert (found.status, found.text) == (200, "")
    assert int(found.headers["content-length"]) > 1000


def test_what_is_no_request_harms_nobody(shared: Deployment, asked: str) -> None:
    host, _, port = asked.rpartition(":")
    for sent, status in (
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
        (b"", b""),
        (b"GET /metr", b""),
    ):
        with socket.create_connection((host, int(port)), DEADLINE) as connection:
            connection.sendall(sent)
            with contextlib.suppress(OSError):  # it has answered and hung up already
                connection.shutdown(socket.SHUT_WR)
            head = connection.recv(100)
        assert head.split(b" ")[1:2] == ([status] if status else []), sent
    assert scrape(asked, shared.token()).status == 200


def test_many_who_say_nothing_do_not_pile_up(shared: Deployment, asked: str) -> None:
    """The server hangs up on the oldest of them, and answers a scrape with the token beside them."""
    host, _, port = asked.rpartition(":")
    with contextlib.ExitStack() as stack:
        silent: list[socket.socket] = []

        def one_more() -> bool:
            silent.append(stack.enter_context(socket.create_connection((host, int(port)), DEADLINE)))
            ended, _, _ = select.select(silent[:1], (), (), 0)
            return bool(ended)

        until(one_more, "the end of the oldest")
        for _ in range(3):
            eventually_answers(asked, shared.token())
            silent += [stack.enter_context(socket.create_connection((host, int(port)), DEADLINE)) for _ in range(300)]
    shared.goes_on()


def eventually_answers(address: str, token: str) -> None:
    until(lambda: scrape(address, token).status == 200, "an answer")


def test_scrapes_side_by_side(shared: Deployment, asked: str) -> None:
    """More scrapes than are made at a time come during a run. One that waited for long is hung up on, and asks again."""
    token = shared.token()
    found: list[int] = []

    def status() -> int | None:
        with contextlib.suppress(ConnectionError):
            return scrape(asked, token).status
        return None

    threads = [threading.Thread(target=lambda: found.append(until(status, "an answer"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    shared.complete({f"t{number}": task("true") for number in range(20)})
    for thread in threads:
        thread.join(DEADLINE)
    assert found == [200] * 20


@pytest.mark.parametrize("metrics", ["127.0.0.1:{port}", "unix:taken/metrics.sock"])
def test_an_address_in_use_is_one_sentence(deployment: Deployment, metrics: str) -> None:
    folder = deployment.folder / "taken"
    folder.mkdir(mode=0o700)
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as also_taken:
        also_taken.bind(str(folder / "metrics.sock"))
        also_taken.listen()
        (deployment.folder / "server.toml").write_text(CONFIG.replace("127.0.0.1:0", metrics.format(port=taken.getsockname()[1])))
        refused = deployment.start("daggyr-server", "--listen", "127.0.0.1:0", "--config", str(deployment.folder / "server.toml"))
        assert refused.wait() == 2
    (line,) = refused.said().splitlines()
    assert line.startswith("daggyr-server: cannot listen at ")
    assert "another program listens there already" in line
    assert "`metrics` in [server]" in line


def test_a_unix_socket_needs_no_token_and_goes_away(deployment: Deployment) -> None:
    server = deployment.start_server(config=CONFIG.replace("127.0.0.1:0", "unix:own/metrics.sock"), listen="unix:own/server.sock")
    path = deployment.folder / "own" / "metrics.sock"
    assert address_said(server.said()) == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o600
    assert scrape(f"unix:{path}").value("daggyr_pool_ready_tasks", pool="default") == 0
    assert not (deployment.state / "daggyr" / "client.token").exists()
    assert server.end() == 0
    assert not path.exists()


def test_metrics_over_tcp_have_a_token_though_the_rest_needs_none(deployment: Deployment) -> None:
    address = address_said(deployment.start_server(config=CONFIG, listen=f"unix:{deployment.folder}/own/server.sock").said())
    assert scrape(address).status == 401
    assert scrape(address, deployment.token()).status == 200
    deployment.goes_on()


def test_the_end_does_not_wait_for_scrapes(deployment: Deployment) -> None:
    """Scrapes that say nothing or do not read do not hold the end up, and the address is free again."""
    config = CONFIG.replace("127.0.0.1:0", own_address())
    server = deployment.start_server(config=config)
    address = address_said(server.said())
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), DEADLINE),
        socket.create_connection((host, int(port)), DEADLINE) as deaf,
    ):
        deaf.sendall(f"GET /metrics HTTP/1.1\r\nAuthorization: Bearer {deployment.token()}\r\n\r\n".encode())
        assert scrape(address, deployment.token()).status == 200
        assert server.end() == 0
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), DEADLINE)
    deployment.start_server(config=re.sub(r"127[\d.]+:0", address, config))


def test_over_tls_with_certificates(deployment: Deployment, tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    authority = Authority(folder, "ours")
    server, user = authority.sign("server"), authority.sign("user")
    tls = f'[server.tls]\ncertificate = "{server.certificate}"\nkey = "{server.key}"\nclient_ca = "{authority.certificate}"\n'
    program = deployment.start_server(config=f'[server]\nmetrics = "0.0.0.0:0"\n{tls}')
    address = address_said(program.said()).replace("0.0.0.0", "127.0.0.1")
    assert "metrics at https://0.0.0.0:" in program.said()
    ours, nobodys = (ssl.create_default_context(cafile=authority.certificate) for _ in range(2))
    ours.load_cert_chain(user.certificate, user.key)
    assert scrape(address, deployment.token(), tls=ours).status == 200
    assert scrape(address, tls=ours).status == 401
    for context in (nobodys, None):
        with pytest.raises(OSError if context else (OSError, http.client.HTTPException)):
            scrape(address, deployment.token(), tls=context)
    assert scrape(address, deployment.token(), tls=ours).status == 200


def test_a_run_of_its_own_serves_no_metrics(deployment: Deployment) -> None:
    """Several runs may have one configuration, which a server has as well."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = deployment.folder / "own.toml"
        config.write_text(CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}"))
        ended = deployment.daggyr("run", "--config", str(config), deployment.spec({"a": task("true")}))
    assert ended.code == 0, ended.err


def test_without_metrics_their_library_is_not_loaded() -> None:
    code = "import sys, daggyr_server.main; print('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
