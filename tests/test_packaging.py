"""pyproject.toml and deploy/tools.txt say the same: what tests and checks is pinned, with hashes, within those bounds."""

from __future__ import annotations

import re
import subprocess
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version
from support.readme_examples import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TOOLS = (ROOT / "deploy/tools.txt").read_text(encoding="utf-8")


def pins() -> dict[str, Version]:
    """Versions by name. Every entry is one version with hashes, and nothing else stands in the file but comments."""
    found = {}
    for entry in re.sub(r"^#.*\n", "", TOOLS, flags=re.MULTILINE).replace("\\\n", " ").splitlines():
        requirement, *hashes = entry.split(" --hash=")
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64} *", each) for each in hashes), entry
        parsed = Requirement(requirement)
        (specifier,) = parsed.specifier
        assert specifier.operator == "==", entry
        found[parsed.name] = Version(specifier.version)
    return found


def test_every_tool_is_pinned_within_its_bounds() -> None:
    pinned = pins()
    extras = PROJECT["project"]["optional-dependencies"]
    for tool in (Requirement(text) for extra in ("test", "check") for text in extras[extra]):
        if tool.name != "daggyr":
            assert pinned[tool.name.lower()] in tool.specifier, f"{tool}: run deploy/renew-tools"


def test_pins_are_within_the_bounds_of_what_runs() -> None:
    """A package that both the tools and the programs need (cryptography, for instance) suits both."""
    pinned = pins()
    for needed in map(Requirement, PROJECT["project"]["dependencies"]):
        if needed.name.lower() in pinned:
            assert pinned[needed.name.lower()] in needed.specifier, needed


def test_the_wheel_takes_what_the_programs_read_beside_python() -> None:
    """Shell, SQL and the contract: hatchling takes all of a package that neither git ignores nor the settings leave out."""
    build = PROJECT["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"].keys() == {"packages"} and build.keys().isdisjoint({"include", "exclude", "only-include"})
    packages = build["targets"]["wheel"]["packages"]
    found = [path for package in packages for kind in ("sh", "sql", "proto") for path in (ROOT / package).rglob(f"*.{kind}")]
    assert {"attempt.sh", "remote.sh", "job.sh"} <= {path.name for path in found}
    ignored = subprocess.run(["git", "check-ignore", *map(str, found)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ignored.returncode, ignored.stdout) == (1, "")


def test_the_bounds_of_the_runtime_follow_the_generator() -> None:
    """Generated code refuses an older grpcio than its generator's, and is for protobuf of its major version and the next."""
    (generator,) = (Requirement(text) for text in PROJECT["build-system"]["requires"] if text.startswith("grpcio-tools"))
    (pin,) = generator.specifier
    needed = {found.name: found.specifier for found in map(Requirement, PROJECT["project"]["dependencies"])}
    for name in ("grpcio", "grpcio-health-checking", "grpcio-reflection"):
        assert needed[name].contains(pin.version)
        assert f">={pin.version}" in str(needed[name])
        assert not needed[name].contains("1.84.0"), "from there on a call whose path is not UTF-8 ends the server"
    text = (ROOT / "protos/daggyr/v1/run_pb2.py").read_text()
    (version,) = re.findall(r"^# Protobuf Python Version: (.+)$", text, re.MULTILINE)
    assert f">={version}" in str(needed["protobuf"])
    assert f"<{Version(version).major + 2}" in str(needed["protobuf"])
