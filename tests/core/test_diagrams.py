"""The core's README: its diagrams have an arrow for each line of the tables in `states.py`, and no other; it names every file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from daggyr_server.core.states import RUN_TRANSITIONS, TRANSITIONS, Phase, State

README = Path(__file__).resolve().parent.parent.parent / "daggyr_server/core/README.md"
ARROW = re.compile(r"    (\[\*\]|[A-Z]+) --> ([A-Z]+)(?:: (\S.*))?")
T = TypeVar("T", Phase, State)


def arrows(heading: str, text: str) -> list[tuple[str, str, str]]:
    """The arrows of the diagram below a heading: from, to, and what is written on it."""
    (block,) = re.findall(
        r"```mermaid\nstateDiagram-v2\n(.*?)```", text.partition(f"## {heading}\n")[2].partition("\n## ")[0], re.S
    )
    found = [ARROW.fullmatch(line) for line in block.splitlines()]
    assert None not in found, block
    return [(match[1], match[2], match[3] or "") for match in found if match is not None]


def lines(table: Mapping[T, frozenset[T]]) -> set[tuple[str, str]]:
    return {(before.name, after.name) for before, following in table.items() for after in following}


@pytest.mark.parametrize(
    ("heading", "table", "first"),
    [("The phases of a task", lines(TRANSITIONS), Phase.BLOCKED), ("The states of a run", lines(RUN_TRANSITIONS), State.QUEUED)],
)
def test_a_diagram_is_its_table(heading: str, table: set[tuple[str, str]], first: Phase | State) -> None:
    drawn = arrows(heading, README.read_text())
    pairs = [(before, after) for before, after, _ in drawn]
    assert len(pairs) == len(set(pairs)), "an arrow is drawn twice"
    assert set(pairs) == table | {("[*]", first.name)}
    assert all(label for before, _, label in drawn if before != "[*]"), "each arrow says why"


def test_arrows_are_read_from_the_diagram_of_the_heading() -> None:
    diagram = "```mermaid\nstateDiagram-v2\n    [*] --> {0}\n    {0} --> B: why\n```\n"
    text = f"## One\n\n{diagram.format('A')}\n## Two\n\n{diagram.format('C')}"
    assert arrows("One", text) == [("[*]", "A", ""), ("A", "B", "why")]
    assert arrows("Two", text) == [("[*]", "C", ""), ("C", "B", "why")]


def test_every_file_has_its_line() -> None:
    """A file is named under its folder, and no other is."""
    files = README.read_text().partition("## Files\n")[2].partition("\n## ")[0]
    core, graph, placing = re.split(r"\n`(?:graph|placing)/`", files)
    for folder, text in ((README.parent, core), (README.parent / "graph", graph), (README.parent / "placing", placing)):
        named = re.findall(r"`(\w+\.py)`", "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `")))
        assert sorted(named) == sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")
