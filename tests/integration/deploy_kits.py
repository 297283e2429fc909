"""What the files of deploy/ say: the programs of each kit with their arguments, and the files that they are given.

test_deploy_files.py compares these with each other, and test_deploy.py starts them. Each program is given a root folder of its
own (`Root`), below which the absolute paths of its kit are put. Nothing else of a command line or of a configuration is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.readme_examples import ROOT

DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text(encoding="utf-8")
CONTAINERFILE = (DEPLOY / "container/Containerfile").read_text(encoding="utf-8")

Tree = dict[str, Any]


def tool(name: str, package: str) -> str:
    """Return the path of a program of a Debian package. Without it the test is skipped, and fails in CI."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a systemd unit's sections, all together: a list of values each."""
    settings: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions with their words, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", CONTAINERFILE)
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if re.match("[A-Z]+$", word)]


def images() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each of the Containerfile's stages, after those of the stages that it is made FROM."""
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = stages[name] = list(stages.get(base, ()))
        else:
            current.append((word, rest))
    return stages


def entry(image: str, arguments: list[str]) -> list[str]:
    """The command line of a container of the image `daggyr-TARGET`; the image's own CMD without arguments."""
    said = {word: yaml.safe_load(rest) for word, rest in images()[image.removeprefix("daggyr-")] if word in ("ENTRYPOINT", "CMD")}
    return [*said["ENTRYPOINT"], *(arguments or said["CMD"])]


def compose() -> Tree:
    found: Tree = yaml.safe_load((DEPLOY / "container/compose.yaml").read_text())
    return found


def manifests() -> list[Tree]:
    """The Kubernetes objects of all files that kustomization.yaml lists."""
    return [
        found for name in kustomization()["resources"] for found in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())
    ]


def kustomization() -> Tree:
    found: Tree = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
    return found


def manifest(kind: str) -> Tree:
    """Return the only manifest of a kind."""
    (found,) = (each for each in manifests() if each["kind"] == kind)
    return found


def secrets(kit: str, folder: Path) -> tuple[Path, list[str]]:
    """Make the kit's secrets as README.md says; returns where they are and the names that the server may be called by."""
    tool("openssl", "openssl")
    (line,) = re.findall(rf"^(deploy/make-secrets deploy/{kit}/secrets .*)$", README, re.MULTILINE)
    script, _, *names = shlex.split(line, comments=True)
    subprocess.run([ROOT / script, folder, *names], check=True)
    return folder, names


