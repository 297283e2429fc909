"""Finds and ends what an attempt leaves behind, so that no process outlives its attempt.

The agent is a child subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)): whatever loses its parent below it becomes its own child,
in whatever process group or session it hides. Executions tell when a process starts and ends; at each end the agent's
children are counted, which costs one read. Only if there are more than processes that should run, somebody was left
behind, and is looked at:

- its session is that of a process we started: it belongs to that attempt;
- else its environment (/proc/PID/environ) names an attempt by DAGGYR_RUN_ID, DAGGYR_TASK_ID and DAGGYR_ATTEMPT: it belongs to
  that one;
- else it has scrubbed its environment, and may belong to any attempt that started before it did.

What belongs to an attempt that still runs is left alone (it may be at work for it). What belongs to any other, or could
belong only to such, gets SIGKILL and is waited for; its own children become ours then and are looked at in turn; the
attempt has ended only when nobody of it is left. All of these are our children until we reap them, so no stranger can have their
number. Nothing here knows what an attempt does.

Leaders that run for more than an instant, and strays that are left alone, are written down in the journal, so that the agent's
next process can end them if this one is killed (`leftovers`).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from .exits import Exits
from .journal import Journal
from .proc import Seen, daggyr_variables, look

_PR_SET_CHILD_SUBREAPER = 36
_PAGE = os.sysconf("SC_PAGE_SIZE")
_IDENTIFYING = (b"DAGGYR_RUN_ID", b"DAGGYR_TASK_ID", b"DAGGYR_ATTEMPT")

_log = logging.getLogger(__name__)

Identity = tuple[bytes, bytes, bytes]  # the values of _IDENTIFYING


@dataclass(eq=False, slots=True)
class Family:
    """A process that we started, and all that came from it. `born` is in clock ticks since boot, as in proc_pid_stat(5)."""

    leader: int
    identity: Identity
    born: int
    gone: Callable[[], None] | None = None  # set once the leader has ended: to be called when nobody is left
    survivors: list[int] = field(default_factory=list)  # pids that we may not end


def become_subreaper() -> None:
    """Make orphans among our descendants our children from now on. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Descendants:
    """All families whose leader runs or who still have somebody."""

    def __init__(self, exits: Exits, journal: Journal) -> None:
        """To be made in the main thread, which must be the one that starts processes: orphans come to it."""
        self._exits = exits
        self._journal = journal
        self._leaders: dict[int, Family] = {}
        self._ending: list[Family] = []
        self._dying: dict[int, list[Family]] = {}  # strays that we killed, and who waits for them
        self._protected: set[int] = set()  # strays that we may not kill
        try:
            self._children = os.open(f"/proc/self/task/{threading.get_native_id()}/children", os.O_RDONLY)
        except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
            self._children = -1

    def started(self, leader: int, identity: Identity, born: int) -> Family:
        """Take note of a process that we started; `born` is the time just before."""
        family = self._leaders[leader] = Family(leader, identity, born)
        return family

    def lasts(self, family: Family) -> None:
        """Its leader runs, and not only for an instant: it is written down."""
        if (seen := look(family.leader)) is not None:
            self._journal.runs(seen.pid, seen.born)

    def alone(self) -> bool:
        """Whether the agent has no children but leaders that were not reaped: then nobody is left behind by those that ended."""
        return self._count() == len(self._leaders)

    def ended(self, family: Family, gone: Callable[[], None], *, alone: bool) -> bool:
        """The leader was reaped; `alone` was said after its end, or else its group got SIGKILL.

        True if nobody of the family is left, which is usual. Otherwise all of it is being ended, and `gone` will be called
        from the event loop once that is done.
        """
        del self._leaders[family.leader]
        self._journal.ended(family.leader)
        if alone:
            return True
        family.gone = gone
        self._ending.append(family)
        self._sweep()
        settled = self._settle()
        for other in settled:
            if other is not family and other.gone:
                other.gone()
        return family in settled

    def tidy(self) -> None:
        """Reap orphans of running attempts that have ended; to be called now and then."""
        for pid in list(self._dying):
            self._reap(pid)
        if self._count() != len(self._leaders) + len(self._dying):
            self._sweep()

    def end_everything(self, seconds: float) -> bool:
        """Kill and reap every child and what they leave, blocking for at most `seconds`; False if somebody is left.

        Only for the end of the agent: nothing else of this class, and no watched exit, works afterwards.
        """
        deadline = time.monotonic() + seconds
        while children := self._child_pids():
            if time.monotonic() > deadline:
                return False
            for pid in children:
                for kill in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        kill(pid, signal.SIGKILL)
            time.sleep(0.001)
            for pid in children:
                _reaped(pid)
        return True

    def close(self) -> None:
        if self._children >= 0:
            os.close(self._children)

    def _sweep(self) -> None:
        """Look at every child that is no leader: reap it, leave it or kill it."""
        again = True
        while again:  # whoever is reaped has left us its children
            again = False
            for pid in self._child_pids():
                if pid in self._leaders or pid in self._dying:
                    continue
                if _reaped(pid):
                    self._protected.discard(pid)
                    self._journal.ended(pid)
                    again = True
                elif pid not in self._protected and (stray := look(pid)) is not None:
                    waiting = self._owners(stray)
                    if waiting is not None:
                        self._kill(pid, waiting)
                    else:
                        self._journal.runs(pid, stray.born)

    def _owners(self, stray: Seen) -> list[Family] | None:
        """Who waits for the end of a stray that has to end; None if it may belong to an attempt that runs."""
        if stray.session in self._leaders:
            return None
        for family in self._ending:
            if family.leader == stray.session:
                return [family]
        identity = _identity(stray.pid)
        if identity is not None:
            if any(family.identity == identity for family in self._leaders.values()):
                return None
            return [family for family in self._ending if family.identity == identity]
        if any(family.born <= stray.born for family in self._leaders.values()):
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
        with contextlib.suppress(OSError):  # out of descriptors: `tidy` will find it
            self._exits.watch(pid, lambda: self._reap(pid))

    def _reap(self, pid: int) -> None:
        if pid not in self._dying or not _reaped(pid):
            return
        del self._dying[pid]
        self._journal.ended(pid)
        self._sweep()
        for family in self._settle():
            if family.gone:
                family.gone()

    def _settle(self) -> list[Family]:
        """Take those out of the ending families of whom nobody is left."""
        waiting = {id(family) for families in self._dying.values() for family in families}
        settled = [family for family in self._ending if id(family) not in waiting]
        if settled:
            self._ending = [family for family in self._ending if id(family) in waiting]
        return settled

    def _count(self) -> int:
        return self._read().count(b" ") if self._children >= 0 else len(self._child_pids())

    def _child_pids(self) -> list[int]:
        if self._children < 0:
            return [child.pid for child in psutil.Process().children()]
        return [int(word) for word in self._read().split()]

    def _read(self) -> bytes:
        # The kernel may skip children while others are being reaped (proc_tid_children(5)): only we reap ours, and not now.
        # It gives at most a page at a time.
        content = piece = os.pread(self._children, 65536, 0)
        while len(piece) > _PAGE // 2:
            piece = os.pread(self._children, 65536, len(content))
            content += piece
        return content


def _reaped(pid: int) -> bool:
    """Reap a child that has ended; False if it has not."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _identity(pid: int) -> Identity | None:
    """The attempt that a process's environment names; None if it names none, or may not be read."""
    values = daggyr_variables(pid)
    run_id, task_id, attempt = (values.get(name) for name in _IDENTIFYING)
    if run_id is None or task_id is None or attempt is None:
        return None
    return run_id, task_id, attempt
