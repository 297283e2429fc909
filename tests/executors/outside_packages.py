"""Packages from outside DaggyR that are installed without an index: tests make the wheels by hand and pip installs them.

Wheels are as https://packaging.python.org/en/latest/specifications/binary-distribution-format/ says. A project's wheel has what
its pyproject.toml says of it, as its build backend would make it, but no backend has to be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from support.waiting import DEADLINE


def project_wheel(project: Path, folder: Path) -> Path:
    """Make the wheel of a project that has one package of the project's name; returns its path in `folder`."""
    told = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = told["name"].replace("-", "_")
    files = {
        f"{package}/{path.name}": path.read_text(encoding="utf-8") for path in (project / package).iterdir() if path.is_file()
    }
    return make_wheel(folder, told["name"], told["version"], files, told["entry-points"])


def make_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]]
) -> Path:
    base = f"{name.replace('-', '_')}-{version}"
    info = f"{base}.dist-info"
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{each} = {value}" for each, value in entries.items())]
    all_files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join([*lines, ""]),
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in all_files.items())
    all_files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    made = folder / f"{base}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as wheel:
        for path, text in all_files.items():
            wheel.writestr(path, text)
    return made


def install(target: Path, *wheels: Path) -> None:
    """Install wheels into a folder; Python finds them there by PYTHONPATH."""
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-index", "--no-deps", "--no-cache-dir", "--target", str(target), *map(str, wheels)]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
