"""What deploy/ says fits together: names that files of a kit use are those that others of its files give.

Nothing is started here, see test_deploy.py. Of Kubernetes, that is what kubectl and the cluster would refuse or leave hanging.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from deploy_kits import (
    DEPLOY,
    KITS,
    README,
    Tree,
    compose,
    images,
    instructions,
    kustomization,
    manifest,
    manifests,
    unit,
)
from support.readme_examples import ROOT

from daggyr_agent.config import read_config
from daggyr_agent.execution_context import DEFAULT_GRACE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SECRETS = {"client.token", "agent.token", "server.crt", "server.key"}  # what make-secrets makes
KINDS = {"ConfigMap": "v1", "Service": "v1", "StatefulSet": "apps/v1", "Deployment": "apps/v1"}


def seconds(text: str) -> int:
    """A duration of a compose file."""
    number, unit_name = re.fullmatch(r"(\d+)([smh])", text).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit_name]


# -- all ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_agents_dial_a_name_that_the_certificate_has(tmp_path: Path, kind: str) -> None:
    kit = KITS[kind](tmp_path)
    certificate = x509.load_pem_x509_certificate((tmp_path / "made/server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert {*kit.names, "localhost"} <= set(names)
    for agent in kit.agents:
        host, _, port = agent.coordinator().rpartition(":")
        assert host in names
        assert port == "2503"
        assert read_config(agent.arguments, {}).coordinator == agent.coordinator()


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", README))
    named = {name for name in named if "/secrets" not in name}
    assert named, "README.md names no file"
    for name in named:
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^\| `([\w/-]+)` \|", README, re.MULTILINE):
        assert (DEPLOY / name).exists(), name


def test_secrets_are_kept_out_of_git_and_of_images() -> None:
    assert "/deploy/*/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    for name in re.findall(r"deploy/make-secrets (\S+/secrets)", README):
        assert fnmatch(f"/{name}/", "/deploy/*/secrets/")
        assert not in_context(f"{name}/agent.token")


# -- systemd --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["server", "agent"])
def test_a_unit_may_write_where_its_configuration_writes(name: str) -> None:
    (folder,) = unit(f"daggyr-{name}.service")["StateDirectory"]
    text = (DEPLOY / f"systemd/{name}.toml").read_text()
    written = re.findall(r"/var/[\w./-]+", text)
    assert written
    assert all(Path(path).is_relative_to(f"/var/lib/{folder}") for path in written)
    assert set(re.findall(r"/etc/daggyr/[\w.-]+\.toml", " ".join(unit(f"daggyr-{name}.service")["ExecStart"]))) == {
        f"/etc/daggyr/{name}.toml"
    }


def test_users_are_two_so_that_tasks_cannot_read_the_server_s_files() -> None:
    server, agent = (unit(f"daggyr-{name}.service") for name in ("server", "agent"))
    assert server["User"] != agent["User"]
    assert server["StateDirectoryMode"] == agent["StateDirectoryMode"] == ["0700"]


def test_an_agent_has_the_time_that_it_needs_to_end() -> None:
    """From SIGTERM to SIGKILL of what it runs, five seconds to deliver, five for what was killed to be gone."""
    needed = DEFAULT_GRACE + 10
    agent = unit("daggyr-agent.service")
    assert agent["KillMode"] == ["mixed"]  # else its processes would be ended behind its back
    assert int(agent["TimeoutStopSec"][0]) > needed
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    (waits,) = re.findall(r"timeout (\d+) ", str(pod["containers"][0]["lifecycle"]["preStop"]))
    assert pod["terminationGracePeriodSeconds"] > int(waits) + needed
    for name, service in compose()["services"].items():
        assert seconds(service["stop_grace_period"]) > (needed if name != "server" else 10)


# -- the images -----------------------------------------------------------------------------------------------------------


def in_context(path: str) -> bool:
    """Whether .dockerignore, which leaves everything out but for exceptions, lets a build see a file."""
    first, *rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert first == "*"
    seen = any(path == rule[1:] or path.startswith(f"{rule[1:]}/") for rule in rules if rule.startswith("!"))
    return seen and not any(fnmatch(f"/{path}", f"*/{rule.removeprefix('**/')}") for rule in rules if rule.startswith("**/"))


def copied() -> list[str]:
    """What the build copies from the checkout."""
    return [source for word, rest in instructions() if word == "COPY" and "--from" not in rest for source in rest.split()[:-1]]


def test_images_are_built_from_all_that_the_wheel_is_made_of() -> None:
    build = PROJECT["tool"]["hatch"]["build"]
    needed = {
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        *build["targets"]["wheel"]["packages"],
        build["hooks"]["custom"]["path"],
    }
    for path in needed:
        assert any(path == source or path.startswith(f"{source}/") for source in copied()), path
    for source in copied():
        assert (ROOT / source).exists(), source
        assert in_context(source if (ROOT / source).is_file() else f"{source}/__init__.py"), source
    for path in ("daggyr_server/core/machine.py", "protos/daggyr/v1/task.proto", *(path for path in needed if "." in path)):
        assert (ROOT / path).exists()
        assert in_context(path), path
    assert not in_context("protos/daggyr/v1/task_pb2.py")


@pytest.mark.parametrize("target", ["server", "agent"])
def test_images_start_a_program_of_the_project_as_nobody_s_root(target: str) -> None:
    said = dict(images()[target])
    assert re.fullmatch(r'\["(daggyr-\w+)"\]', said["ENTRYPOINT"])[1] in PROJECT["project"]["scripts"]  # type: ignore[index]
    user, _, group = said["USER"].partition(":")
    assert user == group
    assert int(user) > 0
    for workload in ("StatefulSet", "Deployment"):
        context = manifest(workload)["spec"]["template"]["spec"]["securityContext"]
        assert {context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}
    assert f"chown {user}:{user} deploy/container/secrets/*" in README
    assert f"--uid {user} " in " ".join(rest for word, rest in images()[target] if word == "RUN")


def test_extras_of_the_images_exist() -> None:
    extras = re.findall(r"daggyr\[(\w+)\]", " ".join(rest for _, rest in instructions()))
    assert extras
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


# -- compose --------------------------------------------------------------------------------------------------------------


def test_services_refer_to_what_is_there() -> None:
    document = compose()
    services = document["services"]
    assert set(services) >= {"server", "agent-1", "agent-2"}
    used: dict[str, set[str]] = {"secrets": set(), "volumes": set(), "networks": set()}
    for name, service in services.items():
        used["secrets"] |= set(service["secrets"])
        used["networks"] |= set(service["networks"])
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            assert target.startswith("/")
            if source.startswith("./"):
                assert (DEPLOY / "container" / source).is_file(), source
            else:
                used["volumes"].add(source)
        assert set(service.get("depends_on", {})) <= set(services)
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed]
        build = service["build"]
        assert (DEPLOY / "container" / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert build["target"] in images()
        assert service["image"] == f"daggyr-{build['target']}"
        # What it reads among the secrets, it was given.
        words = [*service.get("command", []), *service.get("healthcheck", {}).get("test", [])]
        if name == "server":
            words.append((DEPLOY / "container/server.toml").read_text())
        assert set(re.findall(r"/run/secrets/(\w+)", " ".join(words))) == set(service["secrets"])
    for kind, names in used.items():
        assert names == set(document[kind]), kind
    assert {Path(secret["file"]).name for secret in document["secrets"].values()} <= SECRETS
    assert {str(Path(secret["file"]).parent) for secret in document["secrets"].values()} == {"secrets"}


def test_agents_of_compose_are_two_and_may_not_do_what_clients_may() -> None:
    agents = {name: service for name, service in compose()["services"].items() if name != "server"}
    assert len({service["hostname"] for service in agents.values()}) == len(agents)
    assert len({tuple(service["volumes"]) for service in agents.values()}) == len(agents)
    assert all("client_token" not in service["secrets"] for service in agents.values())
    assert all(f"--resource=cores={service['cpus']}" in service["command"] for service in agents.values())


def test_compose_opens_the_server_to_its_own_host_only() -> None:
    assert [service["ports"] for service in compose()["services"].values() if "ports" in service] == [["127.0.0.1:2503:2503"]]


# -- Kubernetes -----------------------------------------------------------------------------------------------------------


def workloads() -> Iterator[tuple[str, Tree]]:
    for each in manifests():
        if each["kind"] in ("StatefulSet", "Deployment"):
            yield each["metadata"]["name"], each["spec"]


def containers(spec: Tree) -> list[Tree]:
    """Of a workload, those that run first among them."""
    pod = spec["template"]["spec"]
    return [*pod["initContainers"], *pod["containers"]]


def test_objects_have_what_kubectl_asks_for() -> None:
    seen = set()
    for each in manifests():
        assert each["apiVersion"] == KINDS[each["kind"]]
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", each["metadata"]["name"])
        assert set(each) == {"apiVersion", "kind", "metadata", "data" if each["kind"] == "ConfigMap" else "spec"}
        seen.add((each["kind"], each["metadata"]["name"]))
    assert len(seen) == len(manifests())
    assert {kind for kind, _ in seen} == set(KINDS)
    assert (kustomization()["apiVersion"], kustomization()["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    assert f"kubectl create namespace {kustomization()['namespace']}" in README


def test_manifests_need_no_aliases() -> None:
    """Not all that reads manifests takes them."""
    for path in (DEPLOY / "kubernetes").glob("*.yaml"):
        assert not re.search(r"(?m)(:|^\s*-) [*&]\w", path.read_text()), path


def test_selectors_match_the_pods_that_are_meant() -> None:
    labels = {}
    for name, spec in workloads():
        labels[name] = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels[name].items()
    service = manifest("Service")
    found = [name for name in labels if service["spec"]["selector"].items() <= labels[name].items()]
    assert found == [manifest("StatefulSet")["metadata"]["name"]]
    for name, spec in workloads():
        assert [each for each in labels if spec["selector"]["matchLabels"].items() <= labels[each].items()] == [name]
    assert manifest("StatefulSet")["spec"]["serviceName"] == service["metadata"]["name"]


def test_ports_are_named_where_they_are_used() -> None:
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (port,) = manifest("Service")["spec"]["ports"]
    assert ports[port["targetPort"]] == port["port"] == 2503
    probes = [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert all(probe["tcpSocket"]["port"] in ports for probe in probes if "tcpSocket" in probe)


def test_mounts_have_volumes_and_volumes_have_sources() -> None:
    sources: dict[str, Any] = {
        "configMap": {each["metadata"]["name"] for each in manifests() if each["kind"] == "ConfigMap"},
        "secret": {each["name"] for each in kustomization()["secretGenerator"]},
    }
    for name, spec in workloads():
        volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
        assert len(volumes) == len(spec["template"]["spec"]["volumes"])
        claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
        mounted = {mount["name"] for container in containers(spec) for mount in container["volumeMounts"]}
        assert mounted == {*volumes, *claims}, name
        for container in containers(spec):
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(set(paths)) == len(paths)
            # Every path that it is told of is below a mount.
            words = [*container.get("args", []), *container.get("command", []), str(container.get("livenessProbe", ""))]
            for path in re.findall(r"/(?:etc|var|run|secrets)/[\w./-]+", " ".join(words)):
                assert any(Path(path).is_relative_to(mount) for mount in paths), path
        for volume in volumes.values():
            (kind,) = set(volume) - {"name"}
            assert kind in ("configMap", "secret", "emptyDir")
            if kind != "emptyDir":
                assert volume[kind]["name" if kind == "configMap" else "secretName"] in sources[kind]


def test_images_and_secrets_of_kustomization_are_those_that_are_used() -> None:
    used = {container["image"] for _, spec in workloads() for container in containers(spec)}
    assert used == {each["name"] for each in kustomization()["images"]}
    assert used == {f"daggyr-{target}" for target in ("server", "agent")}
    for each in kustomization()["secretGenerator"]:
        assert {Path(file).name for file in each["files"]} <= SECRETS
        assert {str(Path(file).parent) for file in each["files"]} == {"secrets"}
    (agent,) = (each for each in kustomization()["secretGenerator"] if each["name"] == "daggyr-agent")
    assert {Path(file).name for file in agent["files"]} == {"agent.token", "server.crt"}


def test_readme_blocks_are_shell() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 12
    for block in blocks:
        ended = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr + block
