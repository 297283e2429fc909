"""The three standard descriptors at the start of a program: open, whatever the program's parent left closed.

The entry points of `daggyr`, `daggyr-server` and `daggyr-agent` call `claim` before they import or open anything else. Without
it, the first file that a program opens takes the number of a descriptor that its parent had closed, and whatever is written
to standard output or standard error from then on lands in that file. `say` and `leave_quietly` are for its end.
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
    """A line on standard error, lost quietly if nobody can take it: how a program ends does not depend on that."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def leave_quietly() -> None:
    """Flush what is still to be printed; if nobody can take it, forget it, so that the interpreter's end does not complain."""
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
