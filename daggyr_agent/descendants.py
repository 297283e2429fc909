"""Finds and ends what an attempt leaves behind, so that no process outlives its attempt.

The agent is a child subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)): a process below it that loses its parent becomes its child,
in whatever process group or session that process hides. Such an orphan becomes a child of the main thread, which starts no
process itself (the threads of `slots` do). So one read after each process's end says whether anybody was left behind: usually
the main thread has no children. If it has some, each is looked at, and these rules say to which attempt it belongs:

- If its session is that of a process that the agent started, it belongs to that attempt.
- Otherwise, if its environment (/proc/PID/environ) names an attempt by DAGGYR_RUN_ID, DAGGYR_TASK_ID, DAGGYR_ATTEMPT and
  DAGGYR_LIFE, it belongs to that one.
- Otherwise it has scrubbed its environment, and may belong to any attempt that started before it did.

An orphan that may belong to an attempt that still runs is left alone, because it may be at work for it. Every other orphan gets
SIGKILL and is waited for. Its own children become the agent's then, and are looked at in turn. An attempt has ended only when no
process of it is left. All these processes are children of the agent until it reaps them, so no stranger can have their number.
Nothing here knows what an attempt does.

Orphans that are left alone are written down in the journal, so that the agent's next process can end them if this one is
killed (`leftovers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .journal import Journal
from .proc import ProcessEntry, clock_ticks, daggyr_variables, look

_PR_SET_CHILD_SUBREAPER = 36
_PAGE = os.sysconf("SC_PAGE_SIZE")
_IDENTIFYING = (b"DAGGYR_RUN_ID", b"DAGGYR_TASK_ID", b"DAGGYR_ATTEMPT", b"DAGGYR_LIFE")

_log = logging.getLogger(__name__)

Identity = tuple[bytes, bytes, bytes, bytes]  # the values of _IDENTIFYING


@dataclass(eq=False, slots=True)
class Family:
    """A process that the agent starts, and all processes that come from it."""

    identity: Identity
    born: int  # clock ticks since boot, as in proc_pid_stat(5); not after the process's own
    leader: int = 0  # the process, once it was started
    settled: Callable[[], None] | None = None  # It is called when nobody is left.
    survivors: list[int] = field(default_factory=list)  # the numbers of processes that the agent may not end


def become_subreaper() -> None:
    """Make orphans among this process's descendants its children from now on. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Descendants:
    """All families of which a process may be left. `alone`, `family` and `gone` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, journal: Journal) -> None:
        """To be made in the main thread."""
        self._loop = loop
        self._journal = journal
        self._running: dict[Family, None] = {}
        self._ending: list[Family] = []
        self._dying: dict[int, list[Family]] = {}  # orphans that were killed, and the families that wait for them
        self._protected: set[int] = set()  # orphans that the agent may not kill
        self._left: dict[int, int] = {}  # orphans that are left alone, and when they began, as the journal has them
        try:
            self._children = os.open(f"/proc/self/task/{threading.get_native_id()}/children", os.O_RDONLY)
        except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
            self._children = -1

    def family(self, identity: Identity) -> Family:
        """Take note of a process that is about to be started."""
        family = Family(identity, clock_ticks())
        self._running[family] = None
        return family

    def gone(self, family: Family) -> None:
        """Forget a family: its process has ended and nobody of it is left, or it was never started."""
        del self._running[family]

    def alone(self) -> bool:
        """Whether the agent has no children but the processes that it started. Then those that have ended left nobody behind."""
        return not self._read() if self._children >= 0 else not self._orphans()

    def end(self, family: Family, settled: Callable[[], None]) -> None:
        """End what is left of a family whose process was reaped. `settled` is called once nobody is left, perhaps at once."""
        del self._running[family]
        family.settled = settled
        self._ending.append(family)
        self._sweep()

    def tidy(self) -> None:
        """Reap orphans that have ended, of attempts that still run. The agent calls this now and then."""
        if not self.alone():
            self._sweep()

    def end_everything(self, seconds: float, lock: threading.Lock, starting: Callable[[], int]) -> bool:
        """Kill and reap every child and what it leaves. This blocks for at most `seconds`. Returns False if somebody is left.

        Others hold `lock` to reap. `starting` says how many processes are just being started. This is only for the end of the
        agent: nothing else of this class works afterwards.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with lock:
                expected = starting()
                children = _all_children()
                for pid in children:
                    for kill in (os.killpg, os.kill):
                        with contextlib.suppress(ProcessLookupError, PermissionError):
                            kill(pid, signal.SIGKILL)
            if not children and not expected:
                return True
            time.sleep(0.001)
            with lock:
                for pid in children:
                    _reaped(pid)
        return False

    def close(self) -> None:
        if self._children >= 0:
            os.close(self._children)

    def _sweep(self) -> None:
        """Look at every orphan, and reap it, leave it or kill it. Then settle the families of which nobody is left."""
        again = True
        while again:  # A process that is reaped has left its children to the agent.
            again = False
            for pid in self._orphans():
                if _reaped(pid):
                    self._protected.discard(pid)
                    self._dying.pop(pid, None)
                    if (born := self._left.pop(pid, None)) is not None:
                        self._journal.ended(pid, born)
                    again = True
                elif pid not in self._dying and pid not in self._protected and (stray := look(pid)) is not None:
                    waiting = self._owners(stray)
                    if waiting is not None:
                        self._kill(pid, waiting)
                    elif pid not in self._left:
                        self._left[pid] = stray.born
                        self._journal.runs(pid, stray.born)
        self._settle()

    def _owners(self, stray: ProcessEntry) -> list[Family] | None:
        """The families that wait for the end of an orphan that has to end; None if it may belong to an attempt that runs."""
        running = list(self._running)  # Threads add to it.
        if any(family.leader == stray.session for family in running):
            return None
        for family in self._ending:
            if family.leader == stray.session:
                return [family]
        identity = _identity(stray.pid)
        if identity is not None:
            if any(family.identity == identity for family in running):
                return None
            return [family for family in self._ending if family.identity == identity]
        if any(family.born <= stray.born for family in running):
            return None
        return list(self._ending)

    def _kill(self, pid: int, waiting: list[Family]) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            self._protected.add(pid)
            for family in waiting:
                family.survivors.append(pid)
            _log.warning("process %d outlives its attempt: it has changed its user, and the agent may not end it", pid)
            return
        self._dying[pid] = waiting
        with contextlib.suppress(OSError):  # Without a free descriptor, `tidy` finds the end.
            descriptor = os.pidfd_open(pid)  # readable once the process has ended
            self._loop.add_reader(descriptor, self._ended, descriptor)

    def _ended(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        self._sweep()

    def _settle(self) -> None:
        waiting = {id(family) for families in self._dying.values() for family in families}
        settled = [family for family in self._ending if id(family) not in waiting]
        if settled:
            self._ending = [family for family in self._ending if id(family) in waiting]
        for family in settled:
            if family.settled is not None:
                family.settled()

    def _orphans(self) -> list[int]:
        if self._children >= 0:
            return [int(word) for word in self._read().split()]
        leaders = {family.leader for family in list(self._running)}
        return [pid for pid in _all_children() if pid not in leaders]

    def _read(self) -> bytes:
        # The kernel may skip children while others are being reaped (proc_tid_children(5)). Only this thread reaps these.
        # The kernel gives at most a page at a time.
        content = piece = os.pread(self._children, 65536, 0)
        while len(piece) > _PAGE // 2:
            piece = os.pread(self._children, 65536, len(content))
            content += piece
        return content


def _all_children() -> list[int]:
    """The children of all threads of this process."""
    try:
        files = [folder / "children" for folder in Path("/proc/self/task").iterdir()]
        return [int(word) for file in files for word in file.read_bytes().split()]
    except FileNotFoundError:
        return [child.pid for child in psutil.Process().children()]


def _reaped(pid: int) -> bool:
    """Reap a child that has ended; False if it has not."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _identity(pid: int) -> Identity | None:
    """The attempt that a process's environment names; None if it names none, or may not be read."""
    values = daggyr_variables(pid)
    run_id, task_id, attempt, life = (values.get(name) for name in _IDENTIFYING)
    if run_id is None or task_id is None or attempt is None or life is None:
        return None
    return run_id, task_id, attempt, life
