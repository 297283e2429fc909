"""Tells when a process has ended, without a thread and without a signal handler.

Executions and `descendants` watch a child's pid. Each gets a pidfd (pidfd_open(2): readable once the process has ended) in
one epoll instance of our own, whose descriptor alone is known to the event loop: registering costs two system calls, where
asyncio's own child watchers start a thread a child or scan all of them. Nothing here reaps.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

_AT_ONCE = 256
_ROUNDS = 4  # starting a process takes long enough for others to end meanwhile; then the rest of the event loop has its turn


class Exits:
    """Calls back once for each watched process that has ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._ended)

    def watch(self, pid: int, ended: Callable[[], None]) -> None:
        """Call `ended` from the event loop when the process has ended. `pid` is a child that was not reaped.

        Raises OSError if descriptors are used up.
        """
        descriptor = os.pidfd_open(pid)
        try:
            self._epoll.register(descriptor, select.EPOLLIN)
        except OSError:
            os.close(descriptor)
            raise
        self._watched[descriptor] = ended

    def close(self) -> None:
        """Forget all that is watched."""
        self._loop.remove_reader(self._epoll.fileno())
        for descriptor in self._watched:
            os.close(descriptor)
        self._watched.clear()
        self._epoll.close()

    def _ended(self) -> None:
        for _ in range(_ROUNDS):
            events = self._epoll.poll(0, _AT_ONCE)
            if not events:
                return
            for descriptor, _ in events:
                ended = self._watched.pop(descriptor)
                # A child between fork and exec may still hold a copy of it: closing alone would leave it registered.
                self._epoll.unregister(descriptor)
                os.close(descriptor)
                ended()