@dataclass(frozen=True)
class Root:
    """A folder that stands for `/`."""

    folder: Path

    def __call__(self, text: str) -> str:
        """Return `text` with the absolute paths of a kit below this folder."""
        return re.sub(r"(?<![\w./-])/(?=(?:etc|var|run|secrets)/)", f"{self.folder}/", text)

    def write(self, path: str, content: str | Path, mode: int = 0o600) -> None:
        """Put a file, or a copy of one, at an absolute path. The paths in a text are placed as well."""
        target = Path(self(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(mode)
        target.write_text(content.read_text() if isinstance(content, Path) else self(content))
        target.chmod(mode)


@dataclass
class Container:
    """One program of a kit: its command line as written, and what has to be there before it runs."""

    command: list[str]
    root: Root
    name: str = ""  # of its host
    before: list[list[str]] = field(default_factory=list)

    @property
    def program(self) -> str:
        return Path(self.command[0]).name

    @property
    def arguments(self) -> list[str]:
        return [self.root(word) for word in self.command[1:]]

    @property
    def configuration(self) -> Path:
        """Return the file that its `--config` names."""
        return Path(self.arguments[self.arguments.index("--config") + 1])

    def coordinator(self) -> str:
        """The address that an agent dials, as written."""
        (found,) = (word.partition("=")[2] for word in self.command if word.startswith("--coordinator="))
        return found

    def prepare(self) -> None:
        for command in self.before:
            subprocess.run([self.root(word) for word in command], check=True)


@dataclass
class Kit:
    server: Container
    agents: list[Container]
    client: list[str]  # the CLI's options, but for the server's address
    names: list[str]  # that the server may be called by


def _without_server(command: list[str]) -> list[str]:
    """Return the options of a probe that calls the CLI."""
    program, option, address, *options, command_name = command
    assert (program, option, address, command_name) == ("daggyr", "--server", "localhost:2503", "pools")
    return options


def uncommented(text: str) -> str:
    """Return a configuration whose commented settings are settings, as README.md has readers make them."""
    return re.sub(r"^# (?=\[.*\]$|\w+ = )", "", text, flags=re.MULTILINE).replace('"127.0.0.1:2503"', '"0.0.0.0:2503"')


def systemd_kit(folder: Path, *, tls: bool = False) -> Kit:
    """Server and agent of one host. With `tls`, as the comments in their configurations say."""
    root = Root(folder / "host")
    server, agent = (Container(shlex.split(unit(f"daggyr-{name}.service")["ExecStart"][0]), root) for name in ("server", "agent"))
    for name in ("server", "agent"):
        (state,) = unit(f"daggyr-{name}.service")["StateDirectory"]
        Path(root(f"/var/lib/{state}")).mkdir(parents=True)
        text = (DEPLOY / f"systemd/{name}.toml").read_text()
        root.write(f"/etc/daggyr/{name}.toml", uncommented(text) if tls else text)
    made, names = secrets("systemd", folder / "made")
    client = ["--token-file", root("/var/lib/daggyr/client.token")]
    if tls:
        root.write("/etc/daggyr/server.key", made / "server.key")
        root.write("/etc/daggyr/server.crt", made / "server.crt", 0o644)
        client += ["--tls-ca", root("/etc/daggyr/server.crt")]
    # Made by the first start of the server, and then copied.
    agent.before = [["install", "-m", "600", "/var/lib/daggyr/agent.token", "/etc/daggyr/agent.token"]]
    return Kit(server, [agent], client, names)


def compose_kit(folder: Path) -> Kit:
    made, names = secrets("container", folder / "made")
    document = compose()

    def container(name: str, service: Mapping[str, Any]) -> Container:
        root = Root(folder / name)
        for secret in service["secrets"]:
            root.write(f"/run/secrets/{secret}", made / Path(document["secrets"][secret]["file"]).name)
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            if source.startswith("./"):
                root.write(target, (DEPLOY / "container" / source).read_text())
            else:
                Path(root(target)).mkdir(parents=True)
        return Container(entry(service["image"], service.get("command", [])), root, name=service.get("hostname", ""))

    services = document["services"]
    server = container("server", services["server"])
    agents = [container(name, service) for name, service in services.items() if name != "server"]
    probe = services["server"]["healthcheck"]["test"]
    assert probe[0] == "CMD"
    return Kit(server, agents, [server.root(word) for word in _without_server(probe[1:])], names)


def kubernetes_kit(folder: Path) -> Kit:
    made, names = secrets("kubernetes", folder / "made")
    generated = {each["name"]: [made / Path(file).name for file in each["files"]] for each in kustomization()["secretGenerator"]}
    config_maps = {each["metadata"]["name"]: each["data"] for each in manifests() if each["kind"] == "ConfigMap"}

    def pod(name: str, spec: Mapping[str, Any]) -> Container:
        root = Root(folder / name)
        (container,) = spec["containers"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = [mount for each in (*spec["initContainers"], container) for mount in each["volumeMounts"]]
        for mount in mounts:
            path = mount["mountPath"]
            volume = volumes.get(mount["name"], {})
            if path != "/tmp":
                Path(root(f"{path}/")).mkdir(parents=True, exist_ok=True)
            if "secret" in volume:
                for file in generated[volume["secret"]["secretName"]]:
                    root.write(f"{path}/{file.name}", file, volume["secret"]["defaultMode"])
            if "configMap" in volume:
                for key, text in config_maps[volume["configMap"]["name"]].items():
                    root.write(f"{path}/{key}", text)
        arguments = [_expand(word, container, name) for word in container["args"]]
        before = [each["command"] for each in spec["initContainers"]]
        return Container(entry(container["image"], arguments), root, before=before)

    server = pod("daggyr-server-0", manifest("StatefulSet")["spec"]["template"]["spec"])
    deployment = manifest("Deployment")["spec"]
    agents = [pod(f"daggyr-agent-{number}", deployment["template"]["spec"]) for number in range(deployment["replicas"])]
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    probe = _without_server(container["livenessProbe"]["exec"]["command"])
    return Kit(server, agents, [server.root(word) for word in probe], names)


def _expand(word: str, container: Mapping[str, Any], pod: str) -> str:
    """`$(NAME)` as Kubernetes replaces it, for what the agents' variables come from."""

    def values() -> Iterator[tuple[str, str]]:
        for variable in container.get("env", ()):
            source = variable["valueFrom"]
            if "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "metadata.name"
                yield variable["name"], pod
            else:
                reference = source["resourceFieldRef"]
                assert (reference["containerName"], reference["divisor"]) == (container["name"], "1")
                kind, _, resource = reference["resource"].partition(".")
                yield variable["name"], container["resources"][kind][resource]

    known = dict(values())
    return re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], word)


KITS = {
    "systemd": systemd_kit,
    "systemd with TLS": lambda folder: systemd_kit(folder, tls=True),
    "compose": compose_kit,
    "kubernetes": kubernetes_kit,
}
