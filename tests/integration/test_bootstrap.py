"""`deploy/bootstrap` on a small checkout that needs nothing from the network: when it makes, updates and leaves alone.

The checkout's build backend is its own, of a few lines, so that the real venv and pip do the rest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from support.waiting import DEADLINE

BOOTSTRAP = Path(__file__).resolve().parent.parent.parent / "deploy" / "bootstrap"

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "small"
version = "1"

[project.optional-dependencies]
test = []
check = []
"""

BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    for proto in pathlib.Path("protos").glob("*.proto"):
        if "nonsense" in proto.read_text():
            raise SystemExit("the compiler refuses " + proto.name)
        proto.with_name(proto.stem + "_pb2.py").touch()
    extras = "Provides-Extra: test\\nProvides-Extra: check\\n"
    with zipfile.ZipFile(pathlib.Path(folder, "small-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("small.pth", str(pathlib.Path.cwd()))
        wheel.writestr("small-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\n" + extras)
        wheel.writestr("small-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("small-1.dist-info/RECORD", "")
    return "small-1-py3-none-any.whl"
"""


class Checkout:
    """A folder with a bootstrap, a project and a `.proto`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "deploy").mkdir(parents=True)
        (root / "protos").mkdir()
        shutil.copy(BOOTSTRAP, root / "deploy" / "bootstrap")
        self.pyproject = root / "pyproject.toml"
        self.pyproject.write_text(PYPROJECT)
        (root / "backend.py").write_text(BACKEND)
        self.proto = root / "protos" / "task.proto"
        self.proto.write_text("first")
        self.stamp = root / ".venv" / "bootstrap.stamp"

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start it in another folder than its own, without an index to download from."""
        environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
        environment.pop("PIP_FIND_LINKS", None)
        environment.update(variables)
        return subprocess.Popen(
            [self.root / "deploy" / "bootstrap", *arguments],
            cwd=self.root.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        with self.start(*arguments, **variables) as process:
            stdout, stderr = process.communicate(timeout=DEADLINE)
        return process.returncode, stdout, stderr


def test_it_makes_updates_and_leaves_alone(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "a checkout")
    python = "import sys; print(sys.prefix); sys.exit(7)"
    code, stdout, stderr = checkout.run("python", "-c", python)
    assert (code, stdout.strip()) == (7, str(checkout.root / ".venv"))
    assert stderr.splitlines() == [f"bootstrap: making {checkout.root}/.venv, which takes a minute"]

    stamped = checkout.stamp.stat().st_mtime_ns
    assert checkout.run("pwd") == (0, f"{tmp_path}\n", "")
    assert checkout.run() == (0, "", "")
    assert checkout.stamp.stat().st_mtime_ns == stamped

    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    up_to_date = f"bootstrap: bringing {checkout.root}/.venv up to date\n"
    checkout.proto.write_text("second")
    assert checkout.run() == (0, "", up_to_date)
    (checkout.root / "protos" / "task_pb2.py").unlink()
    assert checkout.run() == (0, "", up_to_date)
    assert checkout.run("--extra", "test", "true") == (0, "", up_to_date)
    assert checkout.run("--extra=check") == (0, "", up_to_date)
    assert checkout.run("--extra", "check", "--extra", "test") == (0, "", "")
    assert kept.exists()

    # The environment is made anew after a change of pyproject.toml, and once more if that failed half way.
    checkout.pyproject.write_text(PYPROJECT + "# changed\n")
    checkout.proto.write_text("nonsense")
    code, stdout, stderr = checkout.run("echo", "never")
    assert (code, stdout) == (1, "")
    assert "the compiler refuses task.proto" in stderr
    assert "bootstrap: this failed: " in stderr
    assert not kept.exists()
    assert not checkout.stamp.exists()

    # Of two that run at once, one makes it and the other waits for that.
    checkout.proto.write_text("better")
    with checkout.start("echo", "one") as one, checkout.start("echo", "two") as two:
        ends = [process.communicate(timeout=DEADLINE) for process in (one, two)]
    assert [process.returncode for process in (one, two)] == [0, 0]
    assert [stdout for stdout, _ in ends] == ["one\n", "two\n"]
    assert sum(stderr.count("making") for _, stderr in ends) == 1


def wheel(folder: Path, name: str, version: str) -> str:
    """Put a wheel of a module `name` there; returns its line for tools.txt."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"version = {version!r}\n")
        file.writestr(f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def test_tools_are_installed_as_pinned_and_only_so(tmp_path: Path) -> None:
    """In a folder whose name pip would take for extras."""
    checkout = Checkout(tmp_path / "it's a[b]")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    lines = [wheel(wheels, "tool", version) for version in ("1", "2", "3")]
    tools = checkout.root / "deploy" / "tools.txt"
    tools.write_text(lines[1])
    variables = {"PIP_FIND_LINKS": str(wheels).replace(" ", "%20")}
    show = ("python", "-c", "import tool; print(tool.version)")
    assert checkout.run("python", "-c", "import tool", **variables)[0] == 1  # without an extra, no tools
    assert checkout.run("--extra", "check", *show, **variables)[:2] == (0, "2\n")
    tools.write_text(lines[0])
    assert checkout.run(*show, **variables)[:2] == (0, "1\n")
    assert checkout.run(*show, **variables) == (0, "1\n", "")

    tools.write_text(lines[2].replace("==3", "==2"))  # the hash of another file
    code, _, stderr = checkout.run(*show, **variables)
    assert (code, "DO NOT MATCH THE HASHES" in stderr) == (1, True)
    assert not checkout.stamp.exists()


@pytest.mark.parametrize("name", ["a:b", 'a"b', "a$b", "a\nb"])
def test_a_folder_that_no_environment_can_have_is_refused(tmp_path: Path, name: str) -> None:
    checkout = Checkout(tmp_path / name)
    code, _, stderr = checkout.run("true")
    assert (code, "no environment can be made here" in stderr) == (1, True)
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--extra", "nosuch", "true"), "pyproject.toml has no extra 'nosuch'"),
        (("--extra",), "--extra needs a name"),
        (("--extra", "a;b"), "small letters, digits and hyphens"),
        (("--nothing",), "there is no option --nothing"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_made(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    checkout = Checkout(tmp_path / "checkout")
    code, _, stderr = checkout.run(*arguments)
    assert code == 1
    assert reason in stderr
    assert not (checkout.root / ".venv").exists()


def test_help_says_how_it_is_used(tmp_path: Path) -> None:
    code, stdout, _ = Checkout(tmp_path / "checkout").run("--help")
    assert code == 0
    assert "deploy/bootstrap [--extra NAME]... [COMMAND [ARGUMENT]...]" in stdout
