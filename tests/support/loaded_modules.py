"""Which modules a Python program loaded, from what it says with PYTHONPROFILEIMPORTTIME=1 in its environment."""

from __future__ import annotations


def loaded_modules(said: str) -> set[str]:
    """The full names of the modules in `said`, the program's standard error; those of its Python children are among them."""
    lines = (line for line in said.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}
