"""What the two daemons, `daggyr-server` and `daggyr-agent`, do alike: their log lines, Ctrl-C before the work, lifelines, SIGHUP.

Their entry points call `end_without_a_word` before they import the rest, their `main` calls `log_to_stderr`, `lifeline_of` reads
what `--lifeline` says, and both ask a `Terminal` what a SIGHUP means. Each daemon handles its signals itself; the command line
`daggyr` uses nothing of this.
"""

from __future__ import annotations

import os
import select
import signal
import sys


def end_without_a_word() -> None:
    """From now on, SIGINT ends this process as SIGTERM would: at once and without a traceback.

    The imports of a daemon take a moment, in which Ctrl-C would otherwise show a traceback. Entry points call this once more
    after the work, because asyncio has put Python's own handler back by then. A SIGINT that this process was started to ignore (a
    shell's `&` in a script) stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def log_to_stderr(program: str, level: str) -> None:
    """Log to standard error what is of `level` or above. Each program calls this once, before anything can log.

    A line holds the local time with milliseconds and the program's name, because the lines of server and agents often share a
    file:

        2026-03-01 12:00:00,123 daggyr-server WARNING the words
    """
    import logging  # it takes longer to load than the rest of this file, and entry points load this file first of all

    logging.basicConfig(level=level.upper(), format=f"%(asctime)s {program} %(levelname)s %(message)s", stream=sys.stderr)


def lifeline_of(text: str) -> int:
    """The inherited descriptor that `--lifeline` names. Raises ValueError, in words, if its other end cannot be seen to close.

    To be called before this process opens much, because a descriptor of its own would look like one that was inherited.
    """
    try:
        number = int(text) if text.isascii() and text.isdecimal() else -1
        if number >= 0:
            os.fstat(number)
    except OSError as error:
        raise ValueError(f"no file descriptor {text} was inherited ({error.strerror})") from None
    except (OverflowError, ValueError):
        number = -1
    if number < 0:
        raise ValueError(f"{text[:40]!r} is no number of a file descriptor")
    with select.epoll() as ready:
        try:
            ready.register(number, 0)
        except PermissionError:  # A file or a folder can always be read, so that epoll(7) takes neither.
            raise ValueError(f"file descriptor {text} has no other end that could close; give a pipe or a socket") from None
    return number


class Terminal:
    """The terminal that this process was started from, if there was one.

    SIGHUP has two meanings: the terminal was closed, or somebody asks the daemon to read its files again. `is_gone` tells them
    apart.
    """

    def __init__(self) -> None:
        self._was_there = _is_there()

    def is_gone(self) -> bool:
        """Whether there was a terminal at the start and there is none now: it was closed, and a program started there ends."""
        return self._was_there and not _is_there()


def _is_there() -> bool:
    """Whether this process has a controlling terminal; see tty(4)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
