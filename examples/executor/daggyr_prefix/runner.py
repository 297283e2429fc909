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
    fault = why_not(order)
    if fault:
        return {"rejected": fault}
    try:
        process = start(folder, order)
    except (OSError, ValueError) as error:
        return {"rejected": f"cannot start {order['prefix'][0]}: {error}"}
    start_ns = time.time_ns()
    write(folder / "started", str(start_ns))
    os.write(life, b"s")
    cause = wait(process.pid, control, order["timeout"], order["grace"])
    stop_ns = time.time_ns()
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
            cwd=order["working_directory"],
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


def why_not(order: dict[str, Any]) -> str | None:
    """Why the task cannot be started on this host, in words for its user; None if it can.

    This looks before the prefix is started, because a prefix that does not find its program only says so as any task would.
    """
    folder, program = Path(order["working_directory"]), order["command"][0]
    if not folder.is_dir():
        return f"no such folder: working_directory {folder}"
    if not order["look_up"]:
        return None
    if "/" not in program:
        path = order["environment"].get("PATH", os.defpath)
        places = [folder / each / program for each in path.split(":")]  # relative folders of PATH count from the task's own
        if any(place.is_file() and os.access(place, os.X_OK) for place in places):
            return None
        return f"no such program: {program} is in none of the folders of PATH={path}"
    place = folder / program
    if not place.exists():
        return f"no such program: {program}"
    if place.is_dir():
        return f"{program} is a folder, not a program"
    return None if os.access(place, os.X_OK) else f"{program} is not executable: chmod +x it"


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
