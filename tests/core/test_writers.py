"""Who may write what: phases are moved in one file, and runs and attempts are changed in one folder.

The files are read, not run: an assignment, a deletion, or a call of something that changes a list counts, of the attribute itself
and of a local name for it. The reader is itself tried on small texts.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.tasks import Tasks
from daggyr_server.core.moment import Moment

ROOT = Path(__file__).resolve().parent.parent.parent
CORE = ROOT / "daggyr_server/core"
CHANGING = frozenset(
    {
        *("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse", "frombytes", "appendleft", "popleft"),
        *("update", "setdefault", "popitem", "add", "discard", "difference_update", "intersection_update"),
        *("__setitem__", "__delitem__", "__iadd__"),
    }
)
PHASES = frozenset({"phases", "counts"})
TAKEN = frozenset({"moves", "changed"})  # the machine takes these notes


def attributes(of: type[Tasks]) -> frozenset[str]:
    """What objects of a class have."""
    made = (
        Run(1, tags={}, pool="", parameters={}, made=Moment(0.0, 0.0), offer=lambda queue: None)
        if of is Run
        else of(1, lambda queue: None)
    )
    return frozenset(vars(made))


RUN = attributes(Run) - TAKEN
ATTEMPT = frozenset(InFlight.__slots__) - {"number", "attempt", "sent"}  # names of events and commands too


def writes(text: str, names: Collection[str], *, own: bool = True) -> Iterator[tuple[int, str]]:
    """Where a text writes to attributes of these names; `own`: those of `self` count too."""
    tree = ast.parse(text)
    known: set[str] = set()  # local names for such attributes

    def meant(node: ast.expr) -> str | None:
        """The attribute that an expression is, or is an item of."""
        while isinstance(node, ast.Subscript | ast.Starred):
            node = node.value
        if isinstance(node, ast.Attribute) and node.attr in names:
            return node.attr if own or not (isinstance(node.value, ast.Name) and node.value.id == "self") else None
        return node.id if isinstance(node, ast.Name) and node.id in known else None

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                several = isinstance(target, ast.Tuple | ast.List)  # one name for a list is no name for what the list holds
                pairs = zip(_parts(target), _parts(node.value), strict=False) if several else [(target, node.value)]
                known |= {
                    name.id
                    for name, value in pairs
                    if isinstance(name, ast.Name) and isinstance(value, ast.Attribute) and meant(value)
                }
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = [part for target in node.targets for part in _parts(target)]
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.NamedExpr):
            targets = _parts(node.target)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            targets = _parts(node.optional_vars)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
                targets = [node.func.value]
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("setattr", "__setattr__", "delattr") and len(node.args) > 1:
                told = node.args[1 if called != "__setattr__" or len(node.args) == 3 else 0]
                if not isinstance(told, ast.Constant) or told.value in names:
                    yield node.lineno, ast.unparse(told)
            if called in ("heappush", "heappop", "heapify") and node.args:
                targets = [node.args[0]]
        for target in targets:
            found = meant(target)
            plain = isinstance(target, ast.Name) and not isinstance(node, ast.AugAssign | ast.Call)
            if found is not None and not plain:  # a local name may be given to something else
                yield getattr(node, "lineno", 0), found


def _parts(node: ast.expr) -> list[ast.expr]:
    return [part for element in node.elts for part in _parts(element)] if isinstance(node, ast.Tuple | ast.List) else [node]


def written(folder: Path, names: Collection[str], *, own: bool = True) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted(folder.rglob("*.py"))
        for line, name in writes(path.read_text(), names, own=own)
    ]


def test_phases_are_written_in_one_file() -> None:
    others = [found for found in written(CORE, PHASES) if not found.startswith("daggyr_server/core/graph/tasks.py:")]
    assert others == []


@pytest.mark.parametrize("part", ["driver", "api"])
def test_no_other_part_writes_phases(part: str) -> None:
    """The other parts may not import a Run, which test_arrows holds."""
    assert written(ROOT / "daggyr_server" / part, PHASES, own=False) == []


def test_runs_and_attempts_are_changed_in_the_folder_graph_only() -> None:
    above = sorted(CORE.glob("*.py"))
    found = [f"{path.name}:{line}: {name}" for path in above for line, name in writes(path.read_text(), RUN | ATTEMPT, own=False)]
    assert found == []
    # Placing knows no Run at all, which test_arrows holds.
    assert [found for found in written(CORE / "placing", ATTEMPT, own=False) if not found.endswith(": queues")] == []


def test_questions_change_nothing() -> None:
    """`recall` and `refusals` only answer: they write to no attribute of anything."""
    for file in ("placing/recall.py", "graph/refusals.py"):
        tree = ast.parse((CORE / file).read_text())
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert list(writes((CORE / file).read_text(), names)) == [], file


@pytest.mark.parametrize(
    "text",
    [
        "run.phases[1] = 2",
        "run.phases = b''",
        "run.phases[1:2] += b'1'",
        "run.counts[0] -= 1",
        "del run.phases[0]",
        "a, run.phases[1] = 1, 2",
        "for run.counts[0] in x: pass",
        "run.phases.append(1)",
        "self.run.counts.clear()",
        "phases = run.phases\nphases[1] = 2",
        "p, c = self.phases, self.counts\nc[1] -= 1",
        "p = run.phases\np += b'1'",
        "p = run.phases\np.extend(b'1')",
        "setattr(run, 'phases', b'')",
        "object.__setattr__(run, 'counts', [])",
        "setattr(run, name, b'')",
        "heapq.heappush(run.counts, 1)",
    ],
)
def test_a_write_is_found(text: str) -> None:
    assert list(writes(text, PHASES))


@pytest.mark.parametrize(
    "text",
    [
        "phases = run.phases",
        "phases = bytearray(run.phases)\nphases[1] = 2",
        "x = run.phases[1]",
        "n = run.phases.count(1, 2, 3)",
        "kept = run.phases.translate(table)\nkept[0] = 1",
        "run.state = 1",
        "p = run.phases\np = b''",
        "setattr(run, 'state', 1)",
    ],
)
def test_what_only_reads_is_passed(text: str) -> None:
    assert list(writes(text, PHASES)) == []


def test_the_own_attributes_of_another_class_are_told_apart() -> None:
    assert list(writes("self.counts[1] += 1", PHASES, own=False)) == []
    assert list(writes("run.counts[1] += 1", PHASES, own=False)) == [(1, "counts")]
