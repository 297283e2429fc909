"""The examples in READMEs, for the tests that run them: what a reader would paste is what is tried."""

from __future__ import annotations

import re
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRACKERS = ROOT / "daggyr_server/trackers/README.md"


def block(readme: Path, language: str) -> str:
    """The only code block of that language under `Adding one`. Raises ValueError if there are more, or none."""
    section = readme.read_text(encoding="utf-8").rpartition("\n## Adding one\n")[2]
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(text)


def module(readme: Path, name: str) -> types.ModuleType:
    """The README's Python block as a module; it stays out of `sys.modules`."""
    made = types.ModuleType(name)
    exec(compile(block(readme, "python"), str(readme), "exec"), made.__dict__)  # noqa: S102
    return made
