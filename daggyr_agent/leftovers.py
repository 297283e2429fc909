"""Ends what an earlier process of this agent left running when it was killed, and nobody else.

The agent calls `end_leftovers` before anything else, because what is ended here runs again elsewhere as soon as the
coordinator knows. A process is the agent's if one of these holds:

- The journal has its number and the time when it began, which together nobody else can have.
- Its environment names the agent (process.AGENT_VARIABLE). That finds what was not written down yet.
- It is below such a process, or in the session or the process group that such a process leads.

Each of them is stopped first (SIGSTOP), so that it can neither start others nor let a parent end meanwhile. When nobody new is
found, all get SIGKILL. A signal goes through a pidfd (pidfd_open(2)) whose process was looked at after it was opened, so that
a number that has become another's in between is left alone. This process and those above it are left alone too, because a task
may have started the agent anew.

One kind of process cannot be found: a process that has emptied its environment, if the agent was killed within 20 ms after the
start of its attempt, or if its parents and the leader of its session ended after the agent was killed (or, for one that had
left its session, less than a second before).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import time
from collections.abc import Mapping

from .proc import ProcessEntry, daggyr_variables, everybody, look
from .process import AGENT_VARIABLE

_ROUNDS = 100  # Each round finds what was started while the one before looked. Two are usual.

# What pidfd_open(2) answers where a number is no process's any more. It is EINVAL, or with newer versions of Linux ENOENT, while
# the number is still in use: a process group or a session has it whose leader has ended, or a thread.
_NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)

_log = logging.getLogger(__name__)


def end_leftovers(agent_id: str, written_down: Mapping[int, int], seconds: float) -> None:
    """Kill what an earlier process of this agent left, and wait for at most `seconds` until it has ended.

    `written_down` has process numbers, and the clock tick at which each process began.
    """
    found = _stop_all(agent_id.encode(), written_down)
    left = {seen.pid: seen for seen in found.values() if _signal(seen, signal.SIGKILL)}
    if not left:
        return
    count = len(left)
    deadline = time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        time.sleep(0.001)
        left = {pid: seen for pid, seen in left.items() if _runs(seen)}
    _log.warning("ended %d processes that this agent had left running when it was killed", count - len(left))
    if left:
        _log.error("these did not end within %g s of SIGKILL: %s", seconds, ", ".join(map(str, left)))


def _stop_all(agent_id: bytes, written_down: Mapping[int, int]) -> dict[int, ProcessEntry]:
    found: dict[int, ProcessEntry] = {}
    for _ in range(_ROUNDS):
        present = everybody()
        spared = _above(present)
        new = _ours(agent_id, written_down, found, present)
        for seen in new:
            found[seen.pid] = seen
            if seen.pid not in spared:
                _signal(seen, signal.SIGSTOP)
        if not new:
            break
    return {pid: seen for pid, seen in found.items() if pid not in spared}


def _above(present: Mapping[int, ProcessEntry]) -> set[int]:
    """This process, and those above it."""
    above: set[int] = set()
    pid = os.getpid()
    while pid in present and pid not in above:
        above.add(pid)
        pid = present[pid].parent
    return above


def _ours(
    agent_id: bytes, written_down: Mapping[int, int], found: Mapping[int, ProcessEntry], present: Mapping[int, ProcessEntry]
) -> list[ProcessEntry]:
    """Those of the processes present that are the agent's and were not found before."""
    ours = {pid for pid, seen in found.items() if pid in present and present[pid].born == seen.born}
    rest = []
    for seen in present.values():
        if written_down.get(seen.pid) == seen.born or daggyr_variables(seen.pid).get(AGENT_VARIABLE) == agent_id:
            ours.add(seen.pid)
        else:
            rest.append(seen)
    while more := {seen.pid for seen in rest if not ours.isdisjoint((seen.parent, seen.session, seen.group))} - ours:
        ours |= more
    return [present[pid] for pid in ours if pid not in found or found[pid].born != present[pid].born]


def _signal(seen: ProcessEntry, number: signal.Signals) -> bool:
    """Signal a process; False if it has ended, or may not be signalled."""
    descriptor = _open(seen)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        if number == signal.SIGKILL:
            _log.warning("process %d was left running: it has changed its user, and the agent may not end it", seen.pid)
        return False
    finally:
        os.close(descriptor)
    return True


def _runs(seen: ProcessEntry) -> bool:
    descriptor = _open(seen)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _open(seen: ProcessEntry) -> int | None:
    """A pidfd of that very process, for the caller to close; None if it has ended (a zombie has)."""
    try:
        descriptor = os.pidfd_open(seen.pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    now = look(seen.pid)
    if now is None or now.born != seen.born or ended.poll(0):
        os.close(descriptor)
        return None
    return descriptor
