"""Executors by name: an entry point of the group `daggyr.executors` names the class of each.

The server's configuration and its main program call `find_executor` with what a pool's `executor` setting says. Nothing here
makes an executor. Nothing here knows one by name: those of this package are found as those of other packages are.
"""

from __future__ import annotations

import msgspec

from daggyr_server.executors.base import Executor, ExecutorError
from daggyr_server.plugins import UnusableClass, load_class

GROUP = "daggyr.executors"


def find_executor(kind: str) -> type[Executor]:
    """Return the executor class that an entry point calls `kind`.

    Raises ExecutorError for an unknown kind, naming those that exist, and for a kind whose entry point is no executor.
    """
    try:
        found: type[Executor] = load_class(Executor, "executor", GROUP, kind, settings=msgspec.Struct)
    except UnusableClass as error:
        raise ExecutorError(str(error)) from error.__cause__
    return found
