"""Decides what Ctrl-C does: the command ends at once with exit code 130, unless it has something to end first.

The entry point calls `end_at_once` before anything else, so that Ctrl-C shows no traceback while modules are loaded. A command
that has something to end (a call, a server of its own) runs inside `tidied_up`. Nothing here knows what it has to end.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTED = 130


def end_at_once() -> None:
    """From now on, Ctrl-C ends this process without a message. If this process was started with SIGINT ignored, that stays so."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)


@contextmanager
def tidied_up() -> Iterator[None]:
    """Inside the block, Ctrl-C raises KeyboardInterrupt. asyncio.run makes of that the cancellation of its task."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)
