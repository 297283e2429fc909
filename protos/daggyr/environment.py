"""Which variables of a daemon's environment its tasks get: a short list, and what settings name.

The agent asks for the tasks that it starts, and the coordinator for the jobs that it gives to Slurm. A daemon's environment may
hold secrets, such as a database's password, that tasks must not see. DaggyR's own variables (DAGGYR_*) are never passed. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

# What programs need to find others, their files and their language.
ALWAYS = ("PATH", "HOME", "LANG", "LC_*", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL")


def passes(name: str, patterns: Iterable[str]) -> bool:
    """Whether tasks get the variable `name`, because ALWAYS or `patterns` has it.

    A pattern is a name, or the beginning of names with a `*` behind it.
    """
    if name.startswith("DAGGYR_"):
        return False
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in (*ALWAYS, *patterns))


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a pattern in the settings, in words; None if nothing is wrong."""
    if not pattern or "=" in pattern or "*" in pattern[:-1] or not pattern.isprintable():
        return f"{pattern!r} names no variable: write NAME, PREFIX_* or *"
    return None
