"""A path that a person gives as an option: not empty, and with a `~` at its beginning taken for a home folder.

Shells expand `--config ~/x`, but not `--config=~/x`, and an empty path is a variable of a script that was never set. The options
of `daggyr` and `daggyr-server` have this type. Nothing is opened here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class ChosenPath(click.Path):
    """A `Path`, of a file unless said otherwise."""

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
