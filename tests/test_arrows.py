"""The house rules that no type checker knows: which part may import which, and what stands where.

Every import of every file counts, inside functions and under TYPE_CHECKING too. A part is a package or a module of one of
the two programs; the table below says whom each may import besides itself and the standard library. No module may import itself,
by whatever way round. The checkers are themselves tried on made-up trees, so that neither a broken arrow nor a circle can pass
unseen.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"daggyr": Path("protos/daggyr"), "daggyr_server": Path("daggyr_server"), "daggyr_agent": Path("daggyr_agent")}

CORE = "daggyr_server.core"
STATES = "daggyr_server.core.states"
STORED = "daggyr_server.core.stored"
MOMENT = "daggyr_server.core.moment"
GRAPH = "daggyr_server.core.graph"
PLACING = "daggyr_server.core.placing"
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
PLUGINS = "daggyr_server.plugins"
REFUSED = "daggyr_server.refused_callers"
QUIET_GRPC = "daggyr_server.quiet_grpc"
COORDINATOR = "daggyr_server.coordinator"
COPIES = "daggyr_server.copies"
MAIN = "daggyr_server.main"
SERVING = "daggyr_server.serving"
ENTRY = "daggyr_server.__main__"

WIRE = frozenset({"daggyr", "google.protobuf", "grpc"})
SERVICES = frozenset({"grpc_health", "grpc_reflection"})
BELOW_DRIVER = frozenset({CORE, SPEC, TRACKERS, EXECUTORS})
# What the API needs of the driver comes through the first three files, and the metrics' numbers through `figures`. The others
# have types.
DRIVER_FOR_API = frozenset({f"{DRIVER}.{name}" for name in ("requests", "ended", "changes", "figures", "errors", "edit_plan")})

# Part to what it may import. The longest name that fits a module is its part; an import of a part is one of anything in it.
ARROWS: dict[str, frozenset[str]] = {
    "daggyr": WIRE | {"msgspec"},
    "daggyr_agent": WIRE | {"click", "msgspec", "psutil"},
    "daggyr_server": frozenset(),
    STATES: frozenset(),
    STORED: frozenset({STATES}),
    MOMENT: frozenset(),
    GRAPH: frozenset({STATES, STORED, MOMENT}),
    PLACING: frozenset({STATES, MOMENT, f"{GRAPH}.ready", f"{GRAPH}.in_flight"}),
    CORE: frozenset({STATES, STORED, MOMENT, GRAPH, PLACING}),
    SPEC: frozenset({"daggyr", CORE, "google.protobuf", "msgspec", "yaml"}),
    TRACKERS: frozenset({"daggyr", PLUGINS, STATES, STORED, f"{CORE}.records", "google.protobuf", "msgspec", "psycopg"}),
    EXECUTORS: WIRE | {DESCRIPTORS, PLUGINS, REFUSED, "asyncssh", "msgspec", "psutil"},
    DESCRIPTORS: frozenset(),
    CHOSEN_PATH: frozenset({"click"}),
    PLUGINS: frozenset(),
    REFUSED: frozenset(),
    QUIET_GRPC: frozenset({"grpc"}),
    CONFIG: frozenset({"daggyr", POOL_TABLES, "msgspec"}),
    POOL_TABLES: frozenset({"daggyr", "msgspec"}),
    DRIVER: frozenset({"daggyr", "msgspec"}) | BELOW_DRIVER,
    API: WIRE
    | DRIVER_FOR_API
    | {CORE, SPEC, f"{TRACKERS}.base", f"{EXECUTORS}.believable", CONFIG, DESCRIPTORS, REFUSED, "prometheus_client"},
    CLI: WIRE | {CHOSEN_PATH, SPEC, f"{GRAPH}.graph", f"{GRAPH}.segments", "click", "msgspec", "rich"},
    ENTRY: frozenset({"daggyr", MAIN}),
    COORDINATOR: SERVICES | BELOW_DRIVER | {"daggyr", DRIVER, API, CONFIG},
    COPIES: frozenset({"daggyr", CHOSEN_PATH, CONFIG, DRIVER, TRACKERS, "click"}),
    SERVING: frozenset({"daggyr", COORDINATOR, CONFIG, QUIET_GRPC, f"{API}.listening", f"{EXECUTORS}.base", f"{TRACKERS}.base"}),
    MAIN: frozenset({"daggyr", SERVING, COPIES, CHOSEN_PATH, CONFIG, DESCRIPTORS, "click", "msgspec"}),
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
        return "is not pure" if lies_in(part, CORE) and top in NOT_IN_CORE else None
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


def import_graph(root: Path) -> dict[str, set[str]]:
    """Each module below `root`, and the modules below `root` that it imports. A name that is imported from a module or package
    counts as an import of that."""
    names = {module for module, _ in modules(root)}
    graph: dict[str, set[str]] = {module: set() for module in names}
    for module, path in modules(root):
        for _, name in imports(path, module):
            while name and name not in names:
                name = name.rpartition(".")[0]
            if name:
                graph[module].add(name)
    return graph


def circles(graph: Mapping[str, set[str]]) -> set[tuple[str, ...]]:
    """The modules that import each other, each circle once, by name; one that imports itself is one as well."""
    reach = {module: reached(graph, module) for module in graph}
    return {
        tuple(sorted({module, *(other for other in reach[module] if module in reach[other])}))
        for module in graph
        if module in reach[module]
    }


def reached(graph: Mapping[str, set[str]], module: str) -> set[str]:
    """All modules that an import of `module` brings with it; itself too, if one of them imports it."""
    seen: set[str] = set()
    left = [module]
    while left:
        for name in graph[left.pop()] - seen:
            seen.add(name)
            left.append(name)
    return seen


def test_no_module_imports_itself_by_any_way_round() -> None:
    assert circles(import_graph(ROOT)) == frozenset()


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
        ("daggyr_server/core/graph/run.py", "from daggyr_server.driver.driver import Driver"),
        ("daggyr_server/core/graph/run.py", "from ... import driver"),
        ("daggyr_server/core/graph/run.py", "from ...driver import Driver"),
        ("daggyr_server/core/graph/run.py", "def f():\n    if True:\n        import random"),
        ("daggyr_server/core/graph/run.py", "__import__('os')"),
        ("daggyr_server/core/graph/run.py", "from daggyr_server.core.placing.host import WHOLE"),
        ("daggyr_server/core/graph/run.py", "from daggyr_server.core.events import RunRestored"),
        (
            "daggyr_server/core/graph/run.py",
            "if TYPE_CHECKING:\n    from ..placing import pool",
        ),
        ("daggyr_server/core/placing/pool.py", "from daggyr_server.core.graph.run import Run"),
        ("daggyr_server/core/placing/pool.py", "from daggyr_server.core.graph.tasks import Tasks"),
        ("daggyr_server/core/placing/pool.py", "from daggyr_server.core.commands import Key"),
        ("daggyr_server/core/placing/pool.py", "import random"),
        ("daggyr_server/core/states.py", "from daggyr_server.core.graph.segments import Kind"),
        ("daggyr_server/core/machine.py", "from daggyr_server.spec import expand"),
        ("daggyr_server/cli/main.py", "import importlib\nimportlib.import_module('daggyr_server.driver')"),
        ("daggyr_server/cli/main.py", "from importlib import import_module\nimport_module(f'daggyr_server.core.{1}')"),
        ("daggyr_server/cli/main.py", "from importlib import import_module\nimport_module(name)"),
        ("daggyr_server/spec/check.py", "import grpc"),
        ("daggyr_server/spec/check.py", "from daggyr_server import driver"),
        ("daggyr_server/executors/agents/local.py", "from daggyr_server.core import states"),
        ("daggyr_server/executors/agents/local.py", "import daggyr_agent.main"),
        ("daggyr_server/trackers/memory/tracker.py", "from daggyr_server.driver.driver import Driver"),
        ("daggyr_server/driver/loop.py", "from daggyr_server.api.listening import listener"),
        ("daggyr_server/api/runs.py", "from daggyr_server.cli import tables"),
        ("daggyr_server/api/runs.py", "from daggyr_server.driver.driver import Driver"),
        ("daggyr_server/api/hosts.py", "from daggyr_server.executors.agents.executor import AgentExecutor"),
        ("daggyr_server/api/output.py", "from daggyr_server.trackers.memory.tracker import MemoryTracker"),
        ("daggyr_server/main.py", "from daggyr_server.driver.driver import Driver"),
        ("daggyr_server/cli/main.py", "from daggyr_server.core.graph.run import Run"),
        ("daggyr_server/cli/main.py", "from daggyr_server.driver.driver import Driver"),
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
        ("daggyr_server/core/placing/pool.py", "from daggyr_server.core.graph.ready import ReadyQueue\nfrom .host import Host"),
        (
            "daggyr_server/core/machine.py",
            "from .graph.run import Run\nfrom .placing.pool import Pool\nfrom . import states",
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


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a": "from daggyr_server.core import b", "b": "from .a import f"}, {("a", "b")}),
        ({"a": "def f():\n    from .b import g", "b": "import daggyr_server.core.a"}, {("a", "b")}),
        (
            {"a": "if TYPE_CHECKING:\n    from .b import B", "b": "from . import a"},
            {("a", "b")},
        ),
        ({"a": "from .b import x", "b": "from .c import x", "c": "from .a import x"}, {("a", "b", "c")}),
        ({"a": "from .b import x", "b": "from .a import x", "c": "from .a import x"}, {("a", "b")}),
        (
            {"a": "from .b import x", "b": "from .a import x", "c": "from .d import x", "d": "from .c import x"},
            {("a", "b"), ("c", "d")},
        ),
        ({"a": "from .a import f"}, {("a",)}),
        ({"__init__": "from .a import f", "a": "from daggyr_server.core import f"}, {("", "a")}),
        ({"__init__": "from .a import f", "a": "from .b import f", "b": "import json"}, set()),
        ({"a": "from .b import x", "b": "from .c import x", "c": "", "d": "from .a import x\nfrom .b import x"}, set()),
    ],
)
def test_circles_are_found(tmp_path: Path, files: dict[str, str], found: set[tuple[str, ...]]) -> None:
    folder = tmp_path / "daggyr_server/core"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    named = {tuple(f"daggyr_server.core.{name}".rstrip(".") for name in circle) for circle in found}
    assert circles(import_graph(tmp_path)) == named


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


def test_no_two_classes_of_a_program_have_one_name() -> None:
    """Readers of a file would take the one for the other. `Details` are those of a task, in a document and in a graph."""
    for package in PACKAGES.values():
        found: dict[str, set[str]] = {}
        for path in (ROOT / package).rglob("*.py"):
            if "_pb2" not in path.name:
                for node in ast.parse(path.read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                        found.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
        assert {name: files for name, files in found.items() if len(files) > 1 and name != "Details"} == {}
