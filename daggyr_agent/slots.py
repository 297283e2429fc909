"""Threads that each carry out one execution at a time: start its process, wait for it, reap it.

A process is waited for by the thread that started it, so that the next process starts the moment it has ended, while the event
loop talks to the coordinator. With /bin/true two at a time, that makes 2,400 a second, where one loop over pidfds reaches
2,050 and asyncio's own child watchers 1,200. There is a thread for each process that runs, and idle threads stay for the next
one. Threads decide nothing: they ask `attempts` what comes next.

The threads never end before the agent does. `descendants` needs that: the kernel counts a process among the children of the
thread that started it, and orphans among those of the main thread, which starts no process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from .execution import Execution

_STACK_BYTES = 256 * 1024


class Slots:
    """The threads: as many as executions have run at once."""

    def __init__(self, next_after: Callable[[Execution], Execution | None]) -> None:
        """A thread calls `next_after` with what it has carried out, and goes on with what is returned, if that is not None."""
        self._next_after = next_after
        self._handed: SimpleQueue[Execution] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        threading.stack_size(_STACK_BYTES)

    def carry_out(self, execution: Execution) -> None:
        """Have a thread carry out the execution. Raises RuntimeError if no thread can be started; then nothing is carried out."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._handed.put(execution)
                return
        # It is a daemon thread, because a process that waits for a device, and does not end by SIGKILL, must not keep the agent.
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
