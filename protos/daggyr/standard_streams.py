"""The three standard descriptors of a program: open at its start, even where its parent had closed them, and flushed at its end.

The entry points of `daggyr`, `daggyr-server` and `daggyr-agent` call `claim` before they import or open anything else. Without
it, the first file that a program opens would take the number of a descriptor that its parent had closed, and what is written to
standard output or standard error would land in that file. Programs call `say` and `leave_quietly` when they end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


def claim() -> None:
    """Open /dev/null on those of the descriptors 0 to 2 that are closed, and let no character fail to be printed.

    `sys.stdin` stays None if standard input was closed, so that a program can tell that from an empty input. Characters that
    the encoding of standard output or standard error does not have (LANG=C, PYTHONIOENCODING=ascii) are printed as escapes.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # as the three always are
    os.close(descriptor)
    sys.stdout = _printing(sys.stdout, 1)
    sys.stderr = _printing(sys.stderr, 2)


def say(text: str) -> None:
    """Print a line on standard error. If it cannot be written, it is lost without an error, so that the program ends as it would
    have."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def leave_quietly() -> None:
    """Flush both streams. What cannot be written is dropped, because the interpreter would complain of it as it ends."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


def _printing(stream: Any, descriptor: int) -> Any:
    if stream is None:
        return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    if hasattr(stream, "reconfigure"):  # a test may have put something else there
        stream.reconfigure(errors="backslashreplace")
    return stream
