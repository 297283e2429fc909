"""The house rules that no type checker knows: which part may import which, and what stands where.

Every import of every file counts, inside functions and under TYPE_CHECKING too. A part is a package or a module of one of
the two programs; the table below says whom each may import besides itself and the standard library. The checker is itself
tried on a made-up tree, so that a broken arrow cannot pass unseen.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"daggyr": Path("protos/daggyr"), "daggyr_server": Path("daggyr_server"), "daggyr_agent": Path("daggyr_agent")}

CORE = "daggyr_server.core"
SPEC = "daggyr_server.spec"
TRACKERS = "daggyr_server.trackers"
EXECUTORS = "daggyr_server.executors"
DRIVER = "daggyr_server.driver"
API = "daggyr_server.api"
CLI = "daggyr_server.cli"
CONFIG = "daggyr_server.config"
POOL_TABLES = "daggyr_server.pool_tables"
DESCRIPTORS = "daggyr_server.descriptors"
CHOSEN_PATH = "daggyr_server.chosen_path"
REFUSED = "daggyr_server.refused_callers"
QUIET_GRPC = "daggyr_server.quiet_grpc"
COORDINATOR = "daggyr_server.coordinator"
MAIN = "daggyr_server.main"
ENTRY = "daggyr_server.__main__"

WIRE = frozenset({"daggyr", "google.protobuf", "grpc"})
SERVICES = frozenset({"grpc_health", "grpc_reflection"})
BELOW_DRIVER = frozenset({CORE, SPEC, TRACKERS, EXECUTORS})
# What the API needs of the driver comes through three doors, and one for the metrics; the others are types that pass there.
DOORS = frozenset({f"{DRIVER}.{name}" for name in ("requests", "ended", "changes", "figures", "errors", "edit_plan")})

# Part to what it may import. The longest name that fits a module is its part; an import of a part is one of anything in it.
ARROWS: dict[str, frozenset[str]] = {
    "daggyr": WIRE | {"msgspec"},
    "daggyr_agent": WIRE | {"click", "msgspec", "psutil"},
    "daggyr_server": frozenset(),
    CORE: frozenset(),
    SPEC: frozenset({"daggyr", CORE, "google.protobuf", "msgspec", "yaml"}),
    TRACKERS: frozenset({"daggyr", CORE, "google.protobuf", "msgspec", "psycopg"}),
    EXECUTORS: WIRE | {DESCRIPTORS, REFUSED, "asyncssh", "msgspec", "psutil"},
    DESCRIPTORS: frozenset(),
    CHOSEN_PATH: frozenset({"click"}),
    REFUSED: frozenset(),
    QUIET_GRPC: frozenset({"grpc"}),
    CONFIG: frozenset({"daggyr", POOL_TABLES, "msgspec"}),
    POOL_TABLES: frozenset({"daggyr", "msgspec"}),
    DRIVER: frozenset({"daggyr"}) | BELOW_DRIVER,
    API: WIRE
    | DOORS
    | {CORE, SPEC, f"{TRACKERS}.base", f"{EXECUTORS}.believable", CONFIG, DESCRIPTORS, REFUSED, "prometheus_client"},
    CLI: WIRE
    | {CHOSEN_PATH, SPEC, "daggyr_server.core.graph.graph", "daggyr_server.core.graph.segments", "click", "msgspec", "rich"},
    ENTRY: frozenset({"daggyr", MAIN}),
    COORDINATOR: SERVICES | BELOW_DRIVER | {"daggyr", DRIVER, API, CONFIG},
    MAIN: frozenset({"daggyr", COORDINATOR, CHOSEN_PATH, CONFIG, DESCRIPTORS, QUIET_GRPC, "click", "msgspec"})
    | {f"{API}.listening", f"{EXECUTORS}.base", f"{EXECUTORS}.context", f"{TRACKERS}.base"},
}

# The core is pure: nothing that waits, looks at the world, or rolls dice, though the standard library has it.
NOT_IN_CORE = frozenset(
    {
        *("asyncio", "concurrent", "threading", "multiprocessing", "queue", "sched", "selectors", "signal", "socket", "ssl"),
        *("io", "logging", "os", "pathlib", "shutil", "sqlite3", "subprocess", "sys", "tempfile"),
        *("datetime", "random", "secrets", "time", "uuid"),
    }
)

TOP = {
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("protos", "daggyr_server", "daggyr_agent", "tests", "examples", "deploy"),
}
NAMELESS = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """The modules of the three packages below `root`, without what the build generates."""
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                names = path.relative_to(root / folder).with_suffix("").parts
                yield ".".join((package, *(name for name in names if name != "__init__"))), path


def imports(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """Everything that a file imports, as dotted names with their lines; `from a import b` is `a.b`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join((*parents, *([base] if base else [])))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("__import__", "import_module"):
            yield node.lineno, name_given(node.args[0]) if node.args else "?"


