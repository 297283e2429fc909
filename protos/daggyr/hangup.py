"""What SIGHUP means to a daemon: that its terminal was closed, or that somebody asks it to read its files again.

`daggyr-server` and `daggyr-agent` make a `Terminal` at their start and ask it when the signal comes. It handles no signals.
"""

from __future__ import annotations

import os


class Terminal:
    """The terminal that this process was started from, if it was started from one."""

    def __init__(self) -> None:
        self._had_one = _is_there()

    def is_gone(self) -> bool:
        """Whether there was one at the start and there is none now: then it was closed, and a program started there ends."""
        return self._had_one and not _is_there()


def _is_there() -> bool:
    """Whether this process has a controlling terminal; see tty(4)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
