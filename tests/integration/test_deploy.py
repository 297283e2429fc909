"""The programs of deploy/ start: every command line of the units, images, compose file and manifests, as written.

Their paths lie in temporary folders, the server listens on a free port of loopback, and agents dial that port. Whether the
addresses that are written fit together is for test_deploy_files.py. What needs a service manager, a container engine or a cluster
is not tested: confinement, mounts, limits, restarts, and the build of the images.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from deploy_kits import DEPLOY, KITS, Container, Kit, Root, compose, compose_kit, kubernetes_kit, manifest, tool, unit
from support.deployment import BIN, Deployment, Program, shell
from support.waiting import DEADLINE, until

from daggyr.address import Tls
from daggyr_agent.config import read_config
from daggyr_server.config import load

UNITS = ("daggyr-server.service", "daggyr-agent.service")


def start_server(deployment: Deployment, container: Container) -> Program:
    """Start the server of a kit, and return once it listens."""
    container.prepare()
    ready = deployment.folder / "ready"
    arguments = [*container.arguments, "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    program = deployment.start(container.program, *arguments)
    until(lambda: ready.exists() or program.process.poll() is not None, "the server")
    assert ready.exists(), program.said()
    deployment.address = ready.read_text().strip()
    return program


def start_agent(deployment: Deployment, container: Container) -> Program:
    """Start an agent of a kit, and return once it has joined the server."""
    container.prepare()
    name = ["--name", container.name] if container.name else []
    program = deployment.start(container.program, *container.arguments, "--coordinator", deployment.address, *name)
    until(lambda: program.process.poll() is not None or "connected to " in program.said(), "an agent")
    assert program.process.poll() is None, program.said()
    return program


def start(deployment: Deployment, kit: Kit) -> list[Program]:
    """Start a kit's server and agents; returns the agents."""
    start_server(deployment, kit.server)
    return [start_agent(deployment, agent) for agent in kit.agents]


@pytest.mark.parametrize("kind", KITS)
def test_server_and_agents_start_and_run_tasks(deployment: Deployment, kind: str) -> None:
    kit = KITS[kind](deployment.folder / "kit")
    agents = start(deployment, kit)
    # The client's options are those of the probes, and the probes ask for the pools, by a name that the certificate has to have.
    address = deployment.address.replace("127.0.0.1", "localhost")
    (pool,) = deployment.json(*kit.client, "--server", address, "pools")
    assert (pool["name"], pool["executor"]) == ("default", "agent")
    assert len({each["name"] for each in deployment.json(*kit.client, "agents")}) == len(agents)
    spec = deployment.spec({"first": shell("echo here", children=["second"]), "second": shell("true")})
    ended = deployment.daggyr(*kit.client, "submit", "--watch", spec)
    assert ended.code == 0, ended.err + deployment.logs()
    for program in (*agents, deployment.programs[0]):
        assert program.end() == 0, program.said()


@pytest.mark.parametrize("kind", KITS)
def test_the_configuration_is_accepted_as_it_is_written(tmp_path: Path, kind: str) -> None:
    """With the address that is written, which is off loopback wherever there is TLS."""
    kit = KITS[kind](tmp_path)
    configuration = load(kit.server.configuration)
    expected = "127.0.0.1:2503" if kind == "systemd" else "0.0.0.0:2503"
    assert configuration.server.listen == expected
    assert (configuration.server.tls is None) == (kind == "systemd")
    assert configuration.server.tracker == kit.server.root("sqlite:/var/lib/daggyr/state.db")
    assert configuration.default_pool == "default"
    for agent in kit.agents:
        config = read_config(agent.arguments, {})
        assert config.pool == "default"
        assert isinstance(config.tls, Tls) == (configuration.server.tls is not None)
        assert config.token_file is not None
        assert config.state_dir.is_relative_to(agent.root.folder / "var/lib")


def held_task(deployment: Deployment, kit: Kit) -> tuple[int, int]:
    """A run whose only task has started and waits for a file `go`; the run's id and the pid of its process."""
    script = "echo $$ > pid.new; mv pid.new pid; until [ -e go ]; do sleep 0.01; done"
    ended = deployment.daggyr(*kit.client, "submit", deployment.spec({"held": shell(script)}))
    assert ended.code == 0, ended.err
    until(lambda: deployment.read("pid"), "the task")
    return int(ended.out), int(deployment.read("pid"))


def drained(deployment: Deployment, kit: Kit, run_id: int, agents: list[Program]) -> None:
    """Let the held task go on. It has to complete at its first attempt, and all agents have to leave with 0."""
    until(lambda: all("draining: " in agent.said() for agent in agents), "agents that drain")
    (deployment.work / "go").touch()
    assert [agent.wait() for agent in agents] == [0] * len(agents)
    (task,) = deployment.json(*kit.client, "tasks", str(run_id))
    assert (task["state"], task["attempt_count"]) == ("COMPLETED", 1)


def test_compose_stop_drains_agents(deployment: Deployment) -> None:
    kit = compose_kit(deployment.folder / "kit")
    agents = start(deployment, kit)
    run_id, _ = held_task(deployment, kit)
    signals = [service["stop_signal"] for name, service in compose()["services"].items() if name != "server"]
    for agent, name in zip(agents, signals, strict=True):
        agent.process.send_signal(signal.Signals[name])
    drained(deployment, kit, run_id, agents)


