"""What Ctrl-C does at each moment of a command: it ends at once with 130, unless the command has something to tidy up.

The entry point calls `end_at_once` first of all, so that Ctrl-C shows no traceback while modules are loaded. A command that must
end something first (a call, a server of its own) does so inside `tidied_up`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTED = 130


def end_at_once() -> None:
    """From now on, Ctrl-C ends this process without a word. A SIGINT that this process was started to ignore stays ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)


@contextmanager
def tidied_up() -> Iterator[None]:
    """Inside the block, Ctrl-C is KeyboardInterrupt, which asyncio.run turns into the cancellation of its task."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)
