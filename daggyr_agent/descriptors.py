"""The descriptors that the agent was started with: which of them are its own, and which its children may have.

`main` calls `keep_from_children` before anything else is opened. Descriptors that the agent opens itself are close-on-exec
(PEP 446), so that a task is given 0, 1 and 2 and nothing else. Descriptors that the agent inherited are not. Through them, a
daemon of a task would hold a lock, a pipe or a socket of whoever started the agent, for as long as it runs.
"""

from __future__ import annotations

import os
import resource

_MOST = 65_536  # So many descriptors are looked at where /proc does not tell which are open.


def keep_from_children() -> None:
    """Mark every open descriptor above 2 close-on-exec. Nothing is closed: the lifeline is one of them."""
    for descriptor in _candidates():
        if descriptor > 2:
            try:
                os.set_inheritable(descriptor, False)
            except OSError:
                continue  # it is not open (any more): the listing itself needed one


def _candidates() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    except OSError:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return list(range(3, min(limit, _MOST) if limit > 0 else _MOST))
