"""The type of options of `daggyr` and `daggyr-server` that take a path.

A `~` at the beginning is the home folder, because shells expand `--config ~/x` but not `--config=~/x`. An empty path is refused,
because it comes from a variable that a script never set. Nothing is opened here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class ChosenPath(click.Path):
    """A path of a file as `pathlib.Path`. With `exists`, the file has to be there."""

    def __init__(self, *, exists: bool = False) -> None:
        super().__init__(exists=exists, dir_okay=False, path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("the path is empty", param, ctx)
        try:
            path = Path(value).expanduser()
        except RuntimeError:
            self.fail(f"the home folder that {os.fspath(value)!r} begins with is not known; write the whole path", param, ctx)
        return super().convert(path, param, ctx)
