"""Threads that each carry one execution out at a time: start its process, wait, reap.

A process is waited for by the thread that started it, so that the next one starts the moment it has ended, while the event
loop talks to the coordinator. Measured with /bin/true two at a time: 2,400 a second, where one loop over pidfds reaches
2,050 and asyncio's own child watchers 1,200. There is a thread for each process that runs; idle ones stay for the next.
Threads decide nothing: what comes next is asked of `attempts`.

The threads never end before the agent does. That matters for `descendants`: the kernel counts a process among the children
of the thread that started it, and orphans among those of the main thread, which starts none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from .execution import Execution

_STACK_BYTES = 256 * 1024


class Slots:
    """As many threads as executions have run at once."""

    def __init__(self, next_after: Callable[[Execution], Execution | None]) -> None:
        """`next_after` is called in a thread with what has ended, and says what this thread goes on with, or None."""
        self._next_after = next_after
        self._handed: SimpleQueue[Execution] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        threading.stack_size(_STACK_BYTES)

    def carry_out(self, execution: Execution) -> None:
        """Have a thread carry it out. Raises RuntimeError if no thread can be started; then it is not carried out."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._handed.put(execution)
                return
        # A daemon: a process that even SIGKILL does not end (it waits for a device) must not keep the agent from leaving.
        threading.Thread(target=self._work, args=(execution,), daemon=True).start()

    def _work(self, execution: Execution) -> None:
        while True:
            execution.carry_out()
            following = self._next_after(execution)
            if following is None:
                with self._lock:
                    self._idle += 1
                following = self._handed.get()
            execution = following
