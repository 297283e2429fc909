"""Executors by name: an entry point of the group `daggyr.executors` names the class of each.

The server's configuration and its main program call `find_executor` with what a pool's `executor` setting says. Nothing here
makes an executor. Nothing here knows one by name: those of this package are found as those of other packages are.
"""

from __future__ import annotations

from importlib.metadata import entry_points

import msgspec

from daggyr_server.executors.base import Executor, ExecutorError

GROUP = "daggyr.executors"


def find_executor(kind: str) -> type[Executor]:
    """Return the executor class that an entry point calls `kind`.

    Raises ExecutorError for an unknown kind, naming those that exist, and for a kind whose entry point is no executor.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if kind not in found:
        raise ExecutorError(f"there is no executor {kind!r}; there are: {', '.join(sorted(found))}")
    entry = found[kind]
    where = f"{entry.value}, the entry point {kind!r} of {GROUP},"
    try:
        loaded = entry.load()
    except Exception as error:  # an import of another package's module can raise anything
        raise ExecutorError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Executor)):
        raise ExecutorError(f"{where} is not a subclass of daggyr_server.executors.base.Executor")
    settings = getattr(loaded, "Settings", None)
    missing = sorted(loaded.__abstractmethods__)
    if not (isinstance(settings, type) and issubclass(settings, msgspec.Struct)):
        missing.append("Settings (a msgspec.Struct)")
    if missing:
        raise ExecutorError(f"{where} is not complete, it lacks: {', '.join(missing)}")
    return loaded