def name_given(argument: ast.expr) -> str:
    """The module that an import by name asks for: a whole text, or one that begins with a package; else `?`."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) and argument.values else argument
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return "?"
    return first.value if first is argument else first.value.rpartition(".")[0] or "?"


def part_of(name: str) -> str | None:
    """The part that a dotted name belongs to: the longest that it is or lies in."""
    return max((part for part in ARROWS if lies_in(name, part)), key=len, default=None)


def lies_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def fault(module: str, name: str) -> str | None:
    """What is wrong with `module` importing `name`, or None."""
    part = part_of(module)
    if part is None or (part == "daggyr_server" and module != part):
        return "belongs to no part: give it a line in ARROWS"
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return "is not pure" if part == CORE and top in NOT_IN_CORE else None
    target = part_of(name)
    if target == part or (target == "daggyr_server" and name == "daggyr_server.__version__"):
        return None
    return None if any(lies_in(name, allowed) for allowed in ARROWS[part]) else "is against the arrows"


def broken_arrows(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line}: {module} imports {name}, which {problem}"
        for module, path in modules(root)
        for line, name in imports(path, module)
        if (problem := fault(module, name))
    ]


def test_arrows_run_one_way() -> None:
    assert broken_arrows(ROOT) == []


def test_every_part_is_there() -> None:
    """So that a part that was renamed does not keep its line, which would then hold nothing."""
    names = {name for name, _ in modules(ROOT)}
    assert [part for part in ARROWS if part not in names] == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("daggyr_server/core/graph/run.py", "import asyncio"),
        ("daggyr_server/core/graph/run.py", "import os.path"),
        ("daggyr_server/core/graph/run.py", "from time import monotonic"),
        ("daggyr_server/core/graph/run.py", "import msgspec"),
        ("daggyr_server/core/graph/run.py", "from daggyr.v1 import task_pb2"),
        ("daggyr_server/core/graph/run.py", "from daggyr_server.driver.loop import Driver"),
        ("daggyr_server/core/graph/run.py", "from ... import driver"),
        ("daggyr_server/core/graph/run.py", "from ...driver import Driver"),
        ("daggyr_server/core/graph/run.py", "def f():\n    if True:\n        import random"),
        ("daggyr_server/core/graph/run.py", "__import__('os')"),
        ("daggyr_server/cli/main.py", "import importlib\nimportlib.import_module('daggyr_server.driver')"),
        ("daggyr_server/cli/main.py", "from importlib import import_module\nimport_module(f'daggyr_server.core.{1}')"),
        ("daggyr_server/cli/main.py", "from importlib import import_module\nimport_module(name)"),
        ("daggyr_server/spec/check.py", "import grpc"),
        ("daggyr_server/spec/check.py", "from daggyr_server import driver"),
        ("daggyr_server/executors/agents/local.py", "from daggyr_server.core import states"),
        ("daggyr_server/executors/agents/local.py", "import daggyr_agent.main"),
        ("daggyr_server/trackers/memory/tracker.py", "from daggyr_server.driver.loop import Driver"),
        ("daggyr_server/driver/loop.py", "from daggyr_server.api.listening import listener"),
        ("daggyr_server/api/runs.py", "from daggyr_server.cli import tables"),
        ("daggyr_server/api/runs.py", "from daggyr_server.driver.loop import Driver"),
        ("daggyr_server/api/hosts.py", "from daggyr_server.executors.agents.executor import AgentExecutor"),
        ("daggyr_server/api/output.py", "from daggyr_server.trackers.memory.tracker import MemoryTracker"),
        ("daggyr_server/main.py", "from daggyr_server.driver.loop import Driver"),
        ("daggyr_server/cli/main.py", "from daggyr_server.core.graph.run import Run"),
        ("daggyr_server/cli/main.py", "from daggyr_server.driver.loop import Driver"),
        ("daggyr_server/new_part.py", "import json"),
        ("daggyr_agent/main.py", "from daggyr_server import spec"),
        ("daggyr_agent/main.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import daggyr_server"),
        ("protos/daggyr/channel.py", "import daggyr_server.config"),
        ("protos/daggyr/channel.py", "import daggyr_agent"),
    ],
)
def test_a_broken_arrow_is_found(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert len(broken_arrows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "daggyr_server/core/graph/run.py",
            "import json, enum\nfrom daggyr_server.core.graph.graph import Graph\nfrom . import graph",
        ),
        ("daggyr_server/cli/main.py", "import click, rich.table\nfrom daggyr_server.core.graph.graph import Graph"),
        ("daggyr_server/cli/main.py", "from daggyr_server import __version__\nfrom daggyr import client"),
        ("daggyr_server/cli/main.py", "from importlib import import_module\nimport_module(f'daggyr_server.cli.commands.{1}')"),
        (
            "daggyr_server/api/runs.py",
            "from daggyr_server.driver.ended import Reader\nfrom daggyr_server.core.states import State",
        ),
        ("daggyr_agent/main.py", "import psutil\nfrom daggyr.v1.agents_pb2 import Hello"),
    ],
)
def test_an_arrow_that_holds_is_passed(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert broken_arrows(tmp_path) == []


def test_every_file_says_what_it_is() -> None:
    files = [path for _, path in modules(ROOT)]
    assert [str(path) for path in files if not ast.get_docstring(ast.parse(path.read_bytes()))] == []


def tracked(root: Path) -> list[Path]:
    """The files that belong to the repository, relative to its root, new ones included."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("this is no git checkout")
    command = ["git", "-c", f"safe.directory={root}", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout
    return [Path(name) for name in listed.decode().split("\0") if name and (root / name).exists()]


def test_nothing_else_stands_at_the_top() -> None:
    tops = {path.parts[0] for path in tracked(ROOT)}
    assert {top for top in tops if not top.startswith(".")} - TOP == set()


def test_names_are_the_words_of_the_field() -> None:
    named = [path for path in tracked(ROOT) if NAMELESS & {part.partition(".")[0] for part in path.parts}]
    assert named == []
