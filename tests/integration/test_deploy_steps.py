"""deploy/README.md's steps for systemd, followed word by word on a host that is a folder.

Every line of its blocks is run by a shell as it stands, but for these: paths below /etc and /var are put below the
folder, `-o USER` is left out, and what only a service manager, a package manager or an installation can do is not done. A
program that `systemctl` would start is started here with its unit's command line, on a free port of loopback.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from deploy_kits import DEPLOY, README, Root, unit
from support.deployment import Deployment, Program
from support.waiting import DEADLINE, until

from daggyr.tokens import read_token
from daggyr_server.config import load

# What is left out, by how the line begins.
NOT_HERE = ("apt-get ", "python3 -m venv ", "/opt/daggyr/bin/pip ", "systemd-sysusers ", "systemctl daemon-reload")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


class Host:
    """The folder, and the two programs that run on it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.root = Root(deployment.folder / "host")
        self.checkout = deployment.folder / "checkout"
        shutil.copytree(DEPLOY, self.checkout / "deploy")
        for service in ("daggyr-server", "daggyr-agent"):
            (state,) = unit(f"{service}.service")["StateDirectory"]
            Path(self.root(f"/var/lib/{state}")).mkdir(parents=True)
        Path(self.root("/etc/systemd/system/")).mkdir(parents=True)
        self.running: dict[str, Program] = {}

    def path(self, text: str) -> Path:
        return Path(self.root(text))

    def follow(self, block: str) -> None:
        for line in block.splitlines():
            if found := re.match(r"systemctl (?:enable --now|restart) (\S+)$", line):
                self.start(found[1])
            elif not line.startswith(NOT_HERE):
                placed = re.sub(r" -o daggyr\S*", "", self.root(line))
                subprocess.run(["sh", "-euc", placed], cwd=self.checkout, check=True, timeout=DEADLINE)

    def start(self, service: str) -> None:
        if service in self.running:
            assert self.running.pop(service).end() == 0
        ready = self.deployment.folder / "ready"
        ready.unlink(missing_ok=True)
        program, *arguments = (self.root(word) for word in shlex.split(unit(f"{service}.service")["ExecStart"][0]))
        configuration = Path(arguments[arguments.index("--config") + 1])
        text = configuration.read_text().replace(f"{self.root.folder}/", "/")  # of an earlier start
        configuration.write_text(self.root(text))
        if service == "daggyr-server":
            load(configuration)  # with the address that is written
            arguments += ["--listen", "127.0.0.1:0", "--ready-file", str(ready)]
        else:
            arguments += ["--coordinator", self.deployment.address]
        self.running[service] = started = self.deployment.start(Path(program).name, *arguments)
        until(lambda: ready.exists() or "connected to" in started.said() or started.process.poll() is not None, service)
        assert started.process.poll() is None, started.said()
        if service == "daggyr-server":
            self.deployment.address = ready.read_text().strip()


@pytest.fixture
def host(deployment: Deployment) -> Iterator[Host]:
    yield Host(deployment)


def test_the_steps_for_systemd_as_they_are_written(host: Host, deployment: Deployment) -> None:
    install, server, agent, secrets, server_tls, agent_tls = blocks("systemd", "sh")
    for block in (install, server):
        host.follow(block)
    shutil.copy(host.path("/var/lib/daggyr/agent.token"), host.checkout)  # "An agent gets a copy of agent.token"
    host.follow(agent)
    client = ["--token-file", str(host.path("/var/lib/daggyr/client.token"))]
    assert len(deployment.json(*client, "agents")) == 1

    # Off loopback, with the metrics that Metrics speaks of, on a free port.
    host.follow(secrets)
    configuration = host.path("/etc/daggyr/server.toml")
    configuration.write_text(re.sub(r"^# metrics = .*", 'metrics = "127.0.0.1:0"', configuration.read_text(), flags=re.MULTILINE))
    host.follow(server_tls)
    assert load(configuration).server.listen == "0.0.0.0:2503"
    certificate = host.path("/etc/daggyr/server.crt")
    shutil.copy(certificate, host.checkout)
    host.follow(agent_tls)
    assert host.path("/etc/daggyr/agent.toml").read_text().count("build1.example.org:2503") == 1
    spec = deployment.spec({"first": {"details": {"command": ["true"]}}})
    ended = deployment.daggyr(*client, "--tls-ca", str(certificate), "submit", "--watch", spec)
    assert ended.code == 0, ended.err + deployment.logs()

    scrape(host, certificate)


def scrape(host: Host, certificate: Path) -> None:
    """Ask for the metrics as the scrape configuration has Prometheus ask."""
    (block,) = blocks("Metrics", "yaml")
    (job,) = yaml.safe_load(block)["scrape_configs"]
    assert json.dumps(job["static_configs"]) == '[{"targets": ["127.0.0.1:9464"]}]'
    (address,) = re.findall(r"metrics at (\S+)", host.running["daggyr-server"].said())
    assert address.startswith(f"{job['scheme']}://")
    assert set(job["tls_config"]) == {"ca_file"}
    token = read_token(host.path("/var/lib/daggyr/client.token"))  # of which credentials_file is a copy
    assert set(job["authorization"]) == {"credentials_file"}  # whose type is Bearer unless it says otherwise
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
    context = ssl.create_default_context(cafile=certificate)
    with urllib.request.urlopen(request, timeout=DEADLINE, context=context) as answer:
        assert b"daggyr_runs" in answer.read()
