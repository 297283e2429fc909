"""Ctrl-C while a daemon is not yet, or no longer, at its work: it ends at once, without a traceback.

The entry points of `daggyr-server` and `daggyr-agent` call this before they import the rest, which takes a moment, and once
more behind their work, when asyncio has put Python's own handler back. What Ctrl-C does meanwhile is theirs to say.
"""

from __future__ import annotations

import signal


def end_without_a_word() -> None:
    """From now on, SIGINT ends this process as SIGTERM would. One that this process was started to ignore stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
