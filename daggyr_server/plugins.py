"""Loads the class that an entry point of an installed package names, and says what is wrong with it if it cannot be used.

The loaders of trackers and executors call `load_class`; each turns the fault into an error of its own room. Nothing here makes an
object of the class, and nothing here knows what the classes do.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any


class UnusableClass(Exception):
    """An entry point is not there, or what it names is not what it should be. The message is a sentence for people."""


def load_class(base: type, noun: str, group: str, name: str, *, settings: type | None = None) -> Any:
    """Return the subclass of `base` that the entry point `name` of `group` names; `noun` is what people call such a class.

    With `settings`, the class must also have an attribute `Settings` that is a subclass of it. Raises UnusableClass for an
    unknown name, listing those that exist, for a name that packages give to several classes, and for a class that lacks
    something, listing all that it lacks.
    """
    entries = entry_points(group=group)
    named = [entry for entry in entries if entry.name == name]
    if not named:
        raise UnusableClass(f"there is no {noun} {name!r}; there are: {', '.join(sorted({entry.name for entry in entries}))}")
    if len({entry.value for entry in named}) > 1:  # Which of them comes first depends on how they were installed.
        several = sorted(f"{entry.value} of the package {entry.dist.name if entry.dist else '?'}" for entry in named)
        raise UnusableClass(
            f"there is more than one {noun} {name!r}: {', '.join(several)}; uninstall all packages but one of them"
        )
    where = f"{named[0].value}, the entry point {name!r} of {group},"
    try:
        loaded = named[0].load()
    except (Exception, SystemExit) as error:  # an import of another package's module can raise anything
        raise UnusableClass(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UnusableClass(f"{where} is not a subclass of {base.__module__}.{base.__qualname__}")
    missing = sorted(getattr(loaded, "__abstractmethods__", ()))
    if settings is not None:
        declared = getattr(loaded, "Settings", None)
        if not (isinstance(declared, type) and issubclass(declared, settings)):
            missing.append(f"Settings (a {settings.__module__.partition('.')[0]}.{settings.__qualname__})")
    if missing:
        raise UnusableClass(f"{where} is not complete, it lacks: {', '.join(missing)}")
    return loaded
