"""The server's configuration: what a file may say, what is made of it, and how faults are told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from daggyr.checked import MAX_FILE_BYTES, ConfigurationError, Fault
from daggyr_server.config import Configuration, default_workers, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "daggyr.toml"


def loaded(file: Path, text: str) -> Configuration:
    file.write_text(text)
    return load(file)


def faults(file: Path, text: str) -> dict[str, str]:
    """Return the faults of a configuration: the place of each, and the rest of its line."""
    with pytest.raises(ConfigurationError) as caught:
        loaded(file, text)
    return {fault.place: str(fault).removeprefix(f"{fault.place}: ") for fault in caught.value.faults}


def test_without_a_file_there_is_a_local_pool_on_loopback() -> None:
    configuration = load()
    assert configuration.server.listen == "127.0.0.1:2503"
    assert configuration.server.tracker == "memory"
    assert configuration.default_pool == "default"
    pool = configuration.pools["default"]
    assert (pool.executor, pool.settings) == ("local", {"workers": default_workers()})


def test_default_workers_leave_two_of_the_usable_cores_above_two() -> None:
    cores = len(os.sched_getaffinity(0))
    assert default_workers() == (cores - 2 if cores > 2 else cores)


def test_a_whole_file(file: Path) -> None:
    configuration = loaded(
        file,
        """
        [server]
        listen = "0.0.0.0:0"
        default_pool = "farm"
        client_token_file = "tokens/client"
        agent_token_file = "/etc/daggyr/agent.token"
        lease = 30
        heartbeat = 2.5
        kill_grace = 0
        max_run_bytes = 1_000_000
        max_arriving_bytes = 5_000_000
        max_run_tasks = 1000
        [server.tls]
        certificate = "server.pem"
        key = "~/server.key"
        client_ca = "../ca.pem"
        [pools.near]
        executor = "local"
        workers = 8
        [pools.farm]
        executor = "agent"
        """,
    )
    server = configuration.server
    assert (server.listen, configuration.default_pool) == ("0.0.0.0:0", "farm")
    assert (server.lease, server.heartbeat, server.kill_grace) == (30, 2.5, 0)
    assert (server.max_run_bytes, server.max_arriving_bytes, server.max_run_tasks) == (1_000_000, 5_000_000, 1000)
    assert server.client_token_file == file.parent / "tokens/client"
    assert server.agent_token_file == Path("/etc/daggyr/agent.token")
    assert server.tls is not None
    assert server.tls.certificate == file.parent / "server.pem"
    assert server.tls.key == Path.home() / "server.key"
    assert server.tls.client_ca == file.parent / ".." / "ca.pem"
    assert configuration.pools["near"].settings == {"workers": 8}
    assert configuration.pools["farm"].settings == {}


def test_a_pool_may_have_a_grace_of_its_own(file: Path) -> None:
    """The grace is a setting of the pool, so that pools of every executor have it."""
    pools = loaded(
        file, "[server]\nkill_grace = 7\n[pools.default]\nexecutor = 'noop'\nkill_grace = 0\n[pools.farm]\nexecutor = 'agent'"
    ).pools
    assert [(pool.kill_grace, pool.settings) for pool in pools.values()] == [(0, {}), (7, {})]
    found = faults(file, "[pools.default]\nexecutor = 'agent'\nkill_grace = -1\n[pools.b]\nexecutor = 'noop'\nkill_grace = 'x'")
    assert found == {
        "pools.default.kill_grace": "expected a number of at least 0.0, found -1",
        "pools.b.kill_grace": "expected a number, found text",
    }


def test_json_with_ip_and_port(tmp_path: Path) -> None:
    document = {
        "server": {"ip": "127.0.0.1", "port": 2600},
        "pools": {"localhost": {"executor": "local", "workers": 5}},
    }
    for name in ("daggyr.json", "daggyr.conf"):
        configuration = loaded(tmp_path / name, json.dumps(document))
        assert configuration.server.listen == "127.0.0.1:2600"
        assert configuration.default_pool == "localhost"
        assert configuration.pools["localhost"].settings == {"workers": 5}


def test_ip_alone_port_alone_and_ipv6(tmp_path: Path) -> None:
    for server, listen in (
        ({"port": 9}, "127.0.0.1:9"),
        ({"ip": "127.0.0.2"}, "127.0.0.2:2503"),
        ({"ip": "::1"}, "[::1]:2503"),
    ):
        assert loaded(tmp_path / "daggyr.json", json.dumps({"server": server})).server.listen == listen


def test_all_faults_are_told_together(file: Path) -> None:
    found = faults(
        file,
        """
        server_name = "x"
        tracker = "memory"
        [server]
        listen = "0.0.0.0"
        tracker = "memry"
        leese = 3
        heartbeat = "5"
        max_run_tasks = 0
        insecure = "no"
        default_pool = "frm"
        [server.tls]
        certificate = "server.pem"
        certifcate = 3
        [pools]
        none = 3
        [pools.farm]
        executor = "agnet"
        [pools.other]
        workers = 2
        """,
    )
    assert "did you mean `server`" in found["server_name"]
    assert "belongs under [server]" in found["tracker"]
    assert "HOST:PORT" in found["server.listen"]
    assert found["server.tracker"] == "there is no tracker `memry`; did you mean `memory`?"
    assert found["server.leese"] == "unknown key; did you mean `lease`?"
    assert found["server.heartbeat"] == "expected a number, found text"
    assert found["server.max_run_tasks"] == "expected a whole number of at least 1, found 0"
    assert found["server.insecure"] == "expected true or false, found text"
    assert found["server.default_pool"] == "there is no pool `frm`; did you mean `farm`?"
    assert found["server.tls"] == "`key` is missing"
    assert "did you mean `certificate`" in found["server.tls.certifcate"]
    assert "expected a table" in found["pools.none"]
    assert found["pools.farm.executor"] == "there is no executor `agnet`; did you mean `agent`?"
    assert "`executor` is missing; there are: agent, local, noop" in found["pools.other"]
    assert len(found) == 14


def test_the_message_names_the_file_and_every_fault(file: Path) -> None:
    file.write_text("[server]\nlease = 0\ninsecure = 1\n")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert str(caught.value).splitlines() == [
        f"{file} has 2 faults:",
        "  server.insecure: expected true or false, found a whole number",
        "  server.lease: expected a number of at least 0.1, found 0",
    ]


@pytest.mark.parametrize("listen", ["0.0.0.0:2503", "192.0.2.1:0", "[::]:2503", "coordinator.example:2503"])
def test_off_loopback_needs_tls_or_a_word_and_the_refusal_says_all_ways_on(file: Path, listen: str) -> None:
    refusal = faults(file, f'[server]\nlisten = "{listen}"')["server.listen"]
    for way in ("127.0.0.1:", "[server.tls]", "`insecure = true`"):
        assert way in refusal
    assert loaded(file, f'[server]\nlisten = "{listen}"\ninsecure = true').server.listen == listen
    tls = '[server.tls]\ncertificate = "a"\nkey = "b"'
    assert loaded(file, f'[server]\nlisten = "{listen}"\n{tls}').server.listen == listen


def test_where_metrics_are_served(file: Path) -> None:
    assert loaded(file, "").server.metrics is None
    assert loaded(file, '[server]\nmetrics = "127.0.0.1:9464"').server.metrics == "127.0.0.1:9464"
    assert loaded(file, '[server]\nmetrics = "unix:m.sock"').server.metrics == f"unix:{file.parent}/m.sock"
    both = '[server]\nmetrics = "127.0.0.1:{0}"\nlisten = "127.0.0.1:{0}"'
    assert loaded(file, both.format(0)).server.metrics == "127.0.0.1:0"
    assert "has this address already" in faults(file, both.format(2503))["server.metrics"]
    assert "HOST:PORT" in faults(file, '[server]\nmetrics = "9464"')["server.metrics"]
    assert "expected text" in faults(file, "[server]\nmetrics = 9464")["server.metrics"]
    refusal = faults(file, '[server]\nmetrics = "0.0.0.0:9464"')["server.metrics"]
    for way in ("127.0.0.1:9464", "[server.tls]", "`insecure = true`"):
        assert way in refusal
    assert loaded(file, '[server]\nmetrics = "0.0.0.0:9464"\ninsecure = true').server.metrics == "0.0.0.0:9464"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.1.2.3:2503", "localhost:2503", "[::1]:2503"])
def test_on_loopback_it_does_not(file: Path, listen: str) -> None:
    assert loaded(file, f'[server]\nlisten = "{listen}"').server.listen == listen


def test_the_listening_rule_holds_for_the_command_line_too(file: Path) -> None:
    file.write_text("")
    for path in (None, file):
        with pytest.raises(ConfigurationError, match=r"--listen: 0\.0\.0\.0:0 can be reached from other hosts"):
            load(path, listen="0.0.0.0:0")


def test_the_command_line_wins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = file.parent / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    file.write_text('[server]\nlisten = "unix:a.sock"\ntracker = "nonsense"\n[pools.p]\nexecutor = "local"\nworkers = 1')
    configuration = load(file, listen="unix:b.sock", tracker="memory", workers=3)
    assert configuration.server.listen == f"unix:{folder}/b.sock"
    assert configuration.server.tracker == "memory"
    assert configuration.pools["p"].settings == {"workers": 3}
    assert load(file, tracker="memory").server.listen == f"unix:{file.parent}/a.sock"


def test_workers_size_the_default_local_pool_or_the_only_one(file: Path) -> None:
    two = '[pools.default]\nexecutor = "local"\n[pools.other]\nexecutor = "local"\nworkers = 9\n'
    file.write_text(two)
    pools = load(file, workers=2).pools
    assert (pools["default"].settings, pools["other"].settings) == ({"workers": 2}, {"workers": 9})
    file.write_text('[server]\ndefault_pool = "farm"\n[pools.near]\nexecutor = "local"\n[pools.farm]\nexecutor = "agent"')
    assert load(file, workers=2).pools["near"].settings == {"workers": 2}
    file.write_text('[pools.farm]\nexecutor = "agent"')
    with pytest.raises(ConfigurationError, match="--workers: there is no one local pool"):
        load(file, workers=2)
    with pytest.raises(ConfigurationError, match="--workers: expected a whole number of at least 1, found 0"):
        load(workers=0)


def test_a_local_pool_without_workers_gets_the_default(file: Path) -> None:
    assert loaded(file, '[pools.p]\nexecutor = "local"').pools["p"].settings == {"workers": default_workers()}


def test_the_default_pool(file: Path) -> None:
    several = '[pools.a]\nexecutor = "noop"\n[pools.b]\nexecutor = "noop"\n'
    assert "one of: a, b" in faults(file, several)["server.default_pool"]
    assert loaded(file, several + '[pools.default]\nexecutor = "noop"').default_pool == "default"
    assert loaded(file, several + '[server]\ndefault_pool = "b"').default_pool == "b"
    assert loaded(file, '[pools.only]\nexecutor = "noop"').default_pool == "only"


def test_a_target_with_a_base_url_is_explained(tmp_path: Path) -> None:
    target = {"base_url": "http://user:secret@h1:2504/api/v1/run", "resources": {"cores": 10}}
    pools = {"farm": {"executor": "agent", "targets": [target, {"base_url": "http://[nonsense"}]}}
    found = faults(tmp_path / "daggyr.json", json.dumps({"pools": pools}))
    explained = found["pools.farm.targets[0].base_url"]
    assert "daggyr-agent --coordinator THIS_HOST:2503 --pool farm --resource cores=10` on h1" in explained
    assert "secret" not in explained
    assert "agents dial in" in found["pools.farm.targets[1].base_url"]


def test_a_lease_has_room_for_a_late_heartbeat(file: Path) -> None:
    assert "too short" in faults(file, "[server]\nlease = 9\nheartbeat = 5")["server.lease"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.toml", b"[server\n", "is no TOML: .*line 1"),
        ("a.toml", b"[server]\nlease = 1\nlease = 2\n", "is no TOML: .*line 3"),
        ("a.json", b'{"server": {}', "is no JSON: .*line 1"),
        ("a.json", b'{"server": {}, "server": {}}', "'server' stands twice"),
        ("a.json", b"[]", "holds no table"),
        ("a.json", b'{"server": 3}', "server: expected a table"),
        ("a.json", b'{"pools": []}', "pools: expected a table"),
        ("a.json", b'{"server": {"lease": NaN}}', r"server\.lease: expected a number of at least 0\.1, found nan"),
        ("a.json", b'{"server": {"max_run_tasks": 1' + b"0" * 400 + b"}}", "found a number far too large"),
        ("a.json", b'{"server": {"lease": 1' + b"0" * 5000 + b"}}", "is no JSON: .*digits"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.toml", b"\xff", "not UTF-8 text"),
        ("a.toml", b" " * (MAX_FILE_BYTES + 1), "larger than"),
        ("a.toml", b"[server]\nlisten = 2026-01-01\n", r"server\.listen: expected text, found"),
        ("a.toml", b'[server]\nlisten = "unix:"\n', r"server\.listen: 'unix:' names no socket"),
        ("a.toml", b'[server]\nip = "127.0.0.1"\nlisten = "127.0.0.1:1"\n', "one of the two forms"),
        ("a.toml", b"[server]\nip = 3\n", r"server\.ip: expected text"),
        ("a.toml", b"[server]\nport = 65536\n", r"server\.port: expected a whole number from 0 to 65535"),
        ("a.toml", b'[server]\ntracker = "memory:x"\n', r"server\.tracker: memory takes nothing"),
        ("a.toml", b'[server]\ntracker = "oracle://u:hunter2@h"\n', "there is no tracker `oracle`; there are: memory"),
        ("a.toml", b"[server.tls]\ncertificate = 3\nkey = ''\n", r"tls\.certificate: expected a path, found 3"),
        ("a.toml", b'[pools."a\\nb"]\nexecutor = "noop"\n', "printable characters"),
        ("a.toml", b"[pools.a]\nexecutor = 3\n", r"pools\.a: `executor` has to be text"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, name: str, text: bytes, reason: str) -> None:
    file = tmp_path / name
    file.write_bytes(text)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory; name another with --config"):
        load(tmp_path / "none.toml")


class _Target(msgspec.Struct, kw_only=True):
    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 22
    resources: dict[str, int] = {}


class _Settings(msgspec.Struct, kw_only=True):
    """Settings as an executor would declare them."""

    targets: Annotated[list[_Target], msgspec.Meta(min_length=1)]
    known_hosts: Path | None = None

    def __post_init__(self) -> None:
        if len({target.host for target in self.targets}) < len(self.targets):
            raise ValueError("a host stands twice among `targets`")


def test_settings_of_a_pool_are_made_as_its_executor_declares_them(file: Path) -> None:
    pool = loaded(
        file,
        """
        [pools.hosts]
        executor = "noop"
        known_hosts = "hosts"
        targets = [{ host = "h1", resources = { cores = 8 } }, { host = "h2", port = 23 }]
        """,
    ).pools["hosts"]
    found: list[Fault] = []
    settings = pool.check(_Settings, found)
    assert settings is not None
    assert not found
    assert settings.known_hosts == file.parent / "hosts"
    assert [(target.host, target.port) for target in settings.targets] == [("h1", 22), ("h2", 23)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", ["pools.p: `targets` is missing"]),
        ("targets = 3", ["pools.p.targets: expected a list, found a whole number"]),
        ("targets = []", ["pools.p.targets: expected a list no shorter than 1"]),
        ("targets = [{host = 'a'}, {host = 'a'}]", ["pools.p: a host stands twice among `targets`"]),
        (
            "targets = [{hots = 'a', port = 0}, 3, {host = 'b', resources = {cores = 'x'}}]\nknown_hosts = 3",
            [
                "pools.p.targets[0].hots: unknown key; did you mean `host`?",
                "pools.p.targets[0]: `host` is missing",
                "pools.p.targets[0].port: expected a whole number of at least 1, found 0",
                "pools.p.targets[1]: expected a table, found 3",
                "pools.p.targets[2].resources.cores: expected a whole number, found text",
                "pools.p.known_hosts: expected a path, found 3",
            ],
        ),
    ],
)
def test_faults_of_a_pools_settings_are_told_together(file: Path, settings: str, expected: list[str]) -> None:
    found: list[Fault] = []
    assert loaded(file, f"[pools.p]\nexecutor = 'noop'\n{settings}").pools["p"].check(_Settings, found) is None
    assert [str(fault) for fault in found] == expected


def test_a_password_in_the_trackers_address_is_not_shown() -> None:
    server = msgspec.structs.replace(load().server, tracker="postgresql://u:hunter2@host/state")
    assert "hunter2" not in repr(server)