def test_the_hook_of_a_pod_drains_its_agent_and_waits_for_it(deployment: Deployment) -> None:
    """As written, but for the process, which is number 1 in its container only."""
    kit = kubernetes_kit(deployment.folder / "kit")
    agents = start(deployment, kit)
    run_id, _ = held_task(deployment, kit)
    (container,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    shell_name, option, script = container["lifecycle"]["preStop"]["exec"]["command"]
    assert script.startswith("pid=1; ")
    hooks = []
    for agent in agents:
        command = [shell_name, option, script.replace("pid=1; ", f"pid={agent.pid}; ", 1)]
        hooks.append(subprocess.Popen(command, env=deployment.environment, stdin=subprocess.DEVNULL))
    try:
        until(lambda: all("draining: " in agent.said() for agent in agents), "agents that drain")
        assert [hook.poll() for hook in hooks].count(None) >= 1  # who runs the held task is waited for
        drained(deployment, kit, run_id, agents)
        assert [hook.wait(DEADLINE) for hook in hooks] == [0] * len(hooks)
    finally:
        for hook in hooks:
            hook.kill()
            hook.wait()


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_units(tmp_path: Path, name: str) -> None:
    """The units name the programs of this environment, because systemd looks whether these are there."""
    analyze = tool("systemd-analyze", "systemd")
    copy = tmp_path / name
    copy.write_text((DEPLOY / "systemd" / name).read_text().replace("/opt/daggyr/bin", str(BIN)))
    ended = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(copy)], capture_output=True, text=True, timeout=DEADLINE
    )
    # It says what it does not know or has no use for, and goes on; other units of this host are not our concern.
    assert ended.returncode == 0, ended.stderr
    assert name not in ended.stderr, ended.stderr


def test_systemd_finds_faults_in_units(tmp_path: Path) -> None:
    """This shows that the test above can fail."""
    text = (DEPLOY / "systemd" / UNITS[0]).read_text().replace("/opt/daggyr/bin", str(BIN))
    copy = tmp_path / UNITS[0]
    copy.write_text(f"{text}[Service]\nKillMod=mixed\n")
    command = [tool("systemd-analyze", "systemd"), "verify", "--man=no", "--recursive-errors=no", str(copy)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert UNITS[0] in ended.stderr


def test_the_users_of_the_units_are_made(tmp_path: Path) -> None:
    sysusers = tool("systemd-sysusers", "systemd")
    (tmp_path / "etc").mkdir()
    command = [sysusers, f"--root={tmp_path}", str(DEPLOY / "systemd/daggyr.conf")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 0, ended.stderr
    users = {line.split(":")[0]: line.split(":")[5] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    for name in UNITS:
        settings = unit(name)
        (user,), (folder,) = settings["User"], settings["WorkingDirectory"]
        assert users[user] == folder
        assert settings["Group"] == [user]


def test_secrets_are_made_once_and_are_private(tmp_path: Path) -> None:
    tool("openssl", "openssl")
    command = [str(DEPLOY / "make-secrets"), str(tmp_path / "made"), "build1", "192.0.2.7"]
    subprocess.run(command, check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert set(made) == {"client.token", "agent.token", "server.key", "server.crt"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()}
    assert modes == {"client.token": 0o600, "agent.token": 0o600, "server.key": 0o600, "server.crt": 0o644}
    assert made["client.token"] != made["agent.token"]
    subprocess.run(command, check=True)
    assert {path.name: path.read_text() for path in (tmp_path / "made").iterdir()} == made


def test_secrets_for_other_names_than_before_are_told_of_and_left(tmp_path: Path) -> None:
    tool("openssl", "openssl")
    made = tmp_path / "made"
    # A name of more than 64 characters cannot be the certificate's common name, and need not.
    long_name = f"{'a' * 60}.{'b' * 60}.example.org"
    subprocess.run([DEPLOY / "make-secrets", made, long_name, "2001:db8::1"], check=True)
    before = (made / "server.crt").read_bytes()
    subprocess.run([DEPLOY / "make-secrets", made, "2001:db8::1", long_name, "127.0.0.1"], check=True)
    ended = subprocess.run([DEPLOY / "make-secrets", made, "build2", "192.0.2.9", long_name], capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"{made / 'server.crt'}, is not for: build2 192.0.2.9. It was left as it is" in ended.stderr
    assert (made / "server.crt").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which folder"),
        (["--what"], "which folder"),
        (["made"], "by which names"),
        (["made", "a/b"], "'a/b'"),
        (["made", ""], "''"),
        (["made", "a" * 64], "too long"),
        (["made", "a..b"], "empty: 'a..b'"),
        (["made", "1.2.3.256"], "no address: '1.2.3.256'"),
    ],
)
def test_bad_usage_of_make_secrets(tmp_path: Path, arguments: list[str], words: str) -> None:
    tool("openssl", "openssl")
    ended = subprocess.run([DEPLOY / "make-secrets", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, words in ended.stderr, list(tmp_path.iterdir())) == (1, True, [])


def test_half_a_certificate_is_refused(tmp_path: Path) -> None:
    tool("openssl", "openssl")
    (tmp_path / "server.key").write_text("a key\n")
    ended = subprocess.run([DEPLOY / "make-secrets", tmp_path, "build1"], capture_output=True, text=True)
    assert (ended.returncode, "only one of" in ended.stderr) == (1, True)
    assert (tmp_path / "server.key").read_text() == "a key\n"


def test_paths_are_placed_and_nothing_else() -> None:
    """What the other tests put in the place of paths."""
    root = Root(Path("/r"))
    words = shlex.split("--a=/etc/x sqlite:/var/lib/x sh -c 'cat /run/y' a/etc/b /opt/etc/x h:2503")
    assert [root(word) for word in words] == [
        *("--a=/r/etc/x", "sqlite:/r/var/lib/x", "sh", "-c", "cat /r/run/y", "a/etc/b", "/opt/etc/x", "h:2503")
    ]
