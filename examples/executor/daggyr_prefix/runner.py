"""The runner: one process for each attempt, which starts the task, ends it when that is due, and writes down how it ended.

The executor starts it with the attempt's folder as its argument. It detaches itself at once, so that it outlives the coordinator,
and its files are the truth about the attempt. It uses the standard library alone, so that it starts quickly. It judges nothing:
which outcome an end means is decided by the executor that reads the files.

In the folder:
    order      what to start; JSON, written by the executor
    stdin      what the task reads, if the order says so
    begun      a folder; whoever makes it, the runner or the executor, decides whether the task is started. No other can
    control    a fifo; a byte in it asks for the task's end
    life       a fifo; the runner holds it open, so that its end tells readers that the runner has ended
    started    when the task was started
    stdout, stderr
    result     how the attempt ended; JSON, renamed into place, so that it is there whole or not at all
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_SET_CHILD_SUBREAPER, _SET_DEATH_SIGNAL = 36, 1  # prctl(2)


def main() -> None:
    folder = Path(sys.argv[1])
    # Opened for both directions, a fifo never makes its opener wait, and has no end while it is open (fifo(7)).
    control = os.open(folder / "control", os.O_RDWR)
    life = os.open(folder / "life", os.O_RDWR)
    if os.fork():
        os._exit(0)  # now the executor, which waits for this process, knows that both fifos are open
    os.setsid()
    try:
        (folder / "begun").mkdir()
    except FileExistsError:
        return  # the attempt was taken back
    _prctl(_SET_CHILD_SUBREAPER, 1)  # what loses its parent below here becomes a child of this process
    order = json.loads((folder / "order").read_text(encoding="utf-8"))
    result = carry_out(folder, order, control, life)
    end_children()
    write(folder / "result", json.dumps(result))


def carry_out(folder: Path, order: dict[str, Any], control: int, life: int) -> dict[str, Any]:
    """Start the task and wait for its end. Return what the result file says."""
    refused = why_not(order)
    if refused:
        return {"refused": refused}
    try:
        process = start(folder, order)
    except OSError as error:
        return {"refused": ["execute", order["prefix"][0], os.strerror(error.errno or 0)]}
    start_ns, began = time.time_ns(), time.monotonic_ns()
    write(folder / "started", str(start_ns))
    os.write(life, b"s")
    cause = wait(process.pid, control, order["timeout"], order["grace"])
    stop_ns = start_ns + time.monotonic_ns() - began  # the other clock may have been set meanwhile
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # the leader is not reaped yet, so that the group is still its own
    _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "cause": cause,
        "start_ns": start_ns,
        "stop_ns": stop_ns,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "max_rss_bytes": usage.ru_maxrss * 1024,
    }


def start(folder: Path, order: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start the prefix with the task's command behind it, in a session and a process group of its own."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open(folder / "stdin" if order["has_stdin"] else os.devnull, "rb"))
        stdout = stack.enter_context(open(folder / "stdout", "ab"))
        stderr = stack.enter_context(open(folder / "stderr", "ab"))
        return subprocess.Popen(
            [*order["prefix"], *order["command"]],
            cwd=Path(order["home"], order["working_directory"]),
            env=order["environment"],
            stdin=source,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=lambda: _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL),  # if somebody kills the runner, the task ends too
        )


def wait(pid: int, control: int, timeout: float, grace: float) -> str | None:
    """Wait until the process has ended, and leave it to be reaped. Return why it was ended, `stop` or `timeout`, or None."""
    cause = None
    due = time.monotonic() + timeout if timeout else float("inf")  # when the next signal is due
    process = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(control, select.POLLIN)
    while True:
        left = due - time.monotonic()
        ready = {descriptor for descriptor, _ in poll.poll(None if left == float("inf") else max(0, int(left * 1000) + 1))}
        if process in ready:
            os.close(process)
            return cause
        if control in ready:
            os.read(control, 4096)
        asked = control in ready and cause is None
        if asked or time.monotonic() >= due:
            number = signal.SIGTERM if cause is None else signal.SIGKILL
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)
            due = time.monotonic() + grace if cause is None else float("inf")
            cause = cause or ("stop" if asked else "timeout")


def end_children() -> None:
    """Kill whatever the task has left behind, however far it went away, and reap it."""
    while True:
        for pid in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    """The processes whose parent is this one (proc_pid_stat(5))."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_bytes().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


def why_not(order: dict[str, Any]) -> list[str]:
    """Why the task cannot be started on this host, in the words of `daggyr.attempts.startable.refusal`; nothing if it can.

    This looks before the prefix is started. A prefix that does not find its program says so as any task could, so that afterwards
    nobody could tell the two apart.
    """
    home, below, program = order["home"], order["working_directory"], order["command"][0]
    folder = Path(home, below)
    if not folder.exists():
        return ["folder", below, home]
    if not folder.is_dir():
        return ["enter", below, os.strerror(errno.ENOTDIR)]
    if not order["look_up"]:
        return []
    if "/" in program:
        place = folder / program
        if not place.exists():
            return ["program", program, home, below]
        if place.is_dir():
            return ["directory", program]
        return first_line_fault(program, place) if os.access(place, os.X_OK) else ["executable", program]
    path = order["environment"].get("PATH", os.defpath)
    candidates = [f"{each or '.'}/{program}" for each in path.split(":")]  # relative ones count from the task's folder
    found = [candidate for candidate in candidates if (folder / candidate).is_file()]
    for candidate in found:
        if os.access(folder / candidate, os.X_OK):
            return first_line_fault(candidate, folder / candidate)
    return ["executable", found[0]] if found else ["path", program, path]


def first_line_fault(program: str, place: Path) -> list[str]:
    """Why a script cannot be executed: its first line may name an interpreter that is not there (execve(2))."""
    try:
        with open(place, "rb") as file:
            words = file.readline(256).removeprefix(b"#!").split()
            is_script = file.seek(0) == 0 and file.read(2) == b"#!"
    except OSError:
        return []  # it may be executed, and not read
    if is_script and words and not Path(os.fsdecode(words[0])).exists():
        return ["execute", program, os.strerror(errno.ENOENT)]
    return []


def write(path: Path, text: str) -> None:
    """Write a file whole: when this returns it survives a loss of power, and nobody ever sees a part of it."""
    draft = path.with_name(path.name + ".part")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
