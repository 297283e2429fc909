"""Shows on this host that an agent lives, by its id, so that a copy of its state folder does not begin beside it.

`state` calls `show` before anything else is read, because an agent begins by ending what its folder says was left running. In a
copy of the folder that is what the living agent runs. The lock of the folder does not tell, because the copy has a lock of its
own. The sign is a listening socket in the abstract namespace (unix(7)), which goes with the process, whatever ends it. Nothing
is ever read from it. Only a process of the same user counts: others can neither end an agent's work nor keep it from beginning.

On another host nobody sees the sign; there, the coordinator refuses the second agent, and process numbers mean nothing.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import struct
import time
from pathlib import Path

_CREDENTIALS = struct.Struct("iII")  # process, user and group of `struct ucred` (unix(7))
_RELEASE_SECONDS = 10.0  # until the sign of an agent that was killed has gone, which a process that it was starting may hold

_log = logging.getLogger(__name__)


class PresentError(Exception):
    """An agent with this id lives on this host."""

    def __init__(self, process: int) -> None:
        super().__init__(f"process {process}")
        self.process = process  # 0 if it is in a container of its own


def show(agent_id: str) -> socket.socket | None:
    """Show that this agent lives, until the socket is closed. Raises PresentError if another process shows it.

    None is returned where no sign can be given. Then nobody is kept from beginning.
    """
    name = f"\0daggyr-agent/{os.getuid()}/{hashlib.sha256(agent_id.encode()).hexdigest()[:32]}"
    deadline = time.monotonic() + _RELEASE_SECONDS
    while True:
        try:
            sign = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            _unseen(error)
            return None
        try:
            sign.bind(name)
            sign.listen(1)
        except OSError as error:
            sign.close()
            if error.errno != errno.EADDRINUSE:
                _unseen(error)
                return None
        else:
            return sign
        holder = _holder(name)
        if holder is not None:
            process, user = holder
            if user != os.getuid():
                return None
            if process == 0 or Path("/proc", str(process)).exists() or time.monotonic() > deadline:
                raise PresentError(process)
        elif time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def _holder(name: str) -> tuple[int, int] | None:
    """The process that listens, and its user; None if it does not listen any more, or not yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)  # Nobody accepts, and what is not accepted fills the socket's queue.
        try:
            caller.connect(name)
            process, user, _ = _CREDENTIALS.unpack(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        except BlockingIOError:
            return 0, os.getuid()
        except OSError:
            return None
        return process, user


def _unseen(error: OSError) -> None:
    _log.warning("a copy of the state folder would not be noticed on this host: %s", error.strerror)
